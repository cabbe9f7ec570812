"""Feedback on the demo's answers, by the rule in ``scoring``: pure, deterministic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from producers.demo.scoring import GOOD_SCORE, score, well_formed
from producers.demo.traffic import Answer

PAIR_EVERY = 4


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to say of one answer. ``edit`` and ``pair`` hold the true continuation."""

    answer: Answer
    rating: Literal["up", "down"]
    edit: str | None = None
    pair: tuple[str, str] | None = None


def judge(answers: Iterable[Answer]) -> Iterator[Verdict]:
    """Rate every answer; correct the openings; each fourth opening also yields a pair.

    An opening's answer is good from a score of 0.12 on. Whatever its rating, its edit is the true
    continuation: that is what the document's author wrote.
    """
    openings = 0
    for answer in answers:
        truth = answer.prompt.continuation
        if truth is None:
            rating: Literal["up", "down"] = "up" if well_formed(answer.result.text) else "down"
            yield Verdict(answer=answer, rating=rating)
            continue
        rating = "up" if score(answer.result.text, truth) >= GOOD_SCORE else "down"
        pair = (truth, answer.result.text) if openings % PAIR_EVERY == 0 else None
        openings += 1
        yield Verdict(answer=answer, rating=rating, edit=truth, pair=pair)
