"""From feedback examples to what is worth training on, by rules that are written down. Pure.

Of one answer: an edit speaks first, then the preferred text of the newest pair, then the answer
itself if more thumbs went up than down. Between answers: the same answer to the same prompt is
rated by the sum of its thumbs, and of two texts the one that most people preferred stands; where
people are evenly divided, nothing is learnt. An answer that most people rejected is no target.
Newer feedback comes first where a principal's share is used up.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from infra.contracts.events import FeedbackExample

MINIMUM_CHARACTERS = 8
MAXIMUM_CHARACTERS = 20_000
NOBODY = ""
"""The principal of feedback that names none."""


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
    """``max_share`` (0 to 1): of the examples, that one principal may contribute.

    With fewer principals than that share allows for, each may contribute an equal one.
    ``max_age_s``: older feedback is left out; ``None`` keeps all. ``scrub`` takes personal data
    out of a text.
    """

    max_share: float = 0.25
    max_age_s: float | None = None
    scrub: Callable[[str], str] = field(default=lambda text: text)


@dataclass(frozen=True, kw_only=True)
class Curated:
    """What was kept, and how many examples, or parts of them, were left out for which reason."""

    completions: tuple[Completion, ...] = ()
    preferences: tuple[Preference, ...] = ()
    ratings: tuple[Rating, ...] = ()
    dropped: Counter[str] = field(default_factory=Counter)

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
    kept = _within_shares(_recent(newest, rules, now_ms, dropped), rules.max_share, dropped)
    scrubbed = [_scrubbed(example, rules.scrub) for example in kept]
    ratings = _ratings(scrubbed, dropped)
    bad = {(one.prompt, one.output) for one in ratings if not one.desirable}
    return Curated(
        completions=_completions(scrubbed, bad, heldout, dropped),
        preferences=_preferences(scrubbed, heldout, dropped),
        ratings=ratings,
        dropped=dropped,
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


def _within_shares(
    examples: Sequence[FeedbackExample], max_share: float, dropped: Counter[str]
) -> list[FeedbackExample]:
    """The newest of each principal, up to its share of what is kept."""
    counts = Counter(one for example in examples for one in _principals(example))
    if not counts:
        return []
    share = max(max_share, 1 / len(counts))
    total = len(examples)
    # Capping one principal makes the whole smaller, and so the cap.
    while True:
        cap = max(1, math.floor(share * total))
        capped = sum(min(count, cap) for count in counts.values())
        if capped >= total:
            break
        total = capped
    used: Counter[str] = Counter()
    kept = []
    for example in examples:
        principals = _principals(example)
        if all(used[one] < cap for one in principals):
            used.update(principals)
            kept.append(example)
    _count(dropped, "beyond a principal's share", len(examples) - len(kept))
    return kept


def _principals(example: FeedbackExample) -> tuple[str, ...]:
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


def _ratings(examples: Sequence[FeedbackExample], dropped: Counter[str]) -> tuple[Rating, ...]:
    votes: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], str] = {}
    for example in examples:
        if example.ups or example.downs:
            key = (example.prompt, example.output)
            votes[key] += example.ups - example.downs
            first.setdefault(key, example.request_id)
    _count(dropped, "people disagree about an answer", sum(not vote for vote in votes.values()))
    return tuple(
        Rating(request_id=first[key], prompt=key[0], output=key[1], desirable=vote > 0)
        for key, vote in votes.items()
        if vote and key[1].strip()
    )


def _completions(
    examples: Sequence[FeedbackExample],
    bad: AbstractSet[tuple[str, str]],
    heldout: AbstractSet[str],
    dropped: Counter[str],
) -> tuple[Completion, ...]:
    found: dict[tuple[str, str], Completion] = {}
    for example in examples:
        target = target_of(example)
        if target is None:
            dropped["nothing says what would have been right"] += 1
        elif not MINIMUM_CHARACTERS <= len(target.strip()) <= MAXIMUM_CHARACTERS:
            dropped["too short or too long"] += 1
        elif (example.prompt, target) in found:
            dropped["duplicate"] += 1
        elif (example.prompt, target) in bad:
            dropped["most people rejected it"] += 1
        elif _occurs(target, heldout):
            dropped["part of the held-out text"] += 1
        else:
            found[example.prompt, target] = Completion(
                request_id=example.request_id, prompt=example.prompt, target=target
            )
    return tuple(found.values())


def _preferences(
    examples: Sequence[FeedbackExample], heldout: AbstractSet[str], dropped: Counter[str]
) -> tuple[Preference, ...]:
    """Pairs as given, and an edit as preferred to the answer it replaces."""
    votes: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], str] = {}
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
            key = (example.prompt, preferred, rejected)
            votes[key] += 1
            first.setdefault(key, example.request_id)
    found = []
    for key, count in votes.items():
        prompt, preferred, rejected = key
        against = votes[prompt, rejected, preferred]
        if count > against:
            found.append(
                Preference(
                    request_id=first[key], prompt=prompt, preferred=preferred, rejected=rejected
                )
            )
        elif preferred < rejected or count < against:
            dropped["people disagree about a pair"] += 1
    return tuple(found)


def _occurs(text: str, heldout: AbstractSet[str]) -> bool:
    return any(text.strip() in whole for whole in heldout)


def _count(dropped: Counter[str], reason: str, number: int) -> None:
    if number:
        dropped[reason] += number
