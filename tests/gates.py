"""Versions that have learnt from feedback, and what a gate said of them."""

from __future__ import annotations

from infra.contracts.events import GateCheck, GateDecision, OffsetRange

SPAN = OffsetRange(topic="feedback.examples", partition=0, start=0, end=1)


def decision(*, passed: bool, reason: str) -> GateDecision:
    """Of one check, for this reason."""
    check = GateCheck(
        name="forgetting", passed=passed, value=0, low=0, high=0, limit=0, samples=1, reason=reason
    )
    return GateDecision(passed=passed, confidence=0.95, checks=(check,))
