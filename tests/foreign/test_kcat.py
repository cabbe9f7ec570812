"""kcat, librdkafka's command line: requests and answers by no more than a shell has."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Generator
from contextlib import closing
from typing import Any

import pytest

from . import messages
from .conftest import Platform

pytestmark = pytest.mark.kafka

TIMEOUT_S = 60


@pytest.fixture(scope="module")
def kcat() -> str:
    found = shutil.which("kcat")
    assert found is not None, "no kcat on PATH: on Debian or Ubuntu: sudo apt-get install kcat"
    return found


def produce(
    kcat: str, platform: Platform, topic: str, key: str, value: bytes, headers: dict[str, str]
) -> None:
    options = [word for name, text in headers.items() for word in ("-H", f"{name}={text}")]
    subprocess.run(
        [
            *(kcat, "-P", "-b", platform.broker, "-t", platform.topic(topic), "-k", key, *options),
            *("-X", "topic.partitioner=murmur2_random", "-X", "enable.idempotence=true"),
        ],
        input=value,
        check=True,
        timeout=TIMEOUT_S,
    )


def consume(
    kcat: str, platform: Platform, topic: str, *options: str
) -> Generator[dict[str, Any], None, None]:
    """Records from the topic's beginning, as they come, until the timeout or the iterator's end."""
    with subprocess.Popen(
        [
            *(kcat, "-C", "-q", "-u", "-J", "-b", platform.broker, "-t", platform.topic(topic)),
            *("-o", "beginning", "-X", "isolation.level=read_committed", *options),
        ],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        alarm = threading.Timer(TIMEOUT_S, process.terminate)
        alarm.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            alarm.cancel()
            process.terminate()


def find(kcat: str, platform: Platform, topic: str, key: str) -> dict[str, Any]:
    """The first record with this key, once it is there."""
    with closing(consume(kcat, platform, topic)) as records:
        for record in records:
            if record["key"] == key:
                return record
    raise AssertionError(f"no record of {key} on {topic} in {TIMEOUT_S} s")


def headers_of(record: dict[str, Any]) -> dict[str, str]:
    return dict(zip(record["headers"][::2], record["headers"][1::2], strict=True))


def test_a_request_is_answered_in_chunks_and_by_one_result(kcat: str, platform: Platform) -> None:
    asked = messages.request(sampling={"max_tokens": 24, "seed": 3}, reply={"partition": 1})
    name = asked["request_id"]
    produce(
        *(kcat, platform, "generation.requests", name),
        messages.encode(asked),
        messages.headers(asked),
    )

    chunks: list[dict[str, Any]] = []
    with closing(consume(kcat, platform, "generation.chunks", "-p", "1")) as records:
        while not chunks or not chunks[-1]["final"]:
            record = next(records)
            if record["key"] == name:
                chunks.append(json.loads(record["payload"]))
    assert [chunk["seq"] for chunk in chunks] == list(range(len(chunks)))
    assert len(chunks) > 1, "24 tokens of 20 ms came in one piece"
    firsts = [sum(len(chunk["token_ids"]) for chunk in chunks[:n]) for n in range(len(chunks))]
    assert [chunk["first_token"] for chunk in chunks] == firsts

    result = find(kcat, platform, "generation.results", name)
    assert headers_of(result)["ce_type"] == "feedloom.GenerationResult"
    answer = json.loads(result["payload"])
    assert answer["submit_id"] == asked["submit_id"]
    assert answer["text"] == "".join(chunk["text"] for chunk in chunks)
    assert (answer["finish_reason"], answer["output_tokens"]) == ("length", 24)

    # The same record once more is passed over. The one behind it takes longer than it would.
    again = messages.request(sampling={"max_tokens": 48}, affinity_key=name)
    for event in (asked, again):
        produce(kcat, platform, "generation.requests", name, messages.encode(event), {})
    find(kcat, platform, "generation.results", again["request_id"])
    with closing(consume(kcat, platform, "generation.results", "-e")) as everything:
        assert [record["key"] for record in everything].count(name) == 1


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b'{"type": "GenerationRequest", "prompt":', "MalformedRecord"),
        (b'{"type": "GenerationRequest", "request_id": "r", "prompt": "x"}', "MalformedRecord"),
        (messages.encode(messages.request(schema_version="2.0")), "UnsupportedSchemaVersion"),
        (b'{"type": "GenerationWish"}', "UnknownEventType"),
    ],
    ids=["no JSON", "a field missing", "a newer contract", "no such event"],
)
def test_what_is_no_request_is_a_dead_letter(
    kcat: str, platform: Platform, value: bytes, error: str, request: pytest.FixtureRequest
) -> None:
    key = request.node.name
    produce(kcat, platform, "generation.requests", key, value, {"mine": "kept"})
    letter = find(kcat, platform, "generation.requests.dlq", key)
    assert letter["payload"].encode() == value
    named = headers_of(letter)
    assert named["mine"] == "kept"
    assert named["__streams.errors.topic"] == "generation.requests"
    assert named["__streams.errors.exception"].endswith(f".{error}")
