"""The demo's stand-in for a person: a small, deterministic rule for judging an answer. Pure.

An opening was cut from a document that the model never saw, so its true continuation is known. An
answer scores the mean of its unigram and bigram F1 against as many words of that continuation
(the overlap measure of ROUGE, Lin 2004). A documentation question has no true continuation; it is
rated by form alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9_]+")

GOOD_SCORE = 0.12
MINIMUM_WORDS = 8
MINIMUM_DISTINCT = 0.5


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation dropped."""
    return _WORD.findall(text.lower())


def overlap_f1(answer: Sequence[str], truth: Sequence[str], n: int) -> float:
    """F1 of n-gram counts, 0 to 1; 0 if either side has no n-gram."""
    mine = Counter(zip(*(answer[i:] for i in range(n)), strict=False))
    theirs = Counter(zip(*(truth[i:] for i in range(n)), strict=False))
    shared = sum((mine & theirs).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / sum(mine.values()), shared / sum(theirs.values())
    return 2 * precision * recall / (precision + recall)


def score(answer: str, continuation: str) -> float:
    """How near an answer comes to the true continuation, 0 to 1."""
    mine = words(answer)
    truth = words(continuation)[: max(len(mine), 1)]
    return (overlap_f1(mine, truth, 1) + overlap_f1(mine, truth, 2)) / 2


def well_formed(answer: str) -> bool:
    """Whether an answer without known truth is worth a thumb up: long enough, not a loop."""
    mine = words(answer)
    return len(mine) >= MINIMUM_WORDS and len(set(mine)) / len(mine) >= MINIMUM_DISTINCT


def win_rate(challenger: Sequence[float], reference: Sequence[float]) -> float:
    """Share of prompts on which the challenger scores higher; a tie counts half.

    Raises:
        ValueError: the two are not of one, non-zero length.
    """
    if not challenger or len(challenger) != len(reference):
        raise ValueError("a win rate needs the same prompts on both sides")
    points = sum(
        1.0 if mine > other else 0.5 if mine == other else 0.0
        for mine, other in zip(challenger, reference, strict=True)
    )
    return points / len(challenger)


def percentile(values: Sequence[float], fraction: float) -> float:
    """The value at ``fraction`` of the sorted values, linear between neighbours."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
