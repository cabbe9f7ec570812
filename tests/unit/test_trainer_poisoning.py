"""What one principal can do to a round, however much it sends: shares, votes, exam, join."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue, codec
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.feedback import FeedbackExample, FeedbackReceived, PreferencePair
from infra.testing import InMemoryBus
from stream_workers.feedback import MOST, MOST_BY_ONE, JoinState, encode_state, join
from tests.joining import result
from trainer.curation import BEYOND, CurationRules, curate
from trainer.intake import FeedbackIntake
from trainer.shares import Claim, Limit, in_turns, one_too_many, tenant_of, within

NAMES = "abcdefgh"

alone = st.lists(
    st.builds(
        lambda name, size, number: Claim(item=number, givers=((name,),), size=size),
        st.sampled_from(NAMES),
        st.integers(1, 500),
        st.integers(),
    ),
    max_size=60,
)
together = st.lists(
    st.builds(
        lambda givers, size: Claim(item=0, givers=tuple(map(tuple, givers)), size=size),
        st.lists(
            st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
            min_size=1,
            max_size=3,
        ),
        st.integers(1, 500),
    ),
    max_size=40,
)
shares = st.floats(0.0, 1.0)


def counts(kept: Sequence[Claim[int]]) -> Counter[str]:
    return Counter(claim.givers[0][0] for claim in kept)


def ones(**amounts: int) -> list[Claim[int]]:
    return [
        Claim(item=number, givers=((name,),))
        for name, amount in amounts.items()
        for number in range(amount)
    ]


@given(alone, shares)
def test_no_share_is_above_the_cap_for_any_input(claims: list[Claim[int]], share: float) -> None:
    """Of equal sizes here, so that a claim counts once; names that gave their items alone."""
    claims = [Claim(item=claim.item, givers=claim.givers) for claim in claims]
    kept = within(claims, [Limit(share=share)])
    found = counts(kept)
    for amount in found.values():
        assert amount <= max(1, max(share, 2 / (len(found) + 1)) * len(kept) + 1e-6)
    assert set(found) == set(counts(claims))


@given(together, shares)
def test_what_is_kept_is_in_order_and_needs_no_more_cutting(
    claims: list[Claim[int]], share: float
) -> None:
    """Whatever sizes there are and whoever said the same."""
    limit = Limit(share=share)
    kept = within(claims, [limit])
    places = {id(claim): place for place, claim in enumerate(claims)}
    assert [places[id(claim)] for claim in kept] == sorted(places[id(claim)] for claim in kept)
    assert bool(kept) == bool(claims)
    assert within(claims, [limit]) == kept
    assert within(claims, []) == claims
    assert within(claims, [Limit(share=1.0)]) == claims


@given(alone, shares)
def test_whoever_is_cut_has_as_much_as_anybody(claims: list[Claim[int]], share: float) -> None:
    claims = [Claim(item=claim.item, givers=claim.givers) for claim in claims]
    kept = counts(within(claims, [Limit(share=share)]))
    for name, given_in_all in counts(claims).items():
        if kept[name] < given_in_all:
            assert kept[name] == max(kept.values())


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=9),
    st.integers(0, 100_000),
    st.floats(0.0, 0.5),
)
def test_sending_more_than_others_gains_nothing_beyond_the_share(
    others: list[int], flood: int, share: float
) -> None:
    """While the hostile are the minority one of them counts as an honest one, or as the share."""
    claims = ones(**{f"p{place}": amount for place, amount in enumerate(others)})
    kept = within([*ones(mallory=min(flood, 3000)), *claims], [Limit(share=share)])
    mine = counts(kept)["mallory"]
    assert mine <= max(max(others), share * len(kept) + 1e-6)


def test_a_small_team_still_learns() -> None:
    cap = [Limit(share=0.1)]
    # Alone: from everything.
    assert counts(within(ones(a=50), cap)) == {"a": 50}
    # Two: from as much of each as the lesser gave.
    assert counts(within(ones(a=50, b=5), cap)) == {"a": 5, "b": 5}
    # One who said but one thing takes nothing from the others.
    assert counts(within(ones(a=50, b=40, c=45, d=1), cap)) == {"a": 40, "b": 40, "c": 40, "d": 1}


def test_long_texts_count_as_often_as_they_are_long() -> None:
    """Nine people's edits of a line each, and one's of a page each."""
    claims = [Claim(item=number, givers=((f"p{number % 9}",),), size=50) for number in range(90)]
    pages = [Claim(item=number, givers=(("mallory",),), size=5000) for number in range(10)]
    kept = within([*pages, *claims], [Limit(share=0.25)])
    characters = sum(claim.size for claim in kept)
    assert sum(claim.size for claim in kept if claim.givers == (("mallory",),)) <= 0.25 * characters
    assert counts(kept)["p0"] == 10


def test_many_names_of_one_tenant_are_one_tenant() -> None:
    people = {f"shop{place}/ada": 10 for place in range(9)}
    names = {f"mill/user {place}": 1 for place in range(1000)}
    limits = [Limit(share=0.1), Limit(share=0.1, name_of=tenant_of)]
    claims = ones(**names, **people)
    tenants = Counter(tenant_of(claim.givers[0][0]) for claim in within(claims, limits))
    assert tenants["mill"] == 10
    assert sum(tenants.values()) == 100
    assert tenant_of("mill/a/b") == "mill"
    assert tenant_of("script") == ""


def test_it_is_enough_that_somebody_with_room_says_the_same() -> None:
    flood = ones(mallory=20)
    shared = Claim(item=99, givers=(("mallory",), ("a",)))
    both = Claim(item=98, givers=(("mallory", "b"),))
    kept = within([*flood, shared, both, *ones(a=3, b=3, c=3)], [Limit(share=0.25)])
    assert shared in kept
    assert both not in kept


@given(alone, st.integers(0, 60))
def test_turns_are_even(claims: list[Claim[int]], length: int) -> None:
    everything = counts(claims)
    first = counts(in_turns(claims)[:length])
    for amount in first.values():
        for other, rest in everything.items():
            assert amount <= first[other] + 1 or first[other] == rest
    assert sum(first.values()) == min(length, len(claims))


def test_whoever_has_most_makes_place() -> None:
    held = {"1": ("a",), "2": ("b",), "3": ("mallory",), "4": ("mallory", "c")}
    assert one_too_many(held) == "3"
    assert one_too_many({"1": ("a",), "2": ("b",)}) == "1"


# In curation.


def example(request_id: str, who: str, **changes: object) -> FeedbackExample:
    fields: dict[str, object] = {
        "prompt": "The module",
        "output": "does what it should do",
        "model": "default",
        "model_versions": ("default@1",),
        "feedback_ids": ("f1",),
        "updated_at_ms": 0,
        "principals": (who,),
    }
    return FeedbackExample(request_id=request_id, **(fields | changes))  # type: ignore[arg-type]


def people(count: int, each: int = 4) -> list[FeedbackExample]:
    return [
        example(f"{who}-{n}", f"p{who}", prompt=f"prompt {who} {n}", edited_text=f"right {who} {n}")
        for who in range(count)
        for n in range(each)
    ]


def test_one_answer_with_many_pairs_is_no_way_around_the_cap() -> None:
    pairs = tuple(
        PreferencePair(preferred=f"wrong {n}", rejected=f"right {n}") for n in range(1000)
    )
    curated = curate(
        [*people(20), example("h", "mallory", edited_text="a wrong one", pairs=pairs)],
        CurationRules(max_share=0.1),
    )
    assert curated.principals["preferences"]["mallory"] == 8
    assert len(curated.preferences) == 88
    assert curated.principals["completions"]["mallory"] == 1


def test_the_cap_is_of_each_kind_of_material() -> None:
    """Thumbs of others do not make room for edits of one."""
    thumbs = [
        example(f"t{n}", f"p{n % 20}", prompt=f"prompt {n}", output="fine as it is", downs=1)
        for n in range(400)
    ]
    edits = [
        example(f"h{n}", "mallory", prompt=f"other {n}", edited_text=f"a wrong one, {n}")
        for n in range(400)
    ]
    curated = curate([*thumbs, *edits, *people(20)], CurationRules(max_share=0.1))
    assert curated.principals["completions"]["mallory"] == 8
    assert len(curated.completions) == 88
    assert curated.dropped[BEYOND] == 392


def test_a_principal_has_one_vote_on_an_answer() -> None:
    """Answers of one prompt are often the same: ten requests for it are not ten votes."""
    stuffed = [example(f"h{n}", "mallory", downs=50) for n in range(10)]
    curated = curate([*stuffed, example("a", "ada", ups=1), example("b", "bob", ups=1)])
    assert [one.desirable for one in curated.ratings] == [True]
    better, worse = "the better of two", "the worse of two"
    said = PreferencePair(preferred=better, rejected=worse)
    opposite = PreferencePair(preferred=worse, rejected=better)
    curated = curate(
        [
            example("a", "ada", pairs=(said,)),
            example("b", "bob", pairs=(said,)),
            example("h", "mallory", pairs=(opposite,) * 40),
        ]
    )
    assert [one.preferred for one in curated.preferences] == [better]


def test_whoever_sends_most_does_not_set_the_exam() -> None:
    flood = [
        example(f"h{n}", "mallory", prompt=f"other {n}", edited_text=f"wrong {n}", updated_at_ms=9)
        for n in range(600)
    ]
    curated = curate([*people(20), *flood], CurationRules(max_share=0.1, limit=40))
    assert len(curated.completions) == 40
    assert curated.principals["completions"]["mallory"] <= 4


def test_a_flood_does_not_push_out_what_others_measure_with() -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    flood = [example(f"h{n}", "mallory", edited_text=f"a wrong one, {n}") for n in range(200)]
    for one in (*people(5, each=2), *flood):
        publisher.publish(
            catalogue.EXAMPLES.name, key=one.request_id.encode(), value=codec.encode(one)
        ).result(0)
    intake = FeedbackIntake(bus, model="default", measures=lambda one: True, keep=20)
    intake.catch_up()
    held = Counter(one.principals[0] for one in intake.batch().measuring)
    assert held == {"mallory": 10} | {f"p{who}": 2 for who in range(5)}
    intake.close()


def test_the_default_cap_is_a_tenth() -> None:
    """docs/security.md says so, and the drill measures it."""
    assert TrainerConfig().max_principal_share == CurationRules().max_share == 0.1


# In the join.


def said(number: int, who: str | None, **what: object) -> FeedbackReceived:
    return FeedbackReceived(
        feedback_id=f"f{number}",
        request_id="r",
        created_at_ms=number,
        principal=who,
        **what,  # type: ignore[arg-type]
    )


def joined(events: Sequence[FeedbackReceived]) -> tuple[JoinState, FeedbackExample]:
    state, _ = join(JoinState(), result("stop"))
    found: object = None
    for event in events:
        state, found = join(state, event)
    assert isinstance(found, FeedbackExample)
    return state, found


@given(st.permutations([*range(6), 2, 4]))
def test_of_one_principal_the_newest_word_counts_in_any_order(order: list[int]) -> None:
    words = [
        said(0, "a", rating="up"),
        said(1, "a", rating="down", edited_text="first"),
        said(2, "a", edited_text="second", score=0.0),
        said(3, "b", rating="up", score=1.0),
        said(4, "a", score=0.5),
        said(5, "a", comment="nothing that is counted"),
    ]
    _, found = joined([words[number] for number in order])
    assert (found.ups, found.downs) == (1, 1)
    assert found.edited_text == "second"
    assert found.score == 0.75
    assert set(found.principals) == {"a", "b"}


def test_what_is_kept_of_one_answer_is_bounded() -> None:
    honest = [said(number, f"p{number}", rating="up") for number in range(5)]
    flood = [
        said(
            10 + number,
            "mallory",
            pair=PreferencePair(preferred=f"wrong {number}", rejected="right"),
            rating="down",
        )
        for number in range(10_000)
    ]
    state, found = joined([*honest, *flood])
    assert (found.ups, found.downs) == (5, 1)
    assert len(found.pairs) == MOST_BY_ONE
    assert found.pairs[-1].preferred == "wrong 9999"
    # What was let go, come again, changes nothing.
    assert join(state, flood[0])[0] == state
    names = [said(20_000 + n, f"mallory {n}", rating="down", comment="c" * 50) for n in range(1000)]
    state, found = joined([*honest, *names])
    assert len(state.feedback) == MOST
    assert found.ups == 5
    assert len(encode_state(state)) < 100_000
    # Who is in may still change their mind.
    state, found = join(state, said(30_000, "p0", rating="down"))  # type: ignore[assignment]
    assert (found.ups, len(state.feedback)) == (4, MOST)
