"""From feedback examples to what is worth training on, by rules that are written down. Pure.

Of one answer: an edit speaks first, then the preferred text of the newest pair, then the answer
itself if more thumbs went up than down. Between answers: the same answer to the same prompt is
rated by the sum of its thumbs, and of two texts the one that most people preferred stands, with one
say a principal however often it was said; where people are evenly divided, nothing is learnt. An
answer that most people rejected is no target. Of what is left of each kind, a principal contributes
its share (``trainer.shares``), newest first.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from infra.contracts.events.feedback import FeedbackExample
from trainer.shares import NOBODY, Claim, Givers, Limit, in_turns, tenant_of, within

MINIMUM_CHARACTERS = 8
MAXIMUM_CHARACTERS = 20_000
BEYOND = "beyond a principal's share"

T = TypeVar("T", "Completion", "Preference", "Rating")


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt and the text that should follow it."""

    request_id: str
    prompt: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Preference:
    """A prompt and two texts, of which people preferred one."""

    request_id: str
    prompt: str
    preferred: str
    rejected: str


@dataclass(frozen=True, kw_only=True)
class Rating:
    """A prompt and an answer that most people found good, or most bad."""

    request_id: str
    prompt: str
    output: str
    desirable: bool


@dataclass(frozen=True, kw_only=True)
class CurationRules:
    """``max_share`` (0 to 1): of each kind of material, that one principal may contribute.

    With few principals it is what the typical one contributes, if that is more.
    ``max_tenant_share``: likewise of a tenant, whatever names its principals have. ``limit``: of
    each kind, the most that is kept, everybody in turns. ``max_age_s``: older feedback is left out;
    ``None`` keeps all. ``scrub`` takes personal data out of a text.
    """

    max_share: float = 0.1
    max_tenant_share: float = 1.0
    limit: int | None = None
    max_age_s: float | None = None
    scrub: Callable[[str], str] = field(default=lambda text: text)


@dataclass(frozen=True, kw_only=True)
class Curated:
    """What was kept, and how many examples, or parts of them, were left out for which reason.

    ``principals``: how many of each kind each of them gave.
    """

    completions: tuple[Completion, ...] = ()
    preferences: tuple[Preference, ...] = ()
    ratings: tuple[Rating, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)
    principals: Mapping[str, Counter[str]] = field(default_factory=dict)

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Every request whose feedback is in it, sorted."""
        return tuple(
            sorted(
                {one.request_id for one in self.completions}
                | {one.request_id for one in self.preferences}
                | {one.request_id for one in self.ratings}
            )
        )


def target_of(example: FeedbackExample) -> str | None:
    """What people say the answer should have been; ``None`` when nothing says it."""
    if example.edited_text is not None:
        return example.edited_text
    if example.pairs:
        return example.pairs[-1].preferred
    if example.ups > example.downs:
        return example.output
    return None


def held_out(prompt: str, share: float) -> bool:
    """Whether feedback on a prompt is kept for evaluation, always the same for one prompt."""
    # Salted: whoever else draws by a plain hash of the prompt must not draw the same ones.
    digest = hashlib.blake2b(prompt.encode(), digest_size=8, person=b"heldout feedback")
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def curate(
    examples: Iterable[FeedbackExample],
    rules: CurationRules | None = None,
    *,
    now_ms: int = 0,
    heldout: AbstractSet[str] = frozenset(),
) -> Curated:
    """Completions, preferences and ratings, each once. The order does not depend on the input's.

    ``heldout``: texts that evaluation uses; what occurs in one is left out.
    """
    rules = rules or CurationRules()
    dropped: Counter[str] = Counter()
    newest = sorted(examples, key=lambda one: (-one.updated_at_ms, one.request_id))
    scrubbed = [
        _scrubbed(example, rules.scrub) for example in _recent(newest, rules, now_ms, dropped)
    ]
    rated = _ratings(scrubbed, dropped)
    bad = {(one.item.prompt, one.item.output) for one in rated if not one.item.desirable}
    completed = _completions(scrubbed, bad, heldout, dropped)
    preferred = _preferences(scrubbed, heldout, dropped)
    completions = _within_shares(completed, rules)
    preferences = _within_shares(preferred, rules)
    ratings = _within_shares(rated, rules)
    given = _requests(completed) | _requests(preferred) | _requests(rated)
    kept = _requests(completions) | _requests(preferences) | _requests(ratings)
    _count(dropped, BEYOND, len(given - kept))
    return Curated(
        completions=tuple(one.item for one in completions),
        preferences=tuple(one.item for one in preferences),
        ratings=tuple(one.item for one in ratings),
        dropped=dropped,
        principals={
            "completions": _by_principal(completions),
            "preferences": _by_principal(preferences),
            "ratings": _by_principal(ratings),
        },
    )


def _recent(
    examples: Sequence[FeedbackExample], rules: CurationRules, now_ms: int, dropped: Counter[str]
) -> list[FeedbackExample]:
    if rules.max_age_s is None:
        return list(examples)
    oldest = now_ms - rules.max_age_s * 1000
    kept = [example for example in examples if example.updated_at_ms >= oldest]
    _count(dropped, "too old", len(examples) - len(kept))
    return kept


def _within_shares(claims: Sequence[Claim[T]], rules: CurationRules) -> list[Claim[T]]:
    """What of one kind of material is kept."""
    if rules.limit is not None:
        claims = in_turns(claims)[: rules.limit]
    limits = [
        Limit(share=rules.max_share),
        Limit(share=rules.max_tenant_share, name_of=tenant_of),
    ]
    return within(claims, [limit for limit in limits if limit.share < 1])


def _requests(claims: Iterable[Claim[T]]) -> set[str]:
    return {claim.item.request_id for claim in claims}


def _by_principal(claims: Iterable[Claim[T]]) -> Counter[str]:
    return Counter(one for claim in claims for one in claim.givers[0])


def givers_of(example: FeedbackExample) -> Givers:
    """Who gave it together: all who name no principal are one."""
    return example.principals or (NOBODY,)


def _scrubbed(example: FeedbackExample, scrub: Callable[[str], str]) -> FeedbackExample:
    return msgspec.structs.replace(
        example,
        prompt=scrub(example.prompt),
        output=scrub(example.output),
        edited_text=None if example.edited_text is None else scrub(example.edited_text),
        pairs=tuple(
            msgspec.structs.replace(
                pair, preferred=scrub(pair.preferred), rejected=scrub(pair.rejected)
            )
            for pair in example.pairs
        ),
    )


class _Votes:
    """Of one question: what each set of givers says in all, and who says yes, newest first."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._sums: Counter[Givers] = Counter()

    def add(self, givers: Givers, votes: int) -> None:
        self._sums[givers] += votes

    @property
    def outcome(self) -> int:
        """Above 0: yes. However often somebody says something, it is said once."""
        return sum(max(-len(who), min(len(who), votes)) for who, votes in self._sums.items())

    def of(self, side: int) -> tuple[Givers, ...]:
        """Who is of this side, 1 or -1."""
        return tuple(who for who, votes in self._sums.items() if votes * side > 0)


def _ratings(examples: Sequence[FeedbackExample], dropped: Counter[str]) -> list[Claim[Rating]]:
    asked: dict[tuple[str, str], _Votes] = {}
    for example in examples:
        if example.ups or example.downs:
            key = (example.prompt, example.output)
            votes = asked.setdefault(key, _Votes(example.request_id))
            votes.add(givers_of(example), example.ups - example.downs)
    divided = sum(not votes.outcome for votes in asked.values())
    _count(dropped, "people disagree about an answer", divided)
    return [
        Claim(
            item=Rating(
                request_id=votes.request_id, prompt=prompt, output=output, desirable=outcome > 0
            ),
            givers=votes.of(1 if outcome > 0 else -1),
        )
        for (prompt, output), votes in asked.items()
        if (outcome := votes.outcome) and output.strip()
    ]


def _completions(
    examples: Sequence[FeedbackExample],
    bad: AbstractSet[tuple[str, str]],
    heldout: AbstractSet[str],
    dropped: Counter[str],
) -> list[Claim[Completion]]:
    found: dict[tuple[str, str], Completion] = {}
    givers: defaultdict[tuple[str, str], dict[Givers, None]] = defaultdict(dict)
    for example in examples:
        target = target_of(example)
        if target is None:
            dropped["nothing says what would have been right"] += 1
        elif not MINIMUM_CHARACTERS <= len(target.strip()) <= MAXIMUM_CHARACTERS:
            dropped["too short or too long"] += 1
        elif (example.prompt, target) in found:
            dropped["duplicate"] += 1
            givers[example.prompt, target].setdefault(givers_of(example))
        elif (example.prompt, target) in bad:
            dropped["most people rejected it"] += 1
        elif _occurs(target, heldout):
            dropped["part of the held-out text"] += 1
        else:
            found[example.prompt, target] = Completion(
                request_id=example.request_id, prompt=example.prompt, target=target
            )
            givers[example.prompt, target].setdefault(givers_of(example))
    return [
        Claim(item=one, givers=tuple(givers[key]), size=len(one.target))
        for key, one in found.items()
    ]


def _preferences(
    examples: Sequence[FeedbackExample], heldout: AbstractSet[str], dropped: Counter[str]
) -> list[Claim[Preference]]:
    """Pairs as given, and an edit as preferred to the answer it replaces."""
    # Both directions of a pair are one question: is the text that sorts first the better one?
    asked: dict[tuple[str, str, str], _Votes] = {}
    said: dict[tuple[str, str, str], str] = {}
    for example in examples:
        pairs = [(pair.preferred, pair.rejected) for pair in example.pairs]
        if example.edited_text is not None:
            pairs.append((example.edited_text, example.output))
        for preferred, rejected in pairs:
            if not preferred.strip() or not rejected.strip() or preferred == rejected:
                continue
            if _occurs(preferred, heldout):
                dropped["part of the held-out text"] += 1
                continue
            one, other = sorted((preferred, rejected))
            votes = asked.setdefault((example.prompt, one, other), _Votes(example.request_id))
            votes.add(givers_of(example), 1 if preferred == one else -1)
            said.setdefault((example.prompt, preferred, rejected), example.request_id)
    found = []
    for (prompt, preferred, rejected), request_id in said.items():
        first = preferred < rejected
        one, other = sorted((preferred, rejected))
        votes = asked[prompt, one, other]
        side = 1 if first else -1
        if votes.outcome * side > 0:
            item = Preference(
                request_id=request_id, prompt=prompt, preferred=preferred, rejected=rejected
            )
            found.append(Claim(item=item, givers=votes.of(side)))
        elif votes.outcome or first:
            dropped["people disagree about a pair"] += 1
    return found


def _occurs(text: str, heldout: AbstractSet[str]) -> bool:
    return any(text.strip() in whole for whole in heldout)


def _count(dropped: Counter[str], reason: str, number: int) -> None:
    if number:
        dropped[reason] += number
