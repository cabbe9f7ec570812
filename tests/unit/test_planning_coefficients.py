"""The numbers under ``feedloom plan``: where each comes from, and that it is still so."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import Record
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.generation import GenerationChunk, GenerationRequest, GenerationResult
from infra.planning import partitions, traffic, wire
from infra.planning.coefficients import Coefficient, load_coefficients, parse
from infra.planning.wire import Written, record_bytes
from infra.testing import InMemoryBus
from producers.client import GenerationClient
from producers.gateway import presence
from producers.gateway.identifiers import mint
from stream_workers import coalescer, offsets, outcomes, versions
from stream_workers.feedback import JoinState, encode_state
from stream_workers.sink import KafkaSink

ROOT = Path(__file__).resolve().parents[2]
FACTORS = {"ratio": 1.25}
"""How far a benchmark may be from the coefficient that it once gave: ratios hold anywhere."""
FACTOR = 3.0
"""Absolute figures are a machine's, and hosts of one name differ by more than two."""
ENTRY = """
[[coefficient]]
id = "a"
value = 1.0
unit = "s"
basis = "assumed"
source = "somebody"
as_of = "2026-11-26"
"""


def every() -> list[Coefficient]:
    return list(load_coefficients())


@pytest.mark.parametrize("one", every(), ids=lambda one: one.id)
def test_every_coefficient_says_where_it_comes_from(one: Coefficient) -> None:
    assert one.value > 0
    assert len(one.source) > 4
    paths = re.findall(r"(?:benchmarks|infra|docs|stream_workers)/[\w/]+\.\w+", one.source)
    for path in paths:
        assert (ROOT / path).is_file(), path
    if one.basis == "measured" and one.source.startswith("benchmarks/"):
        assert one.pointer


def test_every_accelerator_has_what_the_engine_model_needs() -> None:
    coefficients = load_coefficients()
    assert set(coefficients.accelerators) == {"a100", "h100", "h200", "l40s", "b200", "cpu"}
    for name in coefficients.accelerators:
        own = coefficients.below(f"gpu.{name}.")
        assert {"memory", "flops"} <= set(own)
        if name == "cpu":
            assert {one.basis for one in own.values()} <= {"measured", "assumed"}
        else:
            assert own["bandwidth"].basis == own["memory"].basis == "published"


def pointed_at(pointer: str) -> list[float]:
    """``FILE#a/b FILE#c``: a slash within a key is written ~1, as in RFC 6901."""
    found = []
    for one in re.findall(r"(\S+\.json)#(.*?)(?= \S+\.json#|$)", pointer):
        value: Any = json.loads((ROOT / one[0]).read_text("utf-8"))
        for key in _keys(one[1], value):
            value = value[key]
        found.append(float(value))
    return found


def _keys(path: str, document: Any) -> list[str]:
    """Keys of benchmarks have slashes themselves: the longest that is there is meant."""
    path = path.replace("~1", "/")
    keys: list[str] = []
    while path:
        key = next(one for one in sorted(document, key=len, reverse=True) if path.startswith(one))
        keys.append(key)
        document = document[key]
        path = path[len(key) :].removeprefix("/")
    return keys


DERIVED = {
    "worker.ttft": lambda ms: ms / 1e3,
    "worker.transaction": lambda alone, shared: alone - shared,
    "broker.record_cpu": lambda ms: ms / 1e3 / 3,
}


def solved(one_ms: float, many_ms: float, large_ms: float) -> dict[str, float]:
    """Step, sequence and rate from a step of 1 and 256 sequences of the embedded model, and of 64
    of the larger one: see docs/scaling.md."""
    small, large = 2 * 4_262_144, 2 * 14_946_816
    slope = (many_ms - one_ms) / 255
    step = one_ms - slope
    rate = (large - small) / ((large_ms - step) / 64 - slope) * 1e3
    return {
        "gpu.cpu.step": step / 1e3,
        "gpu.cpu.flops": rate,
        "gpu.cpu.sequence": (slope - small / rate * 1e3) / 1e3,
        "gpu.cpu.flops_share": 1.0,
    }


@pytest.mark.parametrize("one", [one for one in every() if one.pointer], ids=lambda one: one.id)
def test_a_measured_coefficient_is_near_what_its_benchmark_says(one: Coefficient) -> None:
    found = pointed_at(one.pointer)
    if one.id.startswith("gpu.cpu."):
        now = solved(*found)[one.id]
    elif one.id in DERIVED:
        now = DERIVED[one.id](*found)
    else:
        (now,) = found
    factor = FACTORS.get(one.unit, FACTOR)
    assert one.value / factor <= now <= one.value * factor


def test_wire_sizes_are_those_of_the_codec() -> None:
    """After a change of the events: python -m infra.planning.wire, and docs/scaling.md anew."""
    coefficients = load_coefficients()
    stored = {name: coefficients[name].value for name in wire.measured()}
    assert stored == wire.measured()


def test_rewriting_the_file_with_what_is_measured_changes_nothing() -> None:
    text = (ROOT / "infra/planning/coefficients.toml").read_text("utf-8")
    assert wire.rewritten(text, wire.measured()) == text
    changed = wire.rewritten(text, {"wire.chunk": 7.0})
    assert parse(changed)["wire.chunk"].value == 7
    with pytest.raises(LookupError):
        wire.rewritten(text, {"wire.unheard_of": 1.0})


@pytest.mark.parametrize(
    ("value", "size"), [(0, 1), (-1, 1), (63, 1), (64, 2), (8191, 2), (8192, 3), (-65, 2)]
)
def test_varints_have_kafkas_lengths(value: int, size: int) -> None:
    assert wire.varint(value) == size


def test_a_record_has_the_size_that_kafkas_own_encoding_gives() -> None:
    from aiokafka.record.default_records import DefaultRecordBatchBuilder

    made = wire.result("a prompt " * 40, "an answer " * 60)
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1 << 20,
    )
    builder.append(0, timestamp=1, key=made.key, value=made.value, headers=list(made.headers))
    assert len(builder.build()) == made.size + wire.BATCH_BYTES


def test_text_adds_its_own_bytes_and_little_else() -> None:
    plain = wire.chunk().size
    assert 0 <= wire.chunk([117, 4001], "ab").size - plain - len("117,4001") - len("ab") <= 4
    assert wire.token_id_bytes(10) == 2
    assert wire.token_id_bytes(100) == pytest.approx(2.9)
    assert wire.token_id_bytes(128_256) == pytest.approx(
        sum(len(str(token)) + 1 for token in range(128_256)) / 128_256
    )


# What the services themselves send.


def without_trace(headers: codec.Headers) -> list[tuple[str, bytes]]:
    """Whether a trace is recorded is not what is asked here."""
    return [pair for pair in headers if pair[0] not in ("traceparent", "tracestate", "baggage")]


def size(made: Written) -> int:
    return record_bytes(made.key, made.value, without_trace(made.headers))


def test_a_request_is_as_large_as_the_sdks() -> None:
    bus = InMemoryBus()
    with GenerationClient(bus, source=wire.GATEWAY) as client:
        client.submit(
            "",
            request_id=wire.REQUEST_ID,
            submit_id=wire.SUBMIT_ID,
            reply_partition=117,
            sampling={"max_tokens": 512, "temperature": 0.7},
            ttl_s=120,
            tenant=wire.TENANT,
            user=wire.USER,
        ).written.result(5)
    (sent,) = [record for log in bus.logs[catalogue.REQUESTS.name] for record in log]
    assert record_bytes(sent.key, sent.value, without_trace(sent.headers)) == size(wire.request())


def test_request_ids_are_as_long_as_the_gateways() -> None:
    made = mint("chatcmpl", tenant="t", model="m", partition=117, created_at_ms=wire.NOW_MS)
    assert len(made.text) == len(wire.REQUEST_ID)


class Taken:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.headers: Sequence[tuple[str, bytes]] = ()
        self.key: bytes | None = None
        self.value: bytes | None = None

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
    ) -> asyncio.Future[None]:
        self.key, self.value, self.headers = key, value, headers
        return asyncio.get_running_loop().create_future()


def source_record() -> Record:
    made = wire.request()
    return Record(
        topic=catalogue.REQUESTS.name,
        partition=117,
        offset=123_456_789,
        timestamp_ms=wire.NOW_MS,
        key=made.key,
        value=made.value,
        headers=tuple(made.headers),
    )


async def test_chunks_and_results_are_as_large_as_the_workers() -> None:
    producer = Taken()
    sink = KafkaSink(producer, prefix="", source=f"worker/{wire.WORKER}", chunk_partitions=240)
    request = codec.decode(wire.request().value, GenerationRequest)
    await sink.chunk(request, codec.decode(wire.chunk().value, GenerationChunk), source_record())
    sent = record_bytes(producer.key, producer.value, without_trace(producer.headers))
    assert sent == size(wire.chunk())

    outgoing = sink.result(codec.decode(wire.result().value, GenerationResult), source_record())
    result = record_bytes(outgoing.key, outgoing.value, without_trace(outgoing.headers))
    assert result == size(wire.result())


def test_the_joins_state_is_as_large_as_the_workers() -> None:
    result = codec.decode(wire.result().value, GenerationResult)
    state = JoinState(result=result, origin=tuple(wire.TRACE))
    assert encode_state(state) == wire.join_state().value


def test_constants_are_those_of_the_code_that_they_speak_of() -> None:
    assert (traffic.CROWD, traffic.WIDEST, traffic.BATCH) == (
        coalescer.CROWD,
        coalescer.WIDEST,
        coalescer.BATCH,
    )
    assert [traffic.crowding(load) for load in range(300)] == [
        coalescer.crowding(load) for load in range(300)
    ]
    assert traffic.COMMIT_S == outcomes.INTERVAL_S
    assert traffic.HEARTBEAT_S == versions.HEARTBEAT_S == presence.REPORT_S
    assert partitions.WINDOW == offsets.WINDOW
    largest = mint("cmpl", tenant="t", model="m", partition=partitions.MOST, created_at_ms=1)
    assert largest.partition == partitions.MOST


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[coefficient]\n", "coefficients.toml"),
        (ENTRY + ENTRY, "a is given twice"),
        (ENTRY.replace("2026-11-26", "lately"), "as_of"),
        (ENTRY.replace('source = "somebody"\n', ""), "source"),
        (ENTRY.replace('"assumed"', '"given"'), "measured, published or assumed"),
        (ENTRY + "unheard = 1\n", "unheard"),
    ],
)
def test_a_file_with_a_mistake_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(complaint)):
        parse(text)


def test_values_of_ones_own_replace_coefficients() -> None:
    changed = load_coefficients().replaced({"broker.cores": 8.0})
    assert changed["broker.cores"].value == 8
    assert changed["broker.cores"].basis == "given"
    with pytest.raises(ConfigurationError, match=r"did you mean broker\.cores"):
        load_coefficients().replaced({"broker.core": 8.0})
