"""Spans of Kafka operations, of generations and of vLLM: names, attributes, parents and links."""

from __future__ import annotations

import json

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import observability.tracing
from infra.contracts.bus import Record
from infra.contracts.events.generation import (
    ChatMessage,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
)
from observability.engine_spans import EngineSpans
from observability.generation import CAPTURE, content_attributes, redacted
from observability.messaging import LINK, committing, links_to, processing, sending
from observability.propagation import inject
from observability.tracing import past, span
from producers.inference import Inference

Spans = InMemorySpanExporter


@pytest.fixture
def exported() -> Spans:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exported: Spans, monkeypatch: pytest.MonkeyPatch) -> trace.Tracer:
    monkeypatch.setattr(observability.tracing, "_recording", True)
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return provider.get_tracer("test")


def record(headers: tuple[tuple[str, bytes], ...] = ()) -> Record:
    return Record(
        topic="generation.requests",
        partition=3,
        offset=42,
        timestamp_ms=1,
        key=b"r1",
        value=b"{}",
        headers=headers,
    )


def request(**changes: object) -> GenerationRequest:
    return GenerationRequest(
        request_id="r1", submit_id="s1", prompt="Hello", created_at_ms=1, model="default", **changes
    )


def result(**changes: object) -> GenerationResult:
    known: dict[str, object] = {
        "request_id": "r1",
        "submit_id": "s1",
        "model": "default",
        "prompt": "Hello",
        "text": "Hi",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "output_tokens": 5,
        "cached_tokens": 1,
        "model_versions": ("default@1", "default@2"),
        "created_at_ms": 1,
        "finished_at_ms": 2,
        "worker_id": "w1",
    }
    return GenerationResult(**{**known, **changes})


def attributes_of(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def test_a_record_is_processed_below_its_send_and_the_commit_links_to_what_came_of_it(
    tracer: trace.Tracer, exported: Spans
) -> None:
    with sending(tracer, "generation.requests", key="r1"):
        headers = tuple(inject(()))
    with (
        processing(tracer, record(headers), group="workers", start_ns=1_000) as _,
        sending(tracer, "generation.results", key="r1"),
    ):
        past(tracer, "feedloom.admission", 1_000)
        outcome = inject(())
    with committing(tracer, ["generation.requests"], [outcome, ()], group="workers"):
        pass
    sent, _, produced, processed, committed = exported.get_finished_spans()
    assert [one.name for one in (sent, processed, committed)] == [
        "send generation.requests",
        "process generation.requests",
        "commit generation.requests",
    ]
    assert [one.kind for one in (sent, processed, committed)] == [
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CLIENT,
    ]
    assert processed.parent is not None
    assert processed.parent.span_id == sent.context.span_id
    assert processed.start_time == 1_000
    assert attributes_of(processed) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "generation.requests",
        "messaging.destination.partition.id": "3",
        "messaging.kafka.offset": 42,
        "messaging.kafka.message.key": "r1",
        "messaging.consumer.group.name": "workers",
    }
    # A commit is of many traces: it is in none of them, and says of how many records it is.
    assert committed.parent is None
    assert [link.context.span_id for link in committed.links] == [produced.context.span_id]
    assert attributes_of(committed)["messaging.batch.message_count"] == 2


def test_links_say_what_they_lead_to_and_pass_over_records_without_a_trace(
    tracer: trace.Tracer,
) -> None:
    with sending(tracer, "model.registry"):
        headers = inject(())
    (link,) = links_to(headers, (), None, **{LINK: "publication"})
    assert dict(link.attributes or {}) == {"feedloom.link": "publication"}


def test_a_failure_names_its_kind(tracer: trace.Tracer, exported: Spans) -> None:
    with pytest.raises(LookupError), span(tracer, "look"):
        raise LookupError("nothing there")
    (failed,) = exported.get_finished_spans()
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes_of(failed)["error.type"] == "LookupError"


def test_nothing_is_recorded_where_nobody_collects(
    tracer: trace.Tracer, exported: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observability.tracing, "_recording", False)
    with processing(tracer, record()), sending(tracer, "generation.results"):
        past(tracer, "feedloom.admission", 1)
        assert inject(()) == []
    assert exported.get_finished_spans() == ()


def test_an_inference_ends_with_its_result_and_only_once(
    tracer: trace.Tracer, exported: Spans
) -> None:
    asked = request(sampling=SamplingParameters(max_tokens=5, stop=("\n",), temperature=0.1))
    inference = Inference(tracer, asked, names=frozenset({"max_tokens", "stop"}))
    inference.first_chunk()
    inference.end(result())
    inference.end(error=TimeoutError("too late"))
    (ended,) = exported.get_finished_spans()
    assert (ended.name, ended.kind) == ("text_completion default", SpanKind.CLIENT)
    assert ended.status.status_code is StatusCode.UNSET
    attributes = attributes_of(ended)
    assert float(str(attributes.pop("gen_ai.response.time_to_first_chunk"))) >= 0
    assert attributes == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "vllm",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "default",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.stop_sequences": ("\n",),
        "gen_ai.response.id": "r1",
        "gen_ai.response.model": "default@2",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "feedloom.request.id": "r1",
    }


def test_an_inference_that_failed_says_how(tracer: trace.Tracer, exported: Spans) -> None:
    chat = request(messages=(ChatMessage(role="user", content="Hi"),))
    Inference(tracer, chat, names=None).end(error=TimeoutError("nobody answered"))
    refused = GenerationError(code="unknown_model", message="no such model")
    Inference(tracer, chat, names=None).end(result(finish_reason="error", error=refused))
    late, error = exported.get_finished_spans()
    assert [one.name for one in (late, error)] == ["chat default", "chat default"]
    assert {one.status.status_code for one in (late, error)} == {StatusCode.ERROR}
    assert attributes_of(late)["error.type"] == "TimeoutError"
    assert attributes_of(error)["error.type"] == "unknown_model"


@pytest.mark.parametrize("wanted", ["", "false"])
def test_texts_stay_out_of_spans(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, wanted)
    assert content_attributes(request(), "Hi") == {}


def test_texts_are_redacted_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPTURE, "true")
    found = content_attributes(request(), "Write to jane.doe@example.org")
    asked, answered = (
        json.loads(str(found[f"gen_ai.{side}.messages"])) for side in ("input", "output")
    )
    assert asked == [{"role": "user", "parts": [{"type": "text", "content": "Hello"}]}]
    assert answered[0]["parts"][0]["content"] == "Write to [email]"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("call +49 30 1234567 now", "call [phone number] now"),
        ("card 4111 1111 1111 1111.", "card [card number]."),
        ("Authorization: Bearer abc.def-123", "Authorization: [token]"),
        ("key sk-0123456789abcdef", "key [key]"),
        ("version 2, 17 steps in 2026", "version 2, 17 steps in 2026"),
    ],
)
def test_what_is_redacted(text: str, left: str) -> None:
    assert redacted(text) == left


def test_what_vllm_writes_has_todays_names_and_its_parts(exported: Spans) -> None:
    provider = TracerProvider()
    provider.add_span_processor(EngineSpans(SimpleSpanProcessor(exported)))
    asking = provider.get_tracer("feedloom").start_span("text_completion default")
    second = 1_000_000_000
    written = provider.get_tracer("vllm.tracing.otel").start_span(
        "llm_request",
        trace.set_span_in_context(asking),
        kind=SpanKind.SERVER,
        start_time=10 * second,
        attributes={
            "gen_ai.usage.prompt_tokens": 7,
            "gen_ai.usage.completion_tokens": 9,
            "gen_ai.latency.e2e": 3.5,
            "gen_ai.latency.time_in_queue": 0.5,
            "gen_ai.latency.time_in_model_prefill": 1.0,
            "gen_ai.latency.time_in_model_decode": 2.0,
        },
    )
    written.end(int(13.5 * second))
    asking.end()
    whole, *parts, other = exported.get_finished_spans()
    assert other.name == "text_completion default"
    assert attributes_of(whole) == {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 9}
    assert whole.parent is not None
    assert whole.parent.span_id == asking.get_span_context().span_id
    assert [(part.name, part.start_time, part.end_time) for part in parts] == [
        ("feedloom.engine.queue", 10 * second, int(10.5 * second)),
        ("feedloom.engine.prefill", int(10.5 * second), int(11.5 * second)),
        ("feedloom.engine.decode", int(11.5 * second), int(13.5 * second)),
    ]
    assert {part.parent and part.parent.span_id for part in parts} == {whole.context.span_id}
    assert len({part.context.span_id for part in (whole, *parts)}) == 4
