"""The stages of a preparation that run side by side, one part at a time, in worker processes.

A part is one source file, or a piece of a stream. Its files lie under ``clean/`` of the working
folder; ``NNNNN.json`` is written last and says that the part is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec
from datatrove.data import Document

from infra.files import whole_file
from trainer.pile import SUFFIX, PileRow, WriteRow, read_shards, shard_writer
from trainer.preparation.duplicates import Contamination, digest, sign
from trainer.preparation.sources import Malformed, Source, read_source
from trainer.preparation.steps import StepCounts, build_steps

DIGESTS = ".digests"
MALFORMED = ".malformed.jsonl"
_UNSAFE = re.compile(r"[^A-Za-z0-9]+")


class PartReport(msgspec.Struct, kw_only=True):
    """What became of one part. ``documents`` were read, of ``bytes`` of text."""

    source: str
    documents: int
    bytes: int
    malformed: int
    steps: list[StepCounts]


@dataclass
class Amount:
    """So many documents, of so many bytes of text."""

    documents: int = 0
    bytes: int = 0

    def add(self, row: PileRow) -> None:
        """One document more."""
        self.documents += 1
        self.bytes += len(row.text.encode())

    def counting(self, rows: Iterable[PileRow]) -> Iterator[PileRow]:
        """The same rows, counted as they pass."""
        for row in rows:
            self.add(row)
            yield row

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.documents + other.documents, self.bytes + other.bytes)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.documents - other.documents, self.bytes - other.bytes)


def amount_of(rows: Iterable[PileRow]) -> Amount:
    """How much these are."""
    amount = Amount()
    for row in rows:
        amount.add(row)
    return amount


class Sizes(msgspec.Struct, kw_only=True):
    """Of the documents of one set in one part, in order: their bytes."""

    file: str
    bytes: list[int]


def clean_source(
    work: Path, part: int, source: Source, steps: Sequence[str], languages: Sequence[str]
) -> PartReport:
    """Read a whole source and clean it."""
    found: list[Malformed] = []
    rows = read_source(source, found.append)
    return clean(work, part, source, rows, found, steps, languages)


def clean(
    work: Path,
    part: int,
    source: Source,
    rows: Iterable[PileRow],
    malformed: list[Malformed],
    steps: Sequence[str],
    languages: Sequence[str],
) -> PartReport:
    """Put documents through the steps and write what stays; ``malformed`` fills meanwhile."""
    digests = bytearray()
    amount = Amount()
    passing = amount.counting(rows)
    built = build_steps(steps, languages)
    for step in built:
        passing = step.run(passing)
    with shard_writer(part_file(work, part, SUFFIX)) as write:
        for row in passing:
            digests += digest(row.text)
            write(row)
    report = PartReport(
        source=source.location,
        documents=amount.documents,
        bytes=amount.bytes,
        malformed=len(malformed),
        steps=[step.counts for step in built],
    )
    _write(part_file(work, part, DIGESTS), bytes(digests))
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in malformed)
    _write(part_file(work, part, MALFORMED), lines)
    _write(part_file(work, part, ".json"), msgspec.json.encode(report))
    malformed.clear()
    return report


def part_file(work: Path, part: int, ending: str) -> Path:
    """One of the files of a part; that of its cleaned documents ends as shards do."""
    return work / "clean" / f"{part:05d}{ending}"


def part_report(work: Path, part: int) -> PartReport | None:
    """``None`` until the part is complete."""
    path = part_file(work, part, ".json")
    return msgspec.json.decode(path.read_bytes(), type=PartReport) if path.is_file() else None


def sign_part(work: Path, part: int, copies: AbstractSet[int]) -> Amount:
    """Signatures of what is no exact copy; returns how much that is."""
    amount = Amount()
    rows = without(read_shards([part_file(work, part, SUFFIX)]), copies)
    sign(amount.counting(rows), work / "signatures", part)
    return amount


def sort_part(
    work: Path, part: int, copies: AbstractSet[int], near: AbstractSet[int], heldout: float
) -> tuple[dict[str, Sizes], dict[str, int]]:
    """Write what stays of a part for training, a file for each set; returns their sizes.

    The second value counts the documents dropped for text of each evaluation set.
    """
    contamination = Contamination(work / "evaluation", {})
    dropped: dict[str, int] = {}
    sizes: dict[str, Sizes] = {}
    writers: dict[str, WriteRow] = {}
    with ExitStack() as stack:
        for row in distinct(work, part, copies, near):
            if is_heldout(row.text, heldout):
                continue
            reason = contamination.judge(Document(text=row.text, id=""))
            if reason is not None:
                dropped[reason] = dropped.get(reason, 0) + 1
                continue
            name = row.meta.pile_set_name
            if name not in writers:
                readable = _UNSAFE.sub("-", name)[:40]
                file = f"{part:05d}-{len(writers):02d}-{readable}{SUFFIX}"
                sizes[name] = Sizes(file=file, bytes=[])
                writers[name] = stack.enter_context(shard_writer(work / "sets" / file))
            writers[name](row)
            sizes[name].bytes.append(len(row.text.encode()))
    return sizes, dropped


def distinct(
    work: Path, part: int, copies: AbstractSet[int], near: AbstractSet[int]
) -> Iterator[PileRow]:
    """The documents of a part that are no copies. ``near`` counts those that are no exact ones."""
    return without(without(read_shards([part_file(work, part, SUFFIX)]), copies), near)


def without(rows: Iterable[PileRow], removed: AbstractSet[int]) -> Iterator[PileRow]:
    """Rows whose place is not in ``removed``."""
    return (row for index, row in enumerate(rows) if index not in removed)


def is_heldout(text: str, share: float) -> bool:
    """From the text alone, so that a document never moves between runs."""
    return int.from_bytes(digest(text)[:8], "big") < share * 2**64


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as stream:
        stream.write(data)
