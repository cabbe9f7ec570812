"""What made a folder of shards, and who links to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer

from infra.contracts.catalogue import EXAMPLES
from infra.contracts.codec import encode
from infra.testing import InMemoryBus
from observability.messaging import LINK
from observability.propagation import inject
from tests.learning import feedback
from trainer import origins
from trainer.intake import FeedbackIntake


@pytest.fixture
def tracer() -> Tracer:
    return TracerProvider(shutdown_on_exit=False).get_tracer("t")


def test_shards_lead_to_the_trace_that_made_them(tmp_path: Path, tracer: Tracer) -> None:
    train, heldout, other = (tmp_path / name for name in ("train", "heldout", "other"))
    for folder in (train, heldout, other):
        folder.mkdir()
    with tracer.start_as_current_span("prepare") as span:
        origins.note(train)
        origins.note(heldout)
    (link,) = origins.links(tmp_path)
    assert link.context.span_id == span.get_span_context().span_id
    assert link.attributes == {LINK: "shards"}
    # Written again where nothing is recorded: the old note would lie.
    origins.note(train)
    (heldout / origins.FILE).write_text("{")
    assert origins.links(tmp_path) == []
    assert origins.links(tmp_path / "none") == []


def test_what_is_held_out_is_linked_as_long_as_it_is_measured_on(tracer: Tracer) -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    sent = {}
    for example in feedback(4, model="m"):
        with tracer.start_as_current_span("send") as span:
            sent[example.request_id] = span.get_span_context().span_id
            publisher.publish(
                EXAMPLES.name,
                key=example.request_id.encode(),
                value=encode(example),
                headers=inject([]),
            ).result(1)
    kept = "m-0"
    intake = FeedbackIntake(bus, model="m", measures=lambda example: example.request_id == kept)
    intake.poll(0.1)
    kinds = {link.context.span_id: dict(link.attributes or {}) for link in intake.batch().links}
    assert kinds == {
        span_id: {LINK: "heldout" if name == kept else "feedback"} for name, span_id in sent.items()
    }
    intake.settle(learnt=True)
    assert [link.context.span_id for link in intake.batch().links] == [sent[kept]]
    intake.close()
