"""The request handler against the in-memory engine: every way a request can end."""

import asyncio
import time
from dataclasses import replace
from typing import Any
from zlib import crc32

import msgspec
import pytest

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import Record
from infra.contracts.codec import DEADLINE_HEADER, encode
from infra.contracts.errors import UnsupportedSchemaVersion
from infra.contracts.events.generation import (
    GenerationCancellation,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ReplyAddress,
    SamplingParameters,
)
from stream_workers.engine import Emitted, EngineDead
from stream_workers.engine_memory import MemoryEngine
from stream_workers.handler import HandlerOptions, RequestHandler, Resumption
from stream_workers.routing import Route


class ListSink:
    def __init__(self) -> None:
        self.chunks: list[GenerationChunk] = []
        self.results: list[GenerationResult] = []
        self.dead: list[tuple[Record, BaseException]] = []

    async def chunk(
        self, request: GenerationRequest, chunk: GenerationChunk, source: Record
    ) -> asyncio.Future[None]:
        self.chunks.append(chunk)
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written

    def result(self, result: GenerationResult, source: Record) -> str:
        self.results.append(result)
        return "result"

    def dead_letter(self, record: Record, error: BaseException) -> str:
        self.dead.append((record, error))
        return "dead letter"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def request(**changes: Any) -> GenerationRequest:
    base = GenerationRequest(
        request_id="r1", submit_id="s1", prompt="one two three", created_at_ms=now_ms(),
        sampling=SamplingParameters(max_tokens=8), reply=ReplyAddress(partition=1),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def record(value: bytes | None, offset: int = 0) -> Record:
    return Record(
        topic="generation.requests", partition=0, offset=offset, timestamp_ms=0, key=b"k",
        value=value,
    )  # fmt: skip


def handler(engine: MemoryEngine, sink: ListSink) -> RequestHandler[str]:
    return RequestHandler(
        engine=engine, sink=sink, options=HandlerOptions(worker_id="w", model="default"),
        route=lambda _: Route(version=engine.version), now_ms=now_ms, monotonic_s=time.monotonic,
    )  # fmt: skip


async def run(request_: GenerationRequest, engine: MemoryEngine | None = None) -> ListSink:
    sink = ListSink()
    subject = handler(engine or MemoryEngine(version="default@1"), sink)
    await subject.run(subject.prepare(record(encode(request_))))
    assert subject.in_flight == 0
    return sink


async def test_chunks_add_up_to_the_result() -> None:
    sink = await run(request())
    (result,) = sink.results
    assert "".join(chunk.text for chunk in sink.chunks) == result.text
    assert sum(len(chunk.token_ids) for chunk in sink.chunks) == result.output_tokens == 8
    assert result.finish_reason == "length"
    assert result.model_versions == ("default@1",)
    assert [chunk.final for chunk in sink.chunks].count(True) == 1
    assert result.timings.ttft_ms is not None


@pytest.mark.parametrize("value", [None, b"", b"{", b"\xff\xfe", b"[]", b'{"type":"Nothing"}'])
async def test_unreadable_bytes_are_dead_lettered_untouched(value: bytes | None) -> None:
    sink = ListSink()
    subject = handler(MemoryEngine(version="default@1"), sink)
    await subject.run(subject.prepare(record(value)))
    assert sink.dead[0][0].value == value
    assert not sink.results


async def test_newer_major_version_is_dead_lettered() -> None:
    sink = await run(request(schema_version="2.0"))
    assert isinstance(sink.dead[0][1], UnsupportedSchemaVersion)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model": "other"}, "unknown_model"),
        ({"prompt": "  "}, "empty_prompt"),
        ({"prompt": "x " * 5000}, "prompt_too_long"),
        ({"sampling": SamplingParameters(max_tokens=0)}, "invalid_sampling"),
        ({"sampling": SamplingParameters(temperature=-1)}, "invalid_sampling"),
        ({"sampling": SamplingParameters(top_p=0)}, "invalid_sampling"),
        ({"sampling": SamplingParameters(stop=("",))}, "invalid_sampling"),
    ],
)
async def test_impossible_requests_get_an_error_result(changes: dict[str, Any], code: str) -> None:
    sink = await run(request(**changes))
    (result,) = sink.results
    assert result.finish_reason == "error"
    assert result.error is not None
    assert result.error.code == code
    assert [chunk.final for chunk in sink.chunks] == [True]


async def test_deadline_before_start() -> None:
    sink = await run(request(deadline_ms=1))
    assert sink.results[0].finish_reason == "deadline_exceeded"
    assert sink.results[0].output_tokens == 0


async def test_deadline_while_generating_keeps_what_there_is() -> None:
    engine = MemoryEngine(version="default@1", token_interval_s=0.02)
    sampling = SamplingParameters(max_tokens=2000)
    sink = await run(request(deadline_ms=now_ms() + 300, sampling=sampling), engine)
    assert sink.results[0].finish_reason == "deadline_exceeded"
    assert sink.results[0].output_tokens < 2000


async def test_cancellation_before_and_during() -> None:
    engine = MemoryEngine(version="default@1", token_interval_s=0.005)
    sink = ListSink()
    subject = handler(engine, sink)
    event = request(sampling=SamplingParameters(max_tokens=2000))
    cancel = GenerationCancellation(request_id="r1", created_at_ms=event.created_at_ms + 1)
    task = asyncio.create_task(subject.run(subject.prepare(record(encode(event)))))
    while not sink.chunks:  # noqa: ASYNC110 - the loop under test runs in between
        await asyncio.sleep(0)
    subject.cancel(cancel)
    await task
    again = msgspec.structs.replace(event, submit_id="s2")
    await subject.run(subject.prepare(record(encode(again))))
    assert [result.finish_reason for result in sink.results] == ["cancelled", "cancelled"]


async def test_engine_failures_are_retried_within_the_bound() -> None:
    sink = await run(request(), MemoryEngine(version="default@1", fail_next=2))
    assert sink.results[0].attempt == 2
    assert sink.results[0].finish_reason == "length"
    sink = await run(request(), MemoryEngine(version="default@1", fail_next=3))
    assert sink.results[0].error is not None
    assert sink.results[0].error.code == "engine_error"


async def test_a_dead_engine_leaves_no_result() -> None:
    engine = MemoryEngine(version="default@1")
    engine.dead = True
    with pytest.raises(EngineDead):
        await run(request(), engine)


async def test_a_new_owner_goes_on_from_what_was_emitted() -> None:
    whole = (await run(request())).results[0]
    for count in range(1, 9):
        words = whole.text.split()[:count]
        emitted = Emitted(
            token_ids=tuple(crc32(word.encode()) % 50_000 for word in words),
            text="".join(word + " " for word in words),
        )
        sink = ListSink()
        subject = handler(MemoryEngine(version="default@1"), sink)
        ended = await subject.run(
            subject.prepare(record(encode(request()))),
            epoch=7,
            resumption=Resumption(emitted=emitted, versions=("default@0",)),
        )
        assert ended.record == "result"
        (result,) = sink.results
        assert result.text == whole.text
        assert (result.output_tokens, result.resumed_tokens, result.epoch) == (8, count, 7)
        assert sum(len(chunk.token_ids) for chunk in sink.chunks) == 8 - count
        assert sink.chunks[0].first_token == count
        assert {chunk.epoch for chunk in sink.chunks} == {7}
        expected = ("default@0", "default@1") if count < 8 else ("default@0",)
        assert result.model_versions == expected


async def test_a_retry_goes_on_from_what_the_failed_attempt_emitted() -> None:
    whole = (await run(request())).results[0]
    sink = await run(request(), MemoryEngine(version="default@1", fail_next=1))
    (result,) = sink.results
    assert (result.text, result.attempt) == (whole.text, 1)
    assembler = ChunkAssembler()
    for chunk in sink.chunks:
        assembler.add(chunk)
    assert assembler.finished
    assert assembler.text == whole.text


async def test_what_does_not_fit_the_model_is_not_continued() -> None:
    whole = (await run(request())).results[0]
    sink = ListSink()
    subject = handler(MemoryEngine(version="default@1"), sink)
    alien = Resumption(emitted=Emitted(token_ids=(1, 2), text="no such"), versions=("other@1",))
    await subject.run(subject.prepare(record(encode(request()))), epoch=3, resumption=alien)
    (result,) = sink.results
    assert (result.text, result.resumed_tokens) == (whole.text, 0)
    assert result.model_versions == ("default@1",)
    assert sink.chunks[0].first_token == 0


async def test_the_earlier_of_two_deadlines_counts() -> None:
    sink = ListSink()
    subject = handler(MemoryEngine(version="default@1"), sink)
    later = request(deadline_ms=now_ms() + 60_000)
    expired = replace(record(encode(later)), headers=((DEADLINE_HEADER, b"1"),))
    await subject.run(subject.prepare(expired))
    assert sink.results[0].finish_reason == "deadline_exceeded"
    assert subject.prepare(expired).cost == 0


async def test_result_over_a_switch_names_both_versions(tmp_path: Any) -> None:
    engine = MemoryEngine(version="default@1", token_interval_s=0.001)
    sink = ListSink()
    subject = handler(engine, sink)
    event = request(sampling=SamplingParameters(max_tokens=50))
    task = asyncio.create_task(subject.run(subject.prepare(record(encode(event)))))
    while not sink.chunks:  # noqa: ASYNC110 - the loop under test runs in between
        await asyncio.sleep(0)
    await engine.switch(str(tmp_path), "default@2", "keep")
    await task
    assert sink.results[0].model_versions == ("default@1", "default@2")
    assert sink.results[0].output_tokens == 50
