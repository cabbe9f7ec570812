"""From feedback examples to what is worth training on. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from infra.contracts.events import FeedbackExample

MINIMUM_CHARACTERS = 8
MAXIMUM_CHARACTERS = 20_000


@dataclass(frozen=True, kw_only=True)
class TrainingPair:
    """A prompt and the text that should follow it."""

    request_id: str
    prompt: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Curated:
    """What was kept, and how many examples were left out for which reason."""

    pairs: tuple[TrainingPair, ...]
    dropped: Counter[str]


def target_of(example: FeedbackExample) -> str | None:
    """What people say the answer should have been.

    An edit speaks first, then the preferred text of the newest pair, then the answer itself if
    more thumbs went up than down. ``None`` when nothing says what would have been right.
    """
    if example.edited_text is not None:
        return example.edited_text
    if example.pairs:
        return example.pairs[-1].preferred
    if example.ups > example.downs:
        return example.output
    return None


def curate(
    examples: Iterable[FeedbackExample], *, heldout: AbstractSet[str] = frozenset()
) -> Curated:
    """Keep one training pair for each distinct prompt and target.

    ``heldout`` holds texts that evaluation uses; a pair whose target occurs in one is left out.
    """
    pairs: list[TrainingPair] = []
    seen: set[tuple[str, str]] = set()
    dropped: Counter[str] = Counter()
    for example in examples:
        target = target_of(example)
        if target is None:
            dropped["nothing says what would have been right"] += 1
        elif not MINIMUM_CHARACTERS <= len(target.strip()) <= MAXIMUM_CHARACTERS:
            dropped["too short or too long"] += 1
        elif (example.prompt, target) in seen:
            dropped["duplicate"] += 1
        elif any(target.strip() in text for text in heldout):
            dropped["part of the held-out text"] += 1
        else:
            seen.add((example.prompt, target))
            pairs.append(
                TrainingPair(request_id=example.request_id, prompt=example.prompt, target=target)
            )
    return Curated(pairs=tuple(pairs), dropped=dropped)
