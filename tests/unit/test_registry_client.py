"""The registry's topics: what is written on them, and how a watcher reads them."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

from infra.contracts import catalogue, codec
from infra.contracts.errors import FatalError
from infra.contracts.events.generation import GenerationCancellation
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.registry.client import RegistryWatcher, publish_rollout, publish_version
from infra.registry.state import RegistryState
from infra.testing import InMemoryBus

RegistryEvent = ModelVersionPublished | RolloutChanged


def version(model: str, name: str, *, at: int = 0) -> ModelVersionPublished:
    return ModelVersionPublished(
        model=model,
        version=name,
        kind="full",
        artifact_uri="file:///x",
        manifest=(),
        created_at_ms=at,
    )


def rollout(model: str, revision: int) -> RolloutChanged:
    return RolloutChanged(model=model, revision=revision, stable=str(revision), changed_at_ms=0)


# One event a model and version (or revision): what honest writers publish.
EVENTS: list[RegistryEvent] = [
    made
    for model in ("a", "b")
    for number in range(1, 5)
    for made in (version(model, str(number)), rollout(model, number))
]


def folded(events: list[RegistryEvent]) -> RegistryState:
    state = RegistryState()
    for event in events:
        state.apply(event)
    return state


def seen(state: RegistryState) -> object:
    return [
        (
            sorted(event.version for event in state.versions(model)),
            state.rollout(model),
            state.stable(model),
            state.next_version(model),
        )
        for model in ("a", "b")
    ]


@given(st.permutations(EVENTS), st.lists(st.sampled_from(EVENTS)))
def test_neither_order_nor_repetition_changes_the_registry(
    shuffled: list[RegistryEvent], again: list[RegistryEvent]
) -> None:
    assert seen(folded(shuffled + again)) == seen(folded(EVENTS))


@given(st.lists(st.sampled_from(EVENTS)))
def test_apply_says_whether_anything_changed(events: list[RegistryEvent]) -> None:
    state = RegistryState()
    for event in events:
        before = seen(state)
        assert state.apply(event) == (seen(state) != before)


def test_a_version_says_who_wrote_it_and_in_which_trace() -> None:
    bus = InMemoryBus()
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("train") as span:
        publish_version(bus.publisher(), version("m", "7"))
        publish_rollout(bus.publisher(), rollout("m", 7))
    (made,) = bus.records(catalogue.REGISTRY.name)
    (changed,) = bus.records(catalogue.ROLLOUTS.name)
    assert (made.key, changed.key) == (b"m/7", b"m")
    for record, kind in ((made, "ModelVersionPublished"), (changed, "RolloutChanged")):
        assert codec.header(record.headers, "ce_type") == f"feedloom.{kind}"
        assert codec.header(record.headers, "ce_id")
        parent = codec.header(record.headers, "traceparent")
        assert parent is not None
        assert f"{span.get_span_context().trace_id:032x}" in parent


def test_a_watcher_reports_what_changed_and_warns_of_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    watcher = RegistryWatcher(bus)
    stray = GenerationCancellation(request_id="r", created_at_ms=0)
    publish_version(publisher, version("m", "1", at=1))
    publish_version(publisher, version("m", "1", at=1))
    publish_version(publisher, version("m", "1", at=2))
    publisher.publish(catalogue.REGISTRY.name, key=b"m/1", value=None)
    publisher.publish(catalogue.REGISTRY.name, key=b"m/2", value=b"\xff")
    publisher.publish(catalogue.REGISTRY.name, key=b"m/3", value=codec.encode(stray))
    with caplog.at_level(logging.WARNING):
        applied = watcher.poll(0)
    assert applied == [version("m", "1", at=1)]
    assert watcher.state.versions("m") == applied
    warnings = [record.getMessage() for record in caplog.records]
    assert [text.split(" ")[0] for text in warnings] == [
        "model.registry/0",
        "unreadable",
        "GenerationCancellation",
    ]
    assert "redefines m@1" in warnings[0]
    assert "at 4" in warnings[1]
    watcher.close()


class _LaggingBus(InMemoryBus):
    """Promises a record that never comes."""

    def end_offsets(self, topic: str) -> dict:  # type: ignore[type-arg]
        return {position: end + 1 for position, end in super().end_offsets(topic).items()}


def test_catching_up_gives_up_in_the_end() -> None:
    watcher = RegistryWatcher(_LaggingBus())
    with pytest.raises(FatalError, match="could not be read"):
        watcher.catch_up(0)
    watcher.close()
