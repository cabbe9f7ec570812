"""Bytes that events take on Kafka, found by encoding real ones. ``python -m infra.planning.wire``
writes them into ``coefficients.toml``.

Of an event that carries text only what is around the text is counted here; the text is added by
``traffic``. Events look as the platform sends them: request ids as the gateway mints them, headers
with a W3C trace context, every field that a normal request has. Framing is Kafka's record format
v2 (KIP-98), uncompressed, as the project's clients send it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infra.contracts import codec
from infra.contracts.codec import Headers
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackExample, FeedbackReceived
from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded
from infra.contracts.events.generation import (
    GenerationCancellation,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ReplyAddress,
    SamplingParameters,
    ShadowCompared,
    Timings,
)
from infra.contracts.events.platform import (
    GatewayStatusReported,
    VersionSwitch,
    WorkerStatusReported,
)

BATCH_BYTES = 61
"""Of a record batch's header: base offset 8, length 4, leader epoch 4, magic 1, CRC 4, attributes
2, last offset delta 4, two timestamps 8 each, producer id 8, epoch 2, sequence 4, count 4."""

REQUEST_ID = "chatcmpl-" + "a" * 61
SUBMIT_ID = "3f0d6f0e-8c1f-4f57-9b43-0a3c2b6c9e11"
EVENT_ID = SUBMIT_ID
NOW_MS = 1_790_000_000_000
TRACE = [("traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")]
WORKER = "worker-7d9f8b6c5d-x2x4q"
GATEWAY = "gateway-6b8d7c9f4c-k8k2p"
TENANT = "tenant-42"
USER = "user-123456"
VERSION = "default@12"


def varint(value: int) -> int:
    """Bytes of a zigzag varint."""
    return max(1, -(-((value << 1) ^ (value >> 63)).bit_length() // 7))


def record_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    """A record in a batch, without the batch's header; it is the batch's first."""

    def field(data: bytes | None) -> int:
        return varint(-1) if data is None else varint(len(data)) + len(data)

    inner = 1 + varint(0) + varint(0) + field(key) + field(value) + varint(len(headers))
    inner += sum(field(name.encode()) + field(data) for name, data in headers)
    return varint(inner) + inner


@dataclass(frozen=True, kw_only=True)
class Written:
    """A record as it goes to the broker."""

    key: bytes
    value: bytes
    headers: Headers

    @property
    def size(self) -> int:
        """Without the batch's header."""
        return record_bytes(self.key, self.value, self.headers)


def request(prompt: str = "") -> Written:
    """As the gateway sends it: sampling fields that the caller gave, and a deadline."""
    event = GenerationRequest(
        request_id=REQUEST_ID,
        submit_id=SUBMIT_ID,
        prompt=prompt,
        created_at_ms=NOW_MS,
        sampling=SamplingParameters(max_tokens=512),
        reply=ReplyAddress(partition=117),
        deadline_ms=NOW_MS + 120_000,
        tenant=TENANT,
        user=USER,
    )
    document = msgspec.to_builtins(event)
    document["sampling"] = {"max_tokens": 512, "temperature": 0.7}
    headers = codec.event_headers(event, event_id=SUBMIT_ID, source=GATEWAY)
    headers.append((codec.DEADLINE_HEADER, str(event.deadline_ms).encode()))
    return Written(
        key=REQUEST_ID.encode(), value=msgspec.json.encode(document), headers=[*headers, *TRACE]
    )


def chunk(tokens: Sequence[int] = (), text: str = "") -> Written:
    """From the middle of an answer."""
    event = GenerationChunk(
        request_id=REQUEST_ID,
        submit_id=SUBMIT_ID,
        attempt=0,
        seq=12,
        first_token=193,
        token_ids=tuple(tokens),
        text=text,
        model_version=VERSION,
        emitted_at_ms=NOW_MS,
        epoch=41,
    )
    headers = codec.event_headers(
        event, event_id=f"{REQUEST_ID}/41.0.12", source=f"worker/{WORKER}"
    )
    origin = ("feedloom.source", b"generation.requests/117/123456789")
    return Written(
        key=REQUEST_ID.encode(), value=codec.encode(event), headers=[*headers, *TRACE, origin]
    )


def result(prompt: str = "", text: str = "") -> Written:
    """A whole answer."""
    return _result(_result_event(prompt, text))


def _result_event(prompt: str, text: str) -> GenerationResult:
    return GenerationResult(
        request_id=REQUEST_ID,
        submit_id=SUBMIT_ID,
        model="default",
        prompt=prompt,
        text=text,
        finish_reason="length",
        prompt_tokens=1024,
        output_tokens=256,
        model_versions=(VERSION,),
        created_at_ms=NOW_MS,
        finished_at_ms=NOW_MS,
        epoch=41,
        worker_id=WORKER,
        tenant=TENANT,
        user=USER,
        timings=Timings(queue_ms=12.345678, ttft_ms=123.456789, itl_ms=23.456789, total_ms=6123.4),
    )


def _result(event: GenerationResult) -> Written:
    headers = codec.event_headers(
        event, event_id=f"{REQUEST_ID}/41.result", source=f"worker/{WORKER}"
    )
    return Written(key=REQUEST_ID.encode(), value=codec.encode(event), headers=[*headers, *TRACE])


class _JoinState(msgspec.Struct):
    """The value of the join's changelog; a test compares it with the worker's own."""

    result: GenerationResult
    feedback: tuple[FeedbackReceived, ...] = ()
    forgotten: bool = False
    origin: tuple[tuple[str, bytes], ...] = ()


def join_state(prompt: str = "", text: str = "") -> Written:
    """A result as the feedback join's changelog keeps it."""
    state = _JoinState(result=_result_event(prompt, text), origin=tuple(TRACE))
    return Written(key=REQUEST_ID.encode(), value=msgspec.json.encode(state), headers=())


def _keyed(key: str, event: Event, source: str) -> Written:
    headers = codec.event_headers(event, event_id=EVENT_ID, source=source)
    return Written(key=key.encode(), value=codec.encode(event), headers=[*headers, *TRACE])


def feedback() -> Written:
    """A rating."""
    event = FeedbackReceived(
        feedback_id=EVENT_ID,
        request_id=REQUEST_ID,
        created_at_ms=NOW_MS,
        rating="up",
        principal=f"{TENANT}/{USER}",
    )
    return _keyed(REQUEST_ID, event, GATEWAY)


def example() -> Written:
    """Of one rating, without its texts."""
    event = FeedbackExample(
        request_id=REQUEST_ID,
        prompt="",
        output="",
        model="default",
        model_versions=(VERSION,),
        feedback_ids=(EVENT_ID,),
        updated_at_ms=NOW_MS,
        ups=1,
        tenant=TENANT,
        principals=(f"{TENANT}/{USER}",),
    )
    return _keyed(REQUEST_ID, event, f"worker/{WORKER}")


def cancellation() -> Written:
    """Somebody hung up."""
    event = GenerationCancellation(
        request_id=REQUEST_ID, created_at_ms=NOW_MS, reason="the caller hung up"
    )
    return _keyed(REQUEST_ID, event, GATEWAY)


def shadow() -> Written:
    """Without its prompt and its two texts."""
    event = ShadowCompared(
        request_id=REQUEST_ID,
        submit_id=SUBMIT_ID,
        model="default",
        experiment="default-12-41",
        stable=VERSION,
        candidate="default@13",
        prompt="",
        stable_text="",
        candidate_text="",
        stable_tokens=256,
        candidate_tokens=256,
        common_tokens=17,
        stable_finish="length",
        candidate_finish="length",
        compared_at_ms=NOW_MS,
        worker_id=WORKER,
        tenant=TENANT,
    )
    return _keyed(REQUEST_ID, event, f"worker/{WORKER}")


def admission_asked() -> Written:
    """With a quota and an idempotency key."""
    event = AdmissionAsked(
        tenant=TENANT,
        request_id=REQUEST_ID,
        tokens=1536,
        lease_ms=180_000,
        requests_per_minute=60_000,
        tokens_per_minute=10_000_000,
        idempotency_key="c" * 32,
        fingerprint="d" * 32,
    )
    return _keyed(TENANT, event, GATEWAY)


def admission_ended() -> Written:
    """The same request's end."""
    return _keyed(
        TENANT, AdmissionEnded(tenant=TENANT, request_id=REQUEST_ID, tokens=1280), GATEWAY
    )


def worker_status() -> Written:
    """A heartbeat after a switch."""
    event = WorkerStatusReported(
        worker_id=WORKER,
        state="ready",
        versions={"default": VERSION},
        reported_at_ms=NOW_MS,
        last_switch=VersionSwitch(
            model="default",
            from_version="default@11",
            to_version=VERSION,
            switched_at_ms=NOW_MS,
            pause_ms=110.5,
            in_flight=200,
        ),
        loaded={"default": (VERSION,)},
        in_flight=200,
        queued=0,
    )
    headers = codec.event_headers(event, event_id=EVENT_ID, source=f"worker/{WORKER}")
    return Written(key=WORKER.encode(), value=codec.encode(event), headers=headers)


def gateway_status() -> Written:
    """A heartbeat."""
    event = GatewayStatusReported(
        gateway_id=GATEWAY,
        state="ready",
        reply_partition=117,
        reported_at_ms=NOW_MS,
        url="http://10.42.117.204:8000",
    )
    return _keyed(GATEWAY, event, GATEWAY)


RECORDS: dict[str, Callable[[], Written]] = {
    "wire.request": request,
    "wire.chunk": chunk,
    "wire.result": result,
    "wire.join_state": join_state,
    "wire.feedback": feedback,
    "wire.example": example,
    "wire.cancellation": cancellation,
    "wire.shadow": shadow,
    "wire.admission_asked": admission_asked,
    "wire.admission_ended": admission_ended,
    "wire.worker_status": worker_status,
    "wire.gateway_status": gateway_status,
}
"""Coefficient ids, and the records whose sizes they are."""


def token_id_bytes(vocabulary: int) -> float:
    """Mean digits of a token id, and its comma, if all ids are equally likely."""
    digits = sum(vocabulary - int(10**power) for power in range(1, len(str(vocabulary - 1))))
    return (digits + vocabulary) / vocabulary + 1


def measured() -> dict[str, float]:
    """Every size as the codec makes it now, batch header not included."""
    return {name: float(make().size) for name, make in RECORDS.items()} | {
        "wire.batch": float(BATCH_BYTES)
    }


def rewritten(text: str, values: dict[str, float]) -> str:
    """The coefficient file with these values."""
    for name, value in values.items():
        pattern = re.compile(rf'(id = "{re.escape(name)}"\nvalue = )[^\n]*')
        text, count = pattern.subn(rf"\g<1>{value:g}", text)
        if count != 1:
            raise LookupError(f"the coefficient file has {count} entries of {name}")
    return text


def main() -> None:
    """Bring the file up to what the codec makes."""
    path = Path(__file__).with_name("coefficients.toml")
    path.write_text(rewritten(path.read_text("utf-8"), measured()), "utf-8")


if __name__ == "__main__":
    main()
