"""Clients over HTTP that are not ours, on gateway and worker processes: OpenAI's own, and locust.

Conversations, prompts, whole streams and errors are asked of such processes with OpenAI's client in
tests/integration/test_gateway_kafka.py and test_gateway_vllm.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from tests.conftest import ROOT

from .conftest import Gateway

pytestmark = pytest.mark.kafka

MESSAGES = [{"role": "user", "content": "the quick brown fox jumps over the lazy dog"}]
ENDED = {"completed", "failed", "cancelled", "expired"}
LOCUST = ROOT / ".feedloom" / "foreign" / "bin" / "locust"
USERS = 8
CALLS = 10
"""Of each user, as in locustfile.py."""


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0)


def until(what: str, check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not check():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


def test_a_file_of_requests_is_answered_as_a_batch(client: openai.OpenAI) -> None:
    bodies = {
        f"ask-{number}": {"model": "default", "messages": MESSAGES, "max_tokens": 4}
        for number in range(20)
    }
    bodies["too-hot"] = {"model": "default", "messages": MESSAGES, "temperature": 9}
    rows = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
        for name, body in bodies.items()
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    with client:
        file = client.files.create(file=("asks.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        until("its end", lambda: client.batches.retrieve(batch.id).status in ENDED)
        batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 1)
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        lines = client.files.content(batch.output_file_id).text.splitlines()
        answers = {row["custom_id"]: row["response"]["body"] for row in map(json.loads, lines)}
        assert answers.keys() == bodies.keys() - {"too-hot"}
        for answer in answers.values():
            parsed = openai.types.chat.ChatCompletion.model_validate(answer)
            assert parsed.usage is not None
            assert parsed.usage.completion_tokens == 4
        (line,) = client.files.content(batch.error_file_id).text.splitlines()
        assert json.loads(line)["custom_id"] == "too-hot"


def test_a_request_in_the_background_is_polled_and_one_is_cancelled(client: openai.OpenAI) -> None:
    def ask(tokens: int) -> str:
        made = client.post(
            "/chat/completions",
            body={
                "model": "default",
                "messages": MESSAGES,
                "max_tokens": tokens,
                "background": True,
            },
            cast_to=object,
        )
        assert isinstance(made, dict)
        return str(made["id"])

    def state(name: str) -> dict[str, object]:
        found = client.get(f"/requests/{name}", cast_to=object)
        assert isinstance(found, dict)
        return found

    with client:
        short, endless = ask(6), ask(1500)
        until("its answer", lambda: state(short)["status"] == "completed")
        assert len(str(state(short)["output_text"]).split()) == 6
        until("a part of it", lambda: state(endless)["output_text"] != "")
        client.delete(f"/requests/{endless}", cast_to=object)
        until("its end", lambda: state(endless)["status"] == "cancelled")


async def test_many_streams_of_the_asynchronous_client_do_not_mix(gateway: Gateway) -> None:
    async def ask(client: openai.AsyncOpenAI, word: str) -> str:
        stream = await client.completions.create(
            model="default", prompt=word, max_tokens=12, stream=True
        )
        return "".join([event.choices[0].text async for event in stream])

    words = [f"word{number}" for number in range(32)]
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0
    ) as client:
        texts = await asyncio.gather(*(ask(client, word) for word in words))
    assert texts == [f"{word} " * 12 for word in words]


def test_a_load_of_locusts_users_has_no_failure(gateway: Gateway) -> None:
    assert LOCUST.is_file(), "locust is not installed: make foreign"
    done = subprocess.run(
        [
            *(str(LOCUST), "--headless", "--only-summary", "--json"),
            *("--locustfile", str(Path(__file__).parent / "locustfile.py")),
            *("--host", gateway.url, "--users", str(USERS), "--spawn-rate", str(USERS)),
            # Ends when all users have; this is only for when they do not.
            *("--run-time", "60s", "--stop-timeout", "30", "--exit-code-on-error", "1"),
        ],
        env={**os.environ, "FEEDLOOM_KEY": gateway.key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = {row["name"]: row for row in json.loads(done.stdout)}
    assert set(report) == {"whole", "streamed"}
    assert {row["num_failures"] for row in report.values()} == {0}
    assert {row["num_requests"] for row in report.values()} == {USERS * CALLS // 2}
    for row in report.values():
        assert sum(row["response_times"].values()) == row["num_requests"]
