"""The wire: golden bytes, lenient reading of what is new, strict reading of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import codec, schema
from infra.contracts.catalogue import CATALOGUE, all_topics
from infra.contracts.errors import MalformedRecord, UnknownEventType, UnsupportedSchemaVersion
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import (
    FeedbackExample,
    FeedbackForgotten,
    FeedbackReceived,
    PreferencePair,
)
from infra.contracts.events.gateway import (
    AdmissionAsked,
    AdmissionEnded,
    BatchChanged,
    BatchError,
    FileChanged,
)
from infra.contracts.events.generation import (
    Assignment,
    ChatMessage,
    Completion,
    GenerationCancellation,
    GenerationChunk,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    ReplyAddress,
    SamplingParameters,
    ShadowCompared,
    StructuredOutput,
    Timings,
    TokenLogprob,
)
from infra.contracts.events.model import (
    ArmFigures,
    ArtifactFile,
    GateCheck,
    GateDecision,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    RolloutChanged,
    RolloutDecided,
)
from infra.contracts.events.platform import (
    ApiKeyChanged,
    ConfigChanged,
    GatewayStatusReported,
    VersionSwitch,
    WorkerStatusReported,
)
from infra.contracts.events.union import EVENT_TYPES

GOLDEN = Path(__file__).parent / "golden"
DOCS = Path(__file__).resolve().parents[2] / "docs"
NOW = 1_700_000_000_000

SAMPLES: tuple[Event, ...] = (
    GenerationRequest(
        request_id="r1",
        submit_id="s1",
        prompt="Grüße, 世界",
        created_at_ms=NOW,
        messages=(ChatMessage(role="user", content="hello"),),
        sampling=SamplingParameters(
            max_tokens=5,
            seed=7,
            stop=("\n",),
            n=2,
            structured=StructuredOutput(choice=("yes", "no")),
        ),
        affinity_key="talk-1",
        reply=ReplyAddress(partition=3),
        deadline_ms=NOW + 1,
        tenant="t",
        user="u",
        metadata={"a": "b"},
    ),
    GenerationCancellation(request_id="r1", created_at_ms=NOW, reason="closed"),
    GenerationChunk(
        request_id="r1",
        submit_id="s1",
        attempt=1,
        seq=2,
        first_token=9,
        token_ids=(4, 5),
        text=" two",
        model_version="default@1",
        emitted_at_ms=NOW,
        final=True,
        epoch=3,
        index=1,
        logprobs=(TokenLogprob(token_id=4, token=" two", logprob=-0.5),),
    ),
    GenerationResult(
        request_id="r1",
        submit_id="s1",
        model="default",
        prompt="p",
        text="t",
        finish_reason="error",
        prompt_tokens=1,
        output_tokens=0,
        model_versions=("default@1", "default@2"),
        created_at_ms=NOW,
        finished_at_ms=NOW,
        epoch=3,
        resumed_tokens=2,
        cached_tokens=3,
        alternatives=(Completion(text="u", finish_reason="stop", output_tokens=1),),
        messages=(ChatMessage(role="user", content="hello"),),
        worker_id="w",
        error=GenerationError(code="c", message="m"),
        timings=Timings(queue_ms=1.5, ttft_ms=2.5, itl_ms=0.5, total_ms=9.0),
        assignment=Assignment(experiment="default@2#2", arm="candidate", unit="user:u"),
    ),
    FeedbackReceived(
        feedback_id="f1",
        request_id="r1",
        created_at_ms=NOW,
        rating="up",
        score=0.5,
        edited_text="e",
        pair=PreferencePair(preferred="a", rejected="b"),
        comment="c",
        principal="ada",
    ),
    FeedbackExample(
        request_id="r1",
        prompt="p",
        output="o",
        model="default",
        model_versions=("default@1",),
        feedback_ids=("f1",),
        updated_at_ms=NOW,
        ups=1,
        edited_text="e",
        pairs=(PreferencePair(preferred="a", rejected="b"),),
        principals=("somebody",),
    ),
    ModelVersionPublished(
        model="default",
        version="2",
        kind="full",
        artifact_uri="file:///m",
        manifest=(ArtifactFile(path="w", size=1, sha256="0" * 64),),
        created_at_ms=NOW,
        lineage=Lineage(
            parent="1",
            objective="sft",
            feedback=(OffsetRange(topic="feedback.examples", partition=0, start=0, end=4),),
            replay_shards=("00000.jsonl.zst",),
            replay_sha256=("1" * 64,),
            adapter_rank=8,
        ),
        metrics={"heldout_loss_after": 4.5},
        gate=GateDecision(
            passed=False,
            confidence=0.95,
            checks=(
                GateCheck(
                    name="forgetting",
                    passed=False,
                    value=0.02,
                    low=0.01,
                    high=0.03,
                    limit=0.01,
                    samples=96,
                    reason="too much",
                ),
            ),
        ),
    ),
    RolloutChanged(
        model="default", revision=2, stable="1", changed_at_ms=NOW, candidate="2", state="canary"
    ),
    RolloutDecided(
        model="default",
        experiment="default@2#2",
        revision=2,
        verdict="hold",
        reason="too few",
        decided_at_ms=NOW,
        look=1,
        confidence=0.95,
        stable=ArmFigures(version="1", requests=9, ups=3, downs=1, outcome=0.75),
        candidate=ArmFigures(version="2"),
    ),
    ShadowCompared(
        request_id="r1",
        submit_id="s1",
        model="default",
        experiment="default@2#2",
        stable="1",
        candidate="2",
        prompt="p",
        stable_text="a b",
        candidate_text="a c",
        stable_tokens=2,
        candidate_tokens=2,
        common_tokens=1,
        stable_finish="stop",
        candidate_finish="length",
        compared_at_ms=NOW,
    ),
    FeedbackForgotten(
        request_id="r1", forgotten_at_ms=NOW, reason="asked by mail", principal="ada"
    ),
    ConfigChanged(key="k", value="1", revision=1, changed_at_ms=NOW),
    WorkerStatusReported(
        worker_id="w",
        state="ready",
        versions={"default": "2"},
        reported_at_ms=NOW,
        last_switch=VersionSwitch(
            model="default",
            from_version="1",
            to_version="2",
            switched_at_ms=NOW,
            pause_ms=12.5,
            in_flight=3,
        ),
        loaded={"default": ("1", "2")},
        in_flight=32,
        queued=4,
    ),
    AdmissionAsked(
        tenant="acme",
        request_id="r1",
        tokens=160,
        lease_ms=130_000,
        requests_per_minute=60,
        tokens_per_minute=10_000,
        concurrent_requests=4,
        idempotency_key="9f2c",
        fingerprint="01ab",
    ),
    AdmissionEnded(tenant="acme", request_id="r1", tokens=37),
    ApiKeyChanged(
        key_id="fl_abcdefgh",
        tenant="acme",
        name="search service",
        roles=("caller", "feedback"),
        secret_hash="scrypt$16384$8$1$c2FsdA==$aGFzaA==",
        created_at_ms=NOW,
        expires_at_ms=NOW + 1,
        revoked_at_ms=NOW,
        models=("default",),
        replaced_by="fl_ijklmnop",
        actor="ada",
        reason="leaked",
    ),
    FileChanged(
        file_id="file-1",
        tenant="acme",
        filename="prompts.jsonl",
        purpose="batch",
        size=120,
        created_at_ms=NOW,
        deleted_at_ms=NOW,
    ),
    BatchChanged(
        batch_id="batch_1",
        tenant="acme",
        revision=3,
        status="failed",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        created_at_ms=NOW,
        expires_at_ms=NOW + 1,
        subject="ada",
        models=("default",),
        error_file_id="file-2",
        total=2,
        failed=2,
        failed_at_ms=NOW,
        errors=(BatchError(code="invalid_json", message="not JSON", line=2, param="body"),),
        metadata={"job": "nightly"},
    ),
    GatewayStatusReported(
        gateway_id="g1",
        state="ready",
        reply_partition=3,
        reported_at_ms=NOW,
        url="http://127.0.0.1:8000",
    ),
)


def name_of(event: Event) -> str:
    return type(event).__name__


def test_every_event_has_a_sample() -> None:
    assert {type(event) for event in SAMPLES} == set(EVENT_TYPES)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*/*.json")), ids=lambda path: path.name)
def test_bytes_of_older_contracts_are_still_read(path: Path) -> None:
    event = codec.decode_any(path.read_bytes())
    assert type(event).__name__ == path.stem
    assert event.schema_version == path.parent.name


@pytest.mark.parametrize("event", SAMPLES, ids=name_of)
def test_the_bytes_on_the_wire_do_not_change(event: Event) -> None:
    golden = (GOLDEN / f"{name_of(event)}.json").read_bytes()
    assert codec.encode(event) == golden
    assert codec.decode_any(golden) == event


@pytest.mark.parametrize("event", SAMPLES, ids=name_of)
def test_unknown_fields_are_left_out_quietly(event: Event) -> None:
    document = json.loads(codec.encode(event)) | {"added_later": {"deep": [1]}}
    assert codec.decode_any(json.dumps(document).encode()) == event


@pytest.mark.parametrize("event", SAMPLES, ids=name_of)
def test_samples_agree_with_their_schema(event: Event) -> None:
    document = json.loads(codec.encode(event))
    jsonschema.Draft202012Validator(schema.event_schema(name_of(event))).validate(document)


def request(**changes: Any) -> bytes:
    document = json.loads(codec.encode(SAMPLES[0])) | changes
    return json.dumps({k: v for k, v in document.items() if v != "absent"}).encode()


def test_a_newer_minor_version_is_read_and_a_newer_major_refused() -> None:
    codec.decode(request(schema_version="1.9"), GenerationRequest)
    with pytest.raises(UnsupportedSchemaVersion, match=r"'2\.0'"):
        codec.decode(request(schema_version="2.0"), GenerationRequest)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (request(prompt="absent"), "prompt"),
        (request(created_at_ms=-1), "created_at_ms"),
        (request(sampling={"max_tokens": "many"}), "max_tokens"),
        (request(request_id=""), "request_id"),
        (b"{", "not a JSON event"),
        (b"[]", "not a JSON event"),
        (b'{"type": "GenerationRequest", "prompt": "\xff"}', "not "),
        (codec.encode(SAMPLES[1]), "expected GenerationRequest, found GenerationCancellation"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, complaint: str) -> None:
    with pytest.raises(MalformedRecord, match=complaint):
        codec.decode(data, GenerationRequest)


@pytest.mark.parametrize("kind", ["absent", "Unheard"])
def test_an_unknown_type_is_refused(kind: str) -> None:
    with pytest.raises(UnknownEventType):
        codec.decode_any(request(type=kind))


def test_feedback_must_say_something() -> None:
    document = json.loads(codec.encode(SAMPLES[4]))
    for field in ("rating", "score", "edited_text", "pair", "comment"):
        document[field] = None
    with pytest.raises(MalformedRecord, match="says nothing"):
        codec.decode(json.dumps(document).encode(), FeedbackReceived)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_a_contract_error(data: bytes) -> None:
    with pytest.raises((MalformedRecord, UnsupportedSchemaVersion, UnknownEventType)):
        codec.decode_any(data)


@given(text=st.text(), ids=st.lists(st.integers(0, 2**31), max_size=9), attempt=st.integers(0, 99))
def test_chunks_survive_the_wire(text: str, ids: list[int], attempt: int) -> None:
    event = GenerationChunk(
        request_id="r",
        submit_id="s",
        attempt=attempt,
        seq=0,
        first_token=0,
        token_ids=tuple(ids),
        text=text.encode("utf-8", "replace").decode(),
        model_version="default@1",
        emitted_at_ms=0,
    )
    assert codec.decode(codec.encode(event), GenerationChunk) == event


def test_a_dead_letter_keeps_its_headers_and_says_where_it_came_from() -> None:
    headers = codec.dead_letter_headers(
        [("a", b"1"), (codec.DEAD_LETTER_PREFIX + "topic", b"older")],
        topic="t",
        partition=2,
        offset=9,
        error=MalformedRecord("why"),
    )
    assert headers[0] == ("a", b"1")
    assert codec.header(headers, codec.DEAD_LETTER_PREFIX + "topic") == "t"
    assert codec.header(headers, codec.DEAD_LETTER_PREFIX + "offset") == "9"
    assert codec.header(headers, codec.DEAD_LETTER_PREFIX + "message") == "why"
    assert len([name for name, _ in headers if name.endswith(".topic")]) == 1


@pytest.mark.parametrize("name", schema.documents())
def test_the_generated_documents_are_up_to_date(name: str) -> None:
    written = (DOCS / name).read_text("utf-8")
    assert written == schema.documents()[name], "run `python -m infra.contracts.schema`"


def test_the_asyncapi_document_holds_together() -> None:
    document = schema.asyncapi()
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {spec.name for spec in CATALOGUE}

    def check(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for value in node.values():
                check(value)
        elif isinstance(node, list):
            for value in node:
                check(value)

    check(document)


def test_co_partitioned_topics_have_one_partition_count() -> None:
    counts = {spec.name: spec.partitions for spec in all_topics()}
    assert counts["generation.results"] == counts["feedback.events"]
