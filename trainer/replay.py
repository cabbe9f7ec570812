"""How much of a round is replayed text, by what the rounds before it forgot. Pure.

Too little and the model loses what it knew; too much and it learns slowly (Ibrahim et al. 2024,
arXiv 2403.08763, who find that a few per cent do for a weak shift and a quarter for a strong one).
How strong a shift is, the rounds themselves measure.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.model import ModelVersionPublished

MOST = 0.95
FACTOR = 2.0
"""Of the odds of replay to feedback, from one round to the next."""


def forgetting(version: ModelVersionPublished) -> float | None:
    """By what share held-out bits per byte rose in its round; ``None`` if that was not measured."""
    before = version.metrics.get("heldout_bits_per_byte_before")
    after = version.metrics.get("heldout_bits_per_byte_after")
    return after / before - 1 if before and after is not None else None


def replay_fraction(config: TrainerConfig, versions: Sequence[ModelVersionPublished]) -> float:
    """For the next round: never below ``trainer.replay_fraction``, more while rounds forget.

    ``versions`` in order of publication, rejected ones too. After a round that used up half of
    what ``trainer.max_forgetting`` allows the odds double; after one that forgot nothing they
    halve.
    """
    if not config.adapt_replay or not versions:
        return config.replay_fraction
    last = versions[-1]
    lost, used = forgetting(last), last.lineage.replay_fraction
    if lost is None or not last.lineage.feedback:
        return config.replay_fraction
    used = max(used, config.replay_fraction)
    if lost > config.max_forgetting / 2:
        used = _odds_times(used, FACTOR)
    elif lost <= 0:
        used = _odds_times(used, 1 / FACTOR)
    return max(config.replay_fraction, min(used, MOST))


def _odds_times(share: float, factor: float) -> float:
    # Of no replay at all there is nothing to multiply: one per cent is where it begins to help.
    share = min(max(share, 0.01), 0.99)
    odds = share / (1 - share) * factor
    return odds / (1 + odds)
