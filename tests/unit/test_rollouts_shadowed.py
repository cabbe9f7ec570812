"""What operators are shown of a shadow."""

from __future__ import annotations

from typing import Any

import msgspec

from infra.contracts import catalogue, codec
from infra.contracts.events.generation import GenerationError, ShadowCompared, Timings
from infra.contracts.events.model import RolloutChanged
from infra.rollouts.shadowed import read_shadow
from infra.testing import InMemoryBus

ROLLOUT = RolloutChanged(
    model="m",
    revision=2,
    stable="1",
    candidate="2",
    candidate_weight=0.5,
    changed_at_ms=5,
    started_at_ms=5,
    state="shadow",
    experiment="m@2#2",
)


def compared(**changes: Any) -> ShadowCompared:
    plain = ShadowCompared(
        request_id="r",
        submit_id="s",
        model="m",
        experiment="m@2#2",
        stable="1",
        candidate="2",
        prompt="p",
        stable_text="a b c d",
        candidate_text="a b x",
        stable_tokens=4,
        candidate_tokens=3,
        common_tokens=2,
        stable_finish="length",
        candidate_finish="stop",
        compared_at_ms=6,
        stable_timings=Timings(ttft_ms=10.0, itl_ms=2.0),
        candidate_timings=Timings(ttft_ms=40.0, itl_ms=2.0),
    )
    return msgspec.structs.replace(plain, **changes)


def test_copies_of_this_experiment_are_compared() -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    for one in (
        compared(),
        compared(
            candidate_text="a b c d",
            candidate_tokens=4,
            common_tokens=4,
            candidate_finish="length",
            candidate_timings=Timings(ttft_ms=90.0),
        ),
        compared(candidate_text=" ", candidate_tokens=1, common_tokens=0),
        compared(error=GenerationError(code="engine_error", message="no"), common_tokens=0),
        compared(experiment="m@2#1"),
    ):
        publisher.publish(catalogue.SHADOW.name, key=b"r", value=codec.encode(one))
    publisher.publish(catalogue.SHADOW.name, key=b"r", value=b"\xff")
    found = read_shadow(bus, msgspec.structs.replace(ROLLOUT, started_at_ms=0))
    assert (found.copies, found.failed, found.same, found.empty) == (4, 1, 1, 1)
    said = "\n".join(found.lines(ROLLOUT))
    assert "4 copies: 1 failed, 1 answered with nothing" in said
    # A half, all and nothing of the longer answer's tokens.
    assert "the same text 33.3%; begin alike for 50.0% of their tokens" in said
    assert "tokens of an answer" in said
    assert "10.0 ms" in said
    assert f"{(40.0 * 90.0 * 40.0) ** (1 / 3):.1f} ms" in said


def test_without_copies_there_is_nothing_to_compare() -> None:
    (line,) = read_shadow(InMemoryBus(), ROLLOUT).lines(ROLLOUT)
    assert line == "0 copies, 0 of them failed: nothing to compare yet"
