"""How much is replayed, by what was forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.model import Lineage, ModelVersionPublished, OffsetRange
from trainer.replay import MOST, forgetting, replay_fraction

CONFIG = TrainerConfig(replay_fraction=0.2, max_forgetting=0.01)


def version(lost: float | None, used: float, *, taught: bool = True) -> ModelVersionPublished:
    span = OffsetRange(topic="feedback.examples", partition=0, start=0, end=9)
    metrics = {}
    if lost is not None:
        metrics = {
            "heldout_bits_per_byte_before": 2.0,
            "heldout_bits_per_byte_after": 2.0 * (1 + lost),
        }
    return ModelVersionPublished(
        model="m", version="2", kind="full", artifact_uri="file:///x", manifest=(), metrics=metrics,
        created_at_ms=1,
        lineage=Lineage(parent="1", replay_fraction=used, feedback=(span,) if taught else ()),
    )  # fmt: skip


def test_forgetting_raises_it_and_learning_without_lowers_it_to_what_is_set() -> None:
    assert replay_fraction(CONFIG, []) == 0.2
    assert replay_fraction(CONFIG, [version(0.004, 0.2)]) == 0.2
    raised = replay_fraction(CONFIG, [version(0.02, 0.2)])
    assert raised == pytest.approx(1 / 3)  # odds of 1:4 become 1:2
    assert replay_fraction(CONFIG, [version(0.02, 0.2), version(0.003, raised)]) == raised
    assert replay_fraction(CONFIG, [version(-0.01, raised)]) == pytest.approx(0.2)
    assert replay_fraction(CONFIG, [version(-0.01, 0.2)]) == 0.2
    # A higher setting holds at once.
    assert replay_fraction(TrainerConfig(replay_fraction=0.6), [version(0.004, 0.2)]) == 0.6


def test_what_was_not_measured_or_no_round_of_feedback_changes_nothing() -> None:
    assert forgetting(version(None, 0.2)) is None
    assert replay_fraction(CONFIG, [version(None, 0.5)]) == 0.2
    assert replay_fraction(CONFIG, [version(0.5, 0.5, taught=False)]) == 0.2
    fixed = TrainerConfig(replay_fraction=0.2, adapt_replay=False)
    assert replay_fraction(fixed, [version(0.5, 0.5)]) == 0.2


@given(st.floats(0, 0.94), st.floats(-0.5, 0.5), st.floats(0, 1))
def test_it_stays_between_the_setting_and_the_most(least: float, lost: float, used: float) -> None:
    config = TrainerConfig(replay_fraction=least)
    assert least <= replay_fraction(config, [version(lost, used)]) <= MOST


def test_the_odds_turn_exactly_at_half_of_what_may_be_forgotten_and_at_nothing() -> None:
    """Bits per byte that are exact in binary: 2 before, and 2.25 after, is an eighth forgotten."""
    config = TrainerConfig(replay_fraction=0.2, max_forgetting=0.25)
    assert replay_fraction(config, [version(0.125, 0.5)]) == 0.5
    assert replay_fraction(config, [version(0.1875, 0.5)]) == pytest.approx(2 / 3)
    assert replay_fraction(config, [version(0.0, 0.5)]) == pytest.approx(1 / 3)
    assert replay_fraction(config, [version(0.0625, 0.5)]) == 0.5
    # Half of what was measured is no measure.
    half = version(0.5, 0.5)
    del half.metrics["heldout_bits_per_byte_after"]
    assert forgetting(half) is None
    half.metrics["heldout_bits_per_byte_after"] = 0.0
    assert forgetting(half) == -1.0
    half.metrics["heldout_bits_per_byte_before"] = 0.0
    assert forgetting(half) is None
