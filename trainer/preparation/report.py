"""What a preparation says of itself: what was read, what each step left, what the shards are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from infra.files import sha256_of
from trainer.pile import shard_paths
from trainer.preparation.stages import Amount, PartReport
from trainer.preparation.steps import StepCounts


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the result."""

    name: str
    sha256: str


class SetReport(msgspec.Struct, frozen=True, kw_only=True):
    """One ``pile_set_name``: what was there after all steps, and what the mixture took."""

    documents_available: int
    bytes_available: int
    documents: int
    bytes: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``report.json`` beside the shards. ``seconds`` from start to end, of this run."""

    format: int
    sources: list[PartReport]
    steps: list[StepCounts]
    sets: dict[str, SetReport]
    train: list[Shard]
    heldout: list[Shard]
    heldout_documents: int
    malformed: int
    seconds: float


def cleaned(parts: Sequence[PartReport]) -> Amount:
    """What the steps left of all parts."""
    left = Amount()
    for part in parts:
        last = part.steps[-1] if part.steps else None
        left.documents += part.documents if last is None else last.documents_out
        left.bytes += part.bytes if last is None else last.bytes_out
    return left


def merged(parts: Sequence[PartReport]) -> list[StepCounts]:
    """The steps that parts went through one by one, counted over all of them."""
    found: dict[str, StepCounts] = {}
    for part in parts:
        for counts in part.steps:
            found.setdefault(counts.name, StepCounts(name=counts.name)).add(counts)
    return list(found.values())


def whole_steps(left: Sequence[Amount], contaminated: Mapping[str, int]) -> list[StepCounts]:
    """The steps over all documents. ``left``: before the first of them, and after each."""
    drops: Mapping[str, Mapping[str, int] | str] = {
        "exact-copies": "copy",
        "near-copies": "near copy",
        "held-out": "kept for evaluation",
        "decontamination": contaminated,
        "mixture": "more than its share",
    }
    counts = []
    for (name, reason), (before, after) in zip(drops.items(), pairwise(left), strict=True):
        lost = before.documents - after.documents
        dropped = {reason: lost} if isinstance(reason, str) else dict(reason)
        counts.append(
            StepCounts(
                name=name,
                documents_in=before.documents,
                bytes_in=before.bytes,
                documents_out=after.documents,
                bytes_out=after.bytes,
                dropped={why: number for why, number in dropped.items() if number},
            )
        )
    return counts


def shards_of(directory: Path) -> list[Shard]:
    """What lies in a folder of the result."""
    return [Shard(name=path.name, sha256=sha256_of(path)) for path in shard_paths(directory)]
