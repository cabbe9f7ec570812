"""What a platform that is backed up has on its topics."""

from __future__ import annotations

from infra.contracts.events.gateway import BatchChanged, BatchStatus
from infra.contracts.events.model import ArmFigures, RolloutDecided, Verdict


def batch(revision: int, status: BatchStatus = "in_progress") -> BatchChanged:
    """Of the file ``file-1`` of tenant ``acme``."""
    return BatchChanged(
        batch_id="batch_1",
        tenant="acme",
        revision=revision,
        status=status,
        endpoint="/v1/completions",
        input_file_id="file-1",
        created_at_ms=1,
        expires_at_ms=2,
    )


def decided(revision: int, verdict: Verdict, reason: str, *, acted: bool = False) -> RolloutDecided:
    """Of version 3 beside version 2, at the first look."""
    return RolloutDecided(
        model="default",
        experiment="e",
        revision=revision,
        verdict=verdict,
        reason=reason,
        decided_at_ms=revision,
        look=1,
        confidence=0.9,
        stable=ArmFigures(version="2"),
        candidate=ArmFigures(version="3"),
        acted=acted,
    )
