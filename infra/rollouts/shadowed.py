"""What a shadow has shown: the candidate's answers to copies beside those that were given."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from infra.contracts import catalogue
from infra.contracts.bus import Bus, read_since
from infra.contracts.events.generation import ShadowCompared, Timings
from infra.contracts.events.model import RolloutChanged
from infra.contracts.reading import readable

log = logging.getLogger(__name__)


@dataclass
class _Side:
    cut: int = 0
    tokens: int = 0
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)

    def add(self, finish: str, tokens: int, timings: Timings) -> None:
        self.cut += finish == "length"
        self.tokens += tokens
        for times, value in ((self.ttft, timings.ttft_ms), (self.itl, timings.itl_ms)):
            if value is not None and value > 0:
                times.append(math.log(value))


@dataclass
class Shadowed:
    """The fold of one experiment's comparisons. Failed copies count as failed, and nowhere else."""

    copies: int = 0
    failed: int = 0
    same: int = 0
    empty: int = 0
    common: float = 0.0
    stable: _Side = field(default_factory=_Side)
    candidate: _Side = field(default_factory=_Side)

    def add(self, one: ShadowCompared) -> None:
        """Take in one comparison."""
        self.copies += 1
        if one.error is not None:
            self.failed += 1
            return
        self.same += one.stable_text == one.candidate_text
        self.empty += not one.candidate_text.strip()
        longest = max(one.stable_tokens, one.candidate_tokens)
        self.common += one.common_tokens / longest if longest else 1.0
        self.stable.add(one.stable_finish, one.stable_tokens, one.stable_timings)
        self.candidate.add(one.candidate_finish, one.candidate_tokens, one.candidate_timings)

    @property
    def answered(self) -> int:
        """Copies that the candidate could answer."""
        return self.copies - self.failed

    def lines(self, rollout: RolloutChanged) -> list[str]:
        """As text for a terminal. Times of copies are of the engine alone, without the queue."""
        if not self.answered:
            return [f"{self.copies} copies, {self.failed} of them failed: nothing to compare yet"]
        count = self.answered
        rows = [
            ("", f"stable {rollout.stable}", f"candidate {rollout.candidate}"),
            ("tokens of an answer", *self._each(lambda side: f"{side.tokens / count:.1f}")),
            ("cut off at the limit", *self._each(lambda side: f"{side.cut / count:.1%}")),
            ("time to first token", *self._each(lambda side: _geometric(side.ttft))),
            ("time between tokens", *self._each(lambda side: _geometric(side.itl))),
        ]
        width = max(len(row[0]) for row in rows)
        table = [f"{title:{width}}  {left:>14}  {right:>14}" for title, left, right in rows]
        return [
            f"{self.copies:,} copies: {self.failed:,} failed, {self.empty:,} answered with nothing",
            f"the same text {self.same / count:.1%}; begin alike for {self.common / count:.1%} of "
            "their tokens",
            *table,
        ]

    def _each(self, cell: Callable[[_Side], str]) -> tuple[str, str]:
        return cell(self.stable), cell(self.candidate)


def read_shadow(bus: Bus, rollout: RolloutChanged) -> Shadowed:
    """All comparisons of the rollout's experiment so far. Raises FatalError."""
    found = Shadowed()
    for one in _compared(bus, rollout):
        found.add(one)
    return found


def _compared(bus: Bus, rollout: RolloutChanged) -> Iterator[ShadowCompared]:
    for record in read_since(bus, catalogue.SHADOW.name, rollout.started_at_ms):
        one = readable(record, ShadowCompared, log)
        if one is not None and one.experiment == rollout.experiment:
            yield one


def _geometric(logs: Iterable[float]) -> str:
    values = list(logs)
    return f"{math.exp(sum(values) / len(values)):.1f} ms" if values else "-"
