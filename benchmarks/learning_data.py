"""A subject that the first version never saw, for `benchmarks.learning` and `.continual`.

The text of this machine that the embedded model is made of, less the documents about mathematics:
those are what people ask about. Of their documents some are asked about in the rounds, the others
only when a version is measured; no run of eight words of the latter is in anything trained on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from infra.settings import Settings
from trainer.corpus import SPLITS, Document, assemble, collect, decontaminate, marks
from trainer.openings import openings_of
from trainer.pile import PileRow, read_shards, shard_paths, write_shards

SUBJECT = ("packages/sympy/", "packages/networkx/", "packages/mpmath/")
"""Sources; torch depends on all three, so they are always there."""
QUICK_SECONDS = 5.0
"""Of pre-training; a full run takes as long as the embedded model does."""
MEASURED_SHARE = 0.3
"""Of the subject's documents."""
STRIDE, SPAN = 4, 8
"""Paragraphs from one place of a document to cut openings at to the next, and looked at there."""

Truth = tuple[str, str]
"""A prompt and what truly follows."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Openings of different documents, in an order that depends on their text alone; the texts."""

    taught: list[Truth]
    measured: list[Truth]
    taught_text: list[str]
    measured_text: list[str]


def prepare(settings: Settings, progress: Callable[[int, int], None]) -> Subject:
    """Write the shards to train the first version on, and return what it has not seen."""
    workers = max(1, len(os.sched_getaffinity(0)))
    corpus = assemble(collect(settings.bootstrap.corpus_mb, workers=workers, progress=progress))
    everything = [document for name in SPLITS for document in corpus.split(name)]
    documents = [one for one in everything if one.source.startswith(SUBJECT)]
    measured = [one for one in documents if _share(one.digest) < MEASURED_SHARE]
    guarded = marks(measured)
    taught = without(guarded, [one for one in documents if _share(one.digest) >= MEASURED_SHARE])
    for name, kept in (
        ("train", without(guarded, _others(corpus.train))),
        ("heldout", _others(corpus.heldout)),
    ):
        write_shards(settings.shards / name, (one.row() for one in kept))
    # Its presence says to `bootstrap` that the text is there.
    prompts = settings.home / "demo" / "prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    prompts.touch()
    return Subject(
        taught=openings(taught),
        measured=openings(measured),
        taught_text=[one.text for one in taught],
        measured_text=[one.text for one in measured],
    )


def hurried(settings: Settings) -> Settings:
    """With a first version that is pre-trained for a moment only."""
    options = settings.bootstrap.model_copy(update={"seconds": QUICK_SECONDS})
    return settings.model_copy(update={"bootstrap": options})


def rows_of(settings: Settings, split: str) -> list[PileRow]:
    """A split that :func:`prepare` wrote."""
    return list(read_shards(shard_paths(settings.shards / split)))


def bits_per_byte(
    model: Any, tokenizer: Any, rows: Iterable[PileRow], *, size: int, limit: int
) -> float:
    """Of held-out text, in at most about ``limit`` blocks of ``size`` tokens."""
    from trainer.evaluation import evaluate, held_out_blocks, joined

    sets = held_out_blocks(rows, tokenizer, size, limit=limit)
    return joined([evaluate(model, tokenizer, blocks) for blocks in sets.values()]).bits_per_byte


def openings(documents: Iterable[Document]) -> list[Truth]:
    """Openings at several places of each document, sorted by hash."""
    found: dict[str, str] = {}
    for document in documents:
        paragraphs = document.text.split("\n\n")
        for start in range(0, len(paragraphs), STRIDE):
            found |= dict(openings_of("\n\n".join(paragraphs[start : start + SPAN])))
    return sorted(found.items(), key=lambda one: _hash(one[0]))


def without(guarded: set[int], documents: Iterable[Document]) -> list[Document]:
    """The documents without paragraphs that share a run of eight words with what is guarded."""
    cleaned = (decontaminate(document, guarded) for document in documents)
    return [document for document in cleaned if document is not None]


def _others(documents: Iterable[Document]) -> Iterator[Document]:
    return (one for one in documents if not one.source.startswith(SUBJECT))


def _share(digest: str) -> float:
    # Not the first digits: those have put the document into a split already.
    return int(digest[-8:], 16) / 0x1_0000_0000


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
