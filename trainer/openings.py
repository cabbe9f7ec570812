"""The demo's prompts: openings of held-back documents, each with the words that follow. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from trainer.corpus import Document

PROMPT_WORDS = (12, 20)
CONTINUATION_WORDS = 60
MINIMUM_CONTINUATION = 40
MINIMUM_REST = 12
PER_DOCUMENT = 4
FEEDBACK_SHARE = 0.64

_OPENING = re.compile(r"[A-Z][A-Za-z0-9' ,;:\"()-]+")

Use = Literal["feedback", "heldout"]


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the prompts file. ``continuation`` starts with the space that parts the two."""

    id: str
    prompt: str
    continuation: str
    source: str
    split: Use


def demo_prompts(documents: Iterable[Document]) -> Iterator[Opening]:
    """Openings of every document, in an order that depends on their text alone.

    A source's hash decides whether its openings serve for feedback or for the final comparison,
    so no document serves for both.
    """
    found = [
        Opening(
            id=hashlib.sha256(prompt.encode()).hexdigest()[:16],
            prompt=prompt,
            continuation=continuation,
            source=document.source,
            split=_use_of(document.source),
        )
        for document in documents
        for prompt, continuation in openings_of(document.text)
    ]
    yield from sorted(found, key=lambda opening: opening.id)


def openings_of(text: str) -> Iterator[tuple[str, str]]:
    """Cuts paragraphs after 12 to 20 words; at most four a document, the longest ones first.

    A paragraph serves if its first words are plain English and the sentence goes on a while. The
    continuation is the sixty words that follow, over the paragraph's end if need be.
    """
    texts = text.split("\n\n")
    taken = 0
    for index in sorted(range(len(texts)), key=lambda index: (-len(texts[index]), index)):
        words = texts[index].split()
        cut = _cut(texts[index], len(words) - MINIMUM_REST)
        prompt = " ".join(words[:cut])
        if cut < PROMPT_WORDS[0] or not _OPENING.fullmatch(prompt):
            continue
        rest = " ".join(words[cut:])
        for following in texts[index + 1 :]:
            if rest.count(" ") + 1 >= CONTINUATION_WORDS:
                break
            rest += "\n\n" + following
        continuation = _first_words(rest, CONTINUATION_WORDS)
        if len(continuation.split()) < MINIMUM_CONTINUATION:
            continue
        yield prompt, " " + continuation
        taken += 1
        if taken == PER_DOCUMENT:
            return


def _cut(paragraph: str, most: int) -> int:
    """After how many words to cut, by the paragraph's hash, at most ``most``."""
    low, high = PROMPT_WORDS
    drawn = low + int(hashlib.sha256(paragraph.encode()).hexdigest()[:8], 16) % (high - low + 1)
    return min(drawn, most)


def _first_words(text: str, count: int) -> str:
    """The beginning of a text, its spacing kept."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[min(count, len(ends)) - 1]] if ends else ""


def _use_of(source: str) -> Use:
    position = int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) / 0x1_0000_0000
    return "feedback" if position < FEEDBACK_SHARE else "heldout"
