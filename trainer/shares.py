"""How much of a round one principal may be. Pure: knows nothing of feedback, topics or models.

What is learnt from, or measured with, comes as claims: an item, who gave it, and how large it is.
Of each kind of item a name may hold a share, or as much as the typical name holds where that is
more. So one who sends ten thousand items counts no more than one who sends a few, and a team too
small for the share still learns: alone, from all that there is; in company, from as much of each
as the lower half gives. While hostile names are the minority, that is no more than an honest one
gave.

With ``n`` names that each gave their items alone, no name holds more than ``max(share,
2 / (n + 1))`` of what is kept: at least ``(n + 1) / 2`` names hold what the typical one does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
NOBODY = ""
"""The principal of what names none: all of these are one."""
USUAL = 2
"""A text counts once up to so many times the typical length, and again for each that it is longer:
what is learnt of a text goes with its length."""

Givers = tuple[str, ...]
"""Who gave one example together, each once."""


@dataclass(frozen=True, kw_only=True)
class Claim(Generic[T]):
    """An item, the givers of each example that says it, newest first, and its size."""

    item: T
    givers: tuple[Givers, ...]
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Limit:
    """``share`` (0 to 1) of what is kept, for each name that ``name_of`` a principal gives."""

    share: float
    name_of: Callable[[str], str] = lambda principal: principal


def tenant_of(principal: str) -> str:
    """The tenant in a principal as the gateway writes it, ``TENANT/NAME``; others have none."""
    tenant, slash, _ = principal.partition("/")
    return tenant if slash else NOBODY


def within(claims: Sequence[Claim[T]], limits: Sequence[Limit]) -> list[Claim[T]]:
    """The claims that are kept, in their order; of each name the first ones.

    A claim is charged to all who gave one of its examples together: the first such example that
    everybody in it has room for. So it is enough that somebody with room says the same.
    """
    sizes = _units(claims)
    levels = [math.inf] * len(limits)
    while True:
        kept, charged = _taken(claims, sizes, limits, levels)
        total = sum(sizes[index] for index in kept)
        # Less of one name makes the whole smaller, and so what a share of it is.
        allowed = [
            _level(names.values(), limit.share, total)
            for names, limit in zip(charged, limits, strict=True)
        ]
        if all(
            max(names.values(), default=0) <= most
            for names, most in zip(charged, allowed, strict=True)
        ):
            return [claims[index] for index in kept]
        levels = [min(pair) for pair in zip(levels, allowed, strict=True)]


def in_turns(claims: Iterable[Claim[T]]) -> list[Claim[T]]:
    """One of each giver, then another of each: any beginning of it is as even as can be."""
    turns: defaultdict[Givers, int] = defaultdict(int)
    ranked = []
    for claim in claims:
        givers = claim.givers[0]
        ranked.append((turns[givers], claim))
        turns[givers] += 1
    # Sorting is stable: within a turn the order is that of the claims.
    return [claim for _, claim in sorted(ranked, key=lambda entry: entry[0])]


def one_too_many(held: Mapping[str, Givers]) -> str:
    """Which of some examples, oldest first, is to make place: the oldest of whoever has most."""
    counts = Counter(name for givers in held.values() for name in givers)
    most = max(counts.values())
    return next(key for key, givers in held.items() if any(counts[one] == most for one in givers))


def _level(amounts: Iterable[int], share: float, total: int) -> int:
    """The most that a name may hold. The last term rounds up what binary fractions lose."""
    return max(1, math.floor(share * total + 1e-9), _typical(amounts))


def _typical(amounts: Iterable[int]) -> int:
    """The lower median: half of the names hold no more."""
    ordered = sorted(amounts)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def _units(claims: Sequence[Claim[T]]) -> list[int]:
    """How often each claim counts. Every giver has one say in what is typical."""
    sizes: defaultdict[Givers, list[int]] = defaultdict(list)
    for claim in claims:
        sizes[claim.givers[0]].append(claim.size)
    means = [math.ceil(sum(each) / len(each)) for each in sizes.values()]
    usual = max(1, USUAL * _typical(means))
    return [max(1, math.ceil(claim.size / usual)) for claim in claims]


def _taken(
    claims: Sequence[Claim[T]],
    sizes: Sequence[int],
    limits: Sequence[Limit],
    levels: Sequence[float],
) -> tuple[list[int], list[Counter[str]]]:
    """Indices of what fits, and what each name is charged under each limit."""
    charged: list[Counter[str]] = [Counter() for _ in limits]
    kept = []
    for index, (claim, size) in enumerate(zip(claims, sizes, strict=True)):
        for givers in claim.givers:
            names = [{limit.name_of(one) for one in givers} for limit in limits]
            if all(
                used[name] + size <= level
                for used, level, some in zip(charged, levels, names, strict=True)
                for name in some
            ):
                for used, some in zip(charged, names, strict=True):
                    used.update(dict.fromkeys(some, size))
                kept.append(index)
                break
    return kept, charged
