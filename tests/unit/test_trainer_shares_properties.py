"""Shares, beside the rule spelt out: cut the levels, take again from the first, until all fits."""

from __future__ import annotations

import math
from statistics import median_low

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.shares import NOBODY, USUAL, Claim, Limit, in_turns, one_too_many, tenant_of, within

NAMES = ["x/a", "x/b", "y/a", "c", "/d"]
GIVERS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(tuple)
CLAIMS = st.lists(
    st.builds(
        lambda givers, size: Claim(item=0, givers=tuple(givers), size=size),
        st.lists(GIVERS, min_size=1, max_size=2),
        st.sampled_from([0, 1, 10, 25, 90]),
    ),
    max_size=25,
)
LIMITS = st.lists(
    st.builds(
        Limit,
        share=st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]),
        name_of=st.sampled_from([tenant_of, str]),
    ),
    max_size=2,
)


def weights(claims: list[Claim[int]]) -> list[int]:
    """How often each counts: once for every so many times the typical giver's mean, begun."""
    sizes: dict[tuple[str, ...], list[int]] = {}
    for claim in claims:
        sizes.setdefault(claim.givers[0], []).append(claim.size)
    if not sizes:
        return []
    typical = median_low([math.ceil(sum(each) / len(each)) for each in sizes.values()])
    usual = max(1, USUAL * typical)
    return [max(1, math.ceil(claim.size / usual)) for claim in claims]


def spelt_out(claims: list[Claim[int]], limits: list[Limit]) -> list[int]:
    """Places of the claims that are kept."""
    sizes, levels = weights(claims), [math.inf for _ in limits]
    while True:
        kept: list[int] = []
        used: list[dict[str, int]] = [{} for _ in limits]
        for place, claim in enumerate(claims):
            for givers in claim.givers:
                charges = [
                    (held, name, level)
                    for held, level, limit in zip(used, levels, limits, strict=True)
                    for name in {limit.name_of(one) for one in givers}
                ]
                if all(held.get(name, 0) + sizes[place] <= level for held, name, level in charges):
                    for held, name, _ in charges:
                        held[name] = held.get(name, 0) + sizes[place]
                    kept.append(place)
                    break
        total = sum(sizes[place] for place in kept)
        allowed = [
            max(
                1,
                # Halves, quarters and tenths of whole numbers: exact but for binary's last places.
                math.floor(round(limit.share * total, 6)),
                median_low(held.values()) if held else 0,
            )
            for held, limit in zip(used, limits, strict=True)
        ]
        if all(
            amount <= most
            for held, most in zip(used, allowed, strict=True)
            for amount in held.values()
        ):
            return kept
        levels = [min(pair) for pair in zip(levels, allowed, strict=True)]


@given(CLAIMS, LIMITS)
def test_what_is_kept_is_what_the_rule_says(claims: list[Claim[int]], limits: list[Limit]) -> None:
    kept = within(claims, limits)
    expected = [claims[place] for place in spelt_out(claims, limits)]
    assert len(kept) == len(expected)
    assert all(one is other for one, other in zip(kept, expected, strict=True))


@given(CLAIMS)
def test_turns_are_the_first_of_each_then_the_second_of_each(claims: list[Claim[int]]) -> None:
    expected: list[Claim[int]] = []
    left = list(claims)
    while left:
        turn: list[Claim[int]] = []
        for claim in left:
            if claim.givers[0] not in [one.givers[0] for one in turn]:
                turn.append(claim)
        expected += turn
        left = [claim for claim in left if not any(claim is one for one in turn)]
    found = in_turns(claims)
    assert [id(claim) for claim in found] == [id(claim) for claim in expected]


@given(st.lists(GIVERS, min_size=1, max_size=8))
def test_the_oldest_of_whoever_has_most_makes_place(givers: list[tuple[str, ...]]) -> None:
    held = {str(place): names for place, names in enumerate(givers)}
    counts = {name: sum(name in names for names in givers) for name in NAMES}
    fullest = {name for name in NAMES if counts[name] == max(counts.values())}
    expected = next(key for key, names in held.items() if fullest & set(names))
    assert one_too_many(held) == expected


@pytest.mark.parametrize(
    ("principal", "tenant"),
    [("x/a", "x"), ("x/a/b", "x"), ("/a", ""), ("a", NOBODY), ("", NOBODY), ("x/", "x")],
)
def test_a_tenant_is_what_stands_before_the_first_slash(principal: str, tenant: str) -> None:
    assert tenant_of(principal) == tenant


def test_nobody_loses_an_item_by_what_binary_fractions_lose() -> None:
    assert 0.29 * 100 < 29
    loud = [Claim(item=0, givers=(("loud",),)) for _ in range(29)]
    others = [Claim(item=0, givers=((f"n{place}",),)) for place in range(71)]
    assert len(within([*loud, *others], [Limit(share=0.29)])) == 100
    assert len(within([*loud, *others], [Limit(share=0.285)])) < 100
