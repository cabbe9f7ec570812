"""Gateway processes on the real broker, with a worker process behind them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import openai
import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.generation import GenerationResult
from producers.gateway.presence import live_gateways

from .conftest import Gateways, Workers

pytestmark = pytest.mark.kafka

ASK = {
    "model": "default",
    "messages": [{"role": "user", "content": "the quick brown fox jumps over the lazy dog"}],
}


def test_answers_come_over_http_and_a_stream_outlives_its_gateway(
    workers: Workers, gateways: Gateways
) -> None:
    worker, child = workers.launch(token_interval_s=0.02), gateways.launch()
    key = gateways.key("acme", "caller", "feedback")
    rival = gateways.key("rival", "caller")
    workers.wait_ready(worker)
    first = gateways.wait_ready(child)
    second, _ = gateways.start()
    partitions = {
        one.reply_partition
        for one in live_gateways(workers.bus, now_ms=time.time_ns() // 1_000_000)
    }
    assert len(partitions) == 2, "two replicas read one partition though others are free"

    client = openai.OpenAI(base_url=f"{first}/v1", api_key=key, max_retries=0)
    whole = client.chat.completions.create(**ASK, seed=3, max_tokens=40)  # type: ignore[call-overload]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        **ASK, seed=3, max_tokens=40, stream=True
    )
    streamed = "".join(event.choices[0].delta.content or "" for event in stream)
    assert streamed == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 40
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{first}/v1", api_key="fl_no", max_retries=0).models.list()

    headers = {"Authorization": f"Bearer {key}"}
    body = {**ASK, "max_tokens": 200, "seed": 5, "stream": True}
    seen: list[tuple[int, str]] = []
    request_id = ""
    with (
        suppress(httpx.TransportError),
        httpx.stream(
            "POST", f"{first}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as answer,
    ):
        request_id = answer.headers["x-request-id"]
        for number, event in events(answer.iter_lines()):
            seen.append((number, event["choices"][0]["delta"].get("content", "")))
            if len(seen) == 2:
                os.kill(child.pid, signal.SIGKILL)
    assert 0 < len(seen) < 20, "the gateway was to die in the middle of the stream"
    where = f"{second}/v1/requests/{request_id}"
    assert httpx.get(where, headers={"Authorization": f"Bearer {rival}"}).status_code == 404
    params = {"stream": "true", "starting_after": str(seen[-1][0])}
    with httpx.stream("GET", where, params=params, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        rest = [
            (number, event["choices"][0]["delta"].get("content", ""))
            for number, event in events(answer.iter_lines())
        ]
    numbers = [number for number, _ in seen + rest]
    assert numbers == list(range(len(numbers)))
    state = httpx.get(where, headers=headers).json()
    assert state["status"] == "completed"
    assert "".join(text for _, text in seen + rest) == state["output_text"]
    finals = [
        codec.decode(record.value or b"", GenerationResult)
        for record in workers.records(catalogue.RESULTS.name)
    ]
    assert Counter(one.request_id for one in finals)[request_id] == 1
    assert {one.tenant for one in finals} == {"acme"}


def test_many_callers_at_two_gateways_each_get_their_own_answer(
    workers: Workers, gateways: Gateways
) -> None:
    worker, child = workers.launch(), gateways.launch()
    key = gateways.key("acme", "caller")
    workers.wait_ready(worker)
    urls = [gateways.wait_ready(child), gateways.start()[0]]
    headers = {"Authorization": f"Bearer {key}"}

    def ask(number: int) -> tuple[str, str]:
        body = {"model": "default", "prompt": f"question {number}", "max_tokens": 8, "seed": number}
        keyed = {**headers, "Idempotency-Key": f"k{number // 2}"} if number % 4 < 2 else headers
        if number % 4 < 2:
            body |= {"prompt": f"question {number // 2}", "seed": number // 2}
        answer = httpx.post(
            f"{urls[number % 2]}/v1/completions", json=body, headers=keyed, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["id"], answer.json()["choices"][0]["text"]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    by_id = dict(answers)
    # Half of the calls share a key with another one, at the other gateway and at the same moment.
    assert len(by_id) == 90
    finals = [
        codec.decode(record.value or b"", GenerationResult)
        for record in workers.records(catalogue.RESULTS.name)
    ]
    assert Counter(one.request_id for one in finals) == dict.fromkeys(by_id, 1)
    assert {one.request_id: one.text for one in finals} == by_id


def test_a_gateway_ends_what_it_has_begun_when_it_is_told_to_stop(
    workers: Workers, gateways: Gateways
) -> None:
    worker, child = workers.launch(token_interval_s=0.02), gateways.launch()
    key = gateways.key("acme", "caller")
    workers.wait_ready(worker)
    url = gateways.wait_ready(child)
    body = {**ASK, "max_tokens": 100, "stream": True}
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.stream(
            "POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(60)
    assert "data: [DONE]" not in lines
    os.kill(child.pid, signal.SIGTERM)
    reader.join(60)
    assert "data: [DONE]" in lines
    assert child.wait(60) == 0
    assert not live_gateways(workers.bus, now_ms=time.time_ns() // 1_000_000)


def events(
    lines: Iterator[str],
) -> Iterator[tuple[int, dict[str, list[dict[str, dict[str, str]]]]]]:
    number = -1
    for line in lines:
        if line.startswith("id: "):
            number = int(line.removeprefix("id: "))
        elif line.startswith("data: {"):
            yield number, json.loads(line.removeprefix("data: "))
