"""Five minutes of the soak: mixed traffic, swaps, training rounds, and every process watched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.deployment import Deployment
from tests.proof.soak import plan_of, soak

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

MINUTES = 5


def test_nothing_is_lost_or_grows_in_five_minutes(tmp_path: Path) -> None:
    with Deployment(tmp_path, plan_of(MINUTES, engine="memory"), print) as place:
        outcome = soak(place, MINUTES)
    assert outcome.faults == [], outcome.table()
    assert outcome.swaps >= MINUTES - 1
    assert {"request", "http", "cancel", "malformed", "feedback"} <= outcome.counts.keys()
