"""The SDK over the bus in memory, with a scripted worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.contracts import catalogue, codec
from infra.contracts.events.feedback import FeedbackForgotten, FeedbackReceived
from infra.contracts.events.generation import (
    ChatMessage,
    GenerationCancellation,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
)
from infra.testing import InMemoryBus
from producers.affinity import home_partition
from producers.aio import AsyncGenerationClient
from producers.client import GenerationClient
from producers.commands import publish as publish_command
from producers.errors import ClientClosed, InvalidFeedback, ResultTimeout
from producers.feedback import FeedbackClient
from producers.feedback_commands import feedback as feedback_command
from producers.files import publish_lines


class ScriptedWorker:
    """Answers each request with the words of its prompt, one chunk a word."""

    def __init__(self, bus: InMemoryBus, *, lose_last_chunk: bool = False) -> None:
        self._bus = bus
        self._lose = lose_last_chunk
        self._stop = threading.Event()
        self._reader = bus.reader([catalogue.REQUESTS.name])
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        publisher = self._bus.publisher()
        while not self._stop.is_set():
            for record in self._reader.poll(0.05):
                assert record.value is not None
                request = codec.decode(record.value, GenerationRequest)
                assert request.reply is not None
                key = request.request_id.encode()
                words = request.prompt.split()
                for seq, word in enumerate(words):
                    last = seq == len(words) - 1
                    if last and self._lose:
                        continue
                    publisher.publish(
                        catalogue.CHUNKS.name,
                        key=key,
                        partition=request.reply.partition,
                        value=codec.encode(
                            GenerationChunk(
                                request_id=request.request_id,
                                submit_id=request.submit_id,
                                attempt=0,
                                seq=seq,
                                first_token=seq,
                                token_ids=(seq,),
                                text=word + " ",
                                model_version="default@1",
                                emitted_at_ms=0,
                                final=last,
                            )
                        ),
                    )
                result = GenerationResult(
                    request_id=request.request_id,
                    submit_id=request.submit_id,
                    model="default",
                    prompt=request.prompt,
                    text=" ".join(words) + " ",
                    finish_reason="stop",
                    prompt_tokens=1,
                    output_tokens=len(words),
                    model_versions=("default@1",),
                    created_at_ms=0,
                    finished_at_ms=1,
                )
                publisher.publish(catalogue.RESULTS.name, key=key, value=codec.encode(result))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def bus() -> InMemoryBus:
    return InMemoryBus()


@pytest.fixture
def worker(bus: InMemoryBus) -> Iterator[ScriptedWorker]:
    scripted = ScriptedWorker(bus)
    yield scripted
    scripted.close()


@pytest.mark.usefixtures("worker")
def test_two_thousand_requests_are_outstanding_on_one_client(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="test") as client:
        handles = [client.submit(f"answer number {number}") for number in range(2000)]
        for number, handle in enumerate(handles):
            assert handle.result(60).text == f"answer number {number} "
            assert "".join(c.text for c in handle.stream(60)) == f"answer number {number} "
        assert client.outstanding == 0


@pytest.mark.usefixtures("worker")
def test_the_asynchronous_face_streams_side_by_side(bus: InMemoryBus) -> None:
    async def one(client: AsyncGenerationClient, number: int) -> str:
        handle = await client.submit(f"a b {number}")
        streamed = "".join([chunk.text async for chunk in handle.stream(30)])
        assert (await handle.result(30)).text == streamed
        return streamed

    async def main() -> list[str]:
        async with AsyncGenerationClient(bus, source="test") as client:
            return await asyncio.gather(*(one(client, number) for number in range(50)))

    assert asyncio.run(main()) == [f"a b {number} " for number in range(50)]


def test_an_answer_that_does_not_come_says_what_to_look_at(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="test") as client:
        handle = client.submit("hello")
        with pytest.raises(ResultTimeout, match="is a worker serving 'default'"):
            handle.result(0.05)
        with pytest.raises(ResultTimeout):
            next(iter(handle.stream(0.05)))
        assert not handle.done


def test_closing_fails_what_is_outstanding(bus: InMemoryBus) -> None:
    client = GenerationClient(bus, source="test")
    handle = client.submit("hello")
    client.close()
    client.close()
    with pytest.raises(ClientClosed):
        handle.result(1)
    with pytest.raises(ClientClosed):
        client.submit("again")


def test_a_request_id_is_outstanding_once(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="test") as client:
        client.submit("hello", request_id="r1")
        with pytest.raises(ValueError, match="r1 is still outstanding"):
            client.submit("hello", request_id="r1")


@pytest.mark.usefixtures("worker")
def test_a_request_that_cannot_be_encoded_leaves_nothing_outstanding(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="test") as client:
        for key in ("k", "\ud800"):
            with pytest.raises(UnicodeEncodeError):
                client.submit("half a pair: \ud800", request_id="r1", affinity_key=key)
        assert client.outstanding == 0
        assert not any(sum(router.outstanding) for router in client._routers.values())
        assert client.submit("hello", request_id="r1").result(30).text == "hello "


def test_cancel_asks_by_topic(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="test") as client:
        client.submit("hello", request_id="r1").cancel("closed the tab")
    (record,) = bus.records(catalogue.CANCELLATIONS.name)
    event = codec.decode(record.value or b"", GenerationCancellation)
    assert (event.request_id, event.reason) == ("r1", "closed the tab")


def test_requests_carry_key_headers_and_deadline(bus: InMemoryBus) -> None:
    with GenerationClient(bus, source="shop") as client:
        request = client.submit("hello", affinity_key="talk-7", ttl_s=10).request
    (record,) = bus.records(catalogue.REQUESTS.name)
    assert record.key == b"talk-7"
    assert codec.header(record.headers, "ce_source") == "shop"
    assert codec.header(record.headers, "ce_type") == "feedloom.GenerationRequest"
    assert request.deadline_ms == request.created_at_ms + 10_000


@pytest.mark.usefixtures("worker")
def test_a_file_of_prompts_keeps_its_order_and_names_bad_lines(bus: InMemoryBus) -> None:
    lines = [
        b'{"prompt": "one"}',
        b"",
        b"{broken",
        b'{"prompt": "two", "temperatur": 1}',
        b'{"prompt": "three \xff"}',
        b'{"prompt": "x"}\r',
    ]
    with GenerationClient(bus, source="test") as client:
        outcomes = list(
            publish_lines(client, lines, rate_per_s=None, max_in_flight=2, timeout_s=30)
        )
    assert [outcome.line for outcome in outcomes] == [1, 3, 4, 5, 6]
    assert outcomes[0].row["text"] == "one "
    assert [outcome.error is None for outcome in outcomes] == [True, False, False, False, True]
    assert "temperatur" in (outcomes[2].error or "")
    assert "0xff" in (outcomes[3].error or "")
    json.dumps([outcome.row for outcome in outcomes])


@pytest.mark.usefixtures("worker")
def test_a_line_of_a_prompts_file_ends_at_a_newline_alone(
    bus: InMemoryBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unicode has more ends of a line, and JSON lets them stand in a text as they are."""
    prompt = "one\u2028two\u0085three"
    prompts, results = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False), '{"prompt": "four"}']
    prompts.write_bytes("\r\n".join(lines).encode())
    client = GenerationClient(bus, source="test")
    monkeypatch.setattr(GenerationClient, "connect", lambda *_, **__: client)
    ran = CliRunner().invoke(publish_command, [str(prompts), "--results", str(results), "--quiet"])
    assert ran.exit_code == 0, ran.output
    records = bus.records(catalogue.REQUESTS.name)
    asked = [codec.decode(record.value or b"", GenerationRequest) for record in records]
    assert sorted(request.prompt for request in asked) == ["four", prompt]
    assert len(results.read_bytes().splitlines()) == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.rate("r", "sideways"),
        lambda client: client.grade("r", 1.5),
        lambda client: client.edit("r", "  "),
        lambda client: client.prefer("r", "same", "same"),
        lambda client: client.comment("r", ""),
        lambda client: client.rate("", "up"),
        lambda client: client.forget(""),
    ],
)
def test_feedback_that_says_nothing_is_refused(
    bus: InMemoryBus, use: Callable[[FeedbackClient], str]
) -> None:
    with FeedbackClient(bus, source="test") as client, pytest.raises(InvalidFeedback):
        use(client)
    assert bus.records(catalogue.FEEDBACK.name) == []


def test_feedback_is_keyed_by_request(bus: InMemoryBus) -> None:
    with FeedbackClient(bus, source="test", principal="ada") as client:
        feedback_id = client.edit("r1", "better")
    (record,) = bus.records(catalogue.FEEDBACK.name)
    event = codec.decode(record.value or b"", FeedbackReceived)
    assert (record.key, event.feedback_id, event.principal) == (b"r1", feedback_id, "ada")


def test_a_request_to_forget_is_kept_with_its_reason(bus: InMemoryBus) -> None:
    with FeedbackClient(bus, source="test", principal="ada") as client:
        client.forget("r1", reason="asked")
    (record,) = bus.records(catalogue.FORGOTTEN.name)
    event = codec.decode(record.value or b"", FeedbackForgotten)
    assert (record.key, event.reason, event.principal) == (b"r1", "asked", "ada")


def test_the_feedback_command_wants_something_to_say() -> None:
    outcome = CliRunner().invoke(feedback_command, ["r1"])
    assert outcome.exit_code == 2
    assert "--rating" in outcome.output


def test_importing_the_sdk_pulls_in_nothing_heavy() -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys, producers.client, producers.aio, producers.feedback\n"
        "print({'torch', 'vllm', 'faust', 'transformers', 'aiokafka'} & set(sys.modules))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert finished.stdout.strip() == "set()"


def test_batch_requests_and_conversations_go_where_they_belong() -> None:
    bus = InMemoryBus()
    with GenerationClient(bus, source="test") as client:
        client.submit("later", batch=True)
        message = ChatMessage(role="user", content="hello")
        client.submit(messages=[message], ttl_s=60)
    (later,) = bus.records(catalogue.REQUESTS_BATCH.name)
    assert codec.decode(later.value or b"", GenerationRequest).prompt == "later"
    (chat,) = bus.records(catalogue.REQUESTS.name)
    request = codec.decode(chat.value or b"", GenerationRequest)
    assert (request.prompt, request.messages) == ("", (message,))
    assert codec.header(chat.headers, codec.DEADLINE_HEADER) == str(request.deadline_ms)


def test_one_affinity_key_keeps_one_partition_until_it_has_far_more_than_the_others() -> None:
    bus = InMemoryBus()
    with GenerationClient(bus, source="test") as client:
        for number in range(40):
            client.submit(f"turn {number}", affinity_key="talk-1")
        records = bus.records(catalogue.REQUESTS.name)
        counts = Counter(record.partition for record in records)
        home = home_partition(b"talk-1", len(bus.end_offsets(catalogue.REQUESTS.name)))
        assert counts[home] == max(counts.values()) == 8  # what any partition may hold
        assert {record.key for record in records} == {b"talk-1"}
    bus = InMemoryBus()
    worker = ScriptedWorker(bus)
    try:
        with GenerationClient(bus, source="test") as client:
            for number in range(20):
                client.submit(f"turn {number}", affinity_key="talk-1").result(30)
    finally:
        worker.close()
    assert {record.partition for record in bus.records(catalogue.REQUESTS.name)} == {home}


def test_a_client_may_cancel_what_it_leaves() -> None:
    bus = InMemoryBus()
    with GenerationClient(bus, source="test", cancel_on_close=True) as client:
        handle = client.submit("to be left")
    (record,) = bus.records(catalogue.CANCELLATIONS.name)
    left = codec.decode(record.value or b"", GenerationCancellation)
    assert left.request_id == handle.request.request_id
