"""Raw documents in, shards for training and a report out. Resumable, part by part.

clean (each part) -> exact copies -> near copies -> hold out -> decontaminate -> mix. Cleaning, by
far the longest, is kept of an interrupted run; what follows is done again and gives the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import msgspec
from opentelemetry import trace

from infra.contracts.errors import FeedloomError
from infra.files import whole_file
from observability.instruments import OUTCOME, PILE_DOCUMENTS, PILE_STEP
from observability.tracing import span
from trainer.pile import PileRow, read_shards, write_shards
from trainer.preparation.duplicates import Contamination, exact_copies, near_copies
from trainer.preparation.mixture import PILE_WEIGHTS, interleave, quotas
from trainer.preparation.report import (
    Report,
    SetReport,
    cleaned,
    merged,
    shards_of,
    whole_steps,
)
from trainer.preparation.sources import Malformed, Source, parts_of, read_source
from trainer.preparation.stages import (
    DIGESTS,
    MALFORMED,
    Amount,
    PartReport,
    Sizes,
    amount_of,
    clean,
    clean_source,
    distinct,
    is_heldout,
    part_file,
    part_report,
    sign_part,
    sort_part,
)
from trainer.preparation.steps import STEPS, StepCounts

REPORT = "report.json"
QUARANTINE = "malformed.jsonl"
FORMAT = 1

_TRACER = trace.get_tracer("feedloom.trainer")

Progress = Callable[[str, int, int], None]
"""Told the stage, and how many of how many parts are done (0 of 0: unknown)."""


class TooManyMalformed(FeedloomError):
    """More of the input is unreadable than was allowed. See the quarantine file."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to prepare. ``size_bytes`` of text go into the mixture, all of it by default.

    ``evaluation``: texts by the name of their set, which training text must not contain.
    ``heldout_share`` of the documents are kept for evaluation. ``max_malformed``: share of lines.
    """

    sources: Sequence[Source]
    directory: Path
    steps: Sequence[str] = STEPS
    languages: Sequence[str] = ("en",)
    weights: Mapping[str, float] = field(default_factory=lambda: dict(PILE_WEIGHTS))
    size_bytes: int | None = None
    heldout_share: float = 0.01
    max_malformed: float = 0.01
    evaluation: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    workers: int = 1

    def fingerprint(self) -> str:
        """Of what decides how parts are cleaned."""
        facts = [FORMAT, list(self.steps), list(self.languages)]
        facts += [source.identity for source in self.sources]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def prepare(plan: Plan, progress: Progress = lambda stage, done, total: None) -> Report:
    """Write ``train/``, ``heldout/``, ``malformed.jsonl`` and ``report.json``, in a trace.

    Raises:
        TooManyMalformed: the shards are not written.
        CorruptShard, ConfigurationError: of a source; the message names it.
    """
    with span(_TRACER, "feedloom.pile.prepare", parent=()) as preparing:
        report = _prepare(plan, progress)
        preparing.set_attributes(
            {
                "feedloom.pile.sources": len(report.sources),
                "feedloom.pile.documents": report.steps[-1].documents_out,
                "feedloom.pile.heldout_documents": report.heldout_documents,
                "feedloom.pile.malformed": report.malformed,
            }
        )
    return report


def _prepare(plan: Plan, progress: Progress) -> Report:
    begin = time.monotonic()
    work = plan.directory / ".work"
    _open_work(work, plan.fingerprint())
    (plan.directory / REPORT).unlink(missing_ok=True)
    with _pool(plan.workers) as pool:
        parts = _clean_all(plan, work, pool, progress)
        malformed = _quarantine(plan, work, parts)
        copies = exact_copies(
            part_file(work, part, DIGESTS).read_bytes() for part in range(len(parts))
        )
        unique = _sign(work, copies, pool, progress)
        near = near_copies(work / "signatures", work / "scratch", len(parts))
        distinct_left, heldout = _hold_out(work, copies, near, plan)
        write_shards(plan.directory / "heldout", heldout)
        _index_evaluation(work, plan, heldout)
        sizes, contaminated = _sort_all(work, copies, near, plan, pool, progress)
    progress("mixture", 0, 0)
    available = {name: sum(sum(one.bytes) for one in files) for name, files in sizes.items()}
    wanted = quotas(available, plan.weights, plan.size_bytes)
    taken: dict[str, list[int]] = {}
    write_shards(plan.directory / "train", _mixed(work, sizes, wanted, taken))
    left = [
        cleaned(parts),
        unique,
        distinct_left,
        distinct_left - amount_of(heldout),
        Amount(
            sum(len(one.bytes) for files in sizes.values() for one in files),
            sum(available.values()),
        ),
        Amount(sum(map(len, taken.values())), sum(map(sum, taken.values()))),
    ]
    whole = whole_steps(left, contaminated)
    _count(whole)
    report = Report(
        format=FORMAT,
        sources=parts,
        steps=merged(parts) + whole,
        sets={
            name: SetReport(
                documents_available=sum(len(one.bytes) for one in sizes[name]),
                bytes_available=available[name],
                documents=len(taken.get(name, ())),
                bytes=sum(taken.get(name, ())),
            )
            for name in sorted(sizes)
        },
        train=shards_of(plan.directory / "train"),
        heldout=shards_of(plan.directory / "heldout"),
        heldout_documents=len(heldout),
        malformed=malformed,
        seconds=time.monotonic() - begin,
    )
    with whole_file(plan.directory / REPORT) as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    shutil.rmtree(work)
    return report


def _open_work(work: Path, fingerprint: str) -> None:
    """Keep what an interrupted run of the same plan has done."""
    mark = work / "plan"
    if not mark.is_file() or mark.read_text() != fingerprint:
        shutil.rmtree(work, ignore_errors=True)
        (work / "clean").mkdir(parents=True)
        mark.write_text(fingerprint)
    for name in ("signatures", "scratch", "sets", "evaluation"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir()


@contextmanager
def _pool(workers: int) -> Iterator[Executor]:
    # Spawned: the calling process may run threads, which a fork would copy half-alive.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


def _clean_all(plan: Plan, work: Path, pool: Executor, progress: Progress) -> list[PartReport]:
    files = [source for source in plan.sources if source.is_file]
    streams = [source for source in plan.sources if not source.is_file]
    waiting = {
        part: pool.submit(clean_source, work, part, source, plan.steps, plan.languages)
        for part, source in enumerate(files)
        if part_report(work, part) is None
    }
    for done, future in enumerate(waiting.values(), start=len(files) - len(waiting)):
        progress("cleaning", done, len(files))
        _count(future.result().steps)
    part = len(files)
    for source in streams:
        part = _clean_stream(plan, work, source, part, progress)
    reports = [part_report(work, number) for number in range(part)]
    return [report for report in reports if report is not None]


def _clean_stream(plan: Plan, work: Path, source: Source, part: int, progress: Progress) -> int:
    """Clean a stream piece by piece, after the pieces that are there. Returns the next part."""
    skip = 0
    while (known := part_report(work, part)) is not None:
        skip, part = skip + known.documents + known.malformed, part + 1
        if source.format == "machine":
            return part  # always one piece
    malformed: list[Malformed] = []
    rows = read_source(source, malformed.append, skip=skip)
    for piece in [rows] if source.format == "machine" else parts_of(rows):
        part = _clean_piece(plan, work, source, piece, malformed, part, progress)
    if malformed:  # behind the last document
        part = _clean_piece(plan, work, source, (), malformed, part, progress)
    return part


def _clean_piece(
    plan: Plan,
    work: Path,
    source: Source,
    piece: Iterable[PileRow],
    malformed: list[Malformed],
    part: int,
    progress: Progress,
) -> int:
    progress(f"cleaning {source.location}", part, 0)
    report = clean(work, part, source, piece, malformed, plan.steps, plan.languages)
    _count(report.steps)
    return part + 1


def _quarantine(plan: Plan, work: Path, parts: Sequence[PartReport]) -> int:
    """Join the parts' malformed lines, and judge their share. Returns their number."""
    path = plan.directory / QUARANTINE
    with path.open("wb") as stream:
        for part in range(len(parts)):
            stream.write(part_file(work, part, MALFORMED).read_bytes())
    malformed = sum(part.malformed for part in parts)
    lines = malformed + sum(part.documents for part in parts)
    if malformed > plan.max_malformed * lines:
        worst = max(parts, key=lambda part: part.malformed)
        raise TooManyMalformed(
            f"{malformed} of {lines} lines are no documents, more than the allowed share of "
            f"{plan.max_malformed:g}; {worst.malformed} of them in {worst.source}. {path} lists "
            "them with file and line; mend the input or raise --max-malformed"
        )
    return malformed


def _sign(work: Path, copies: Sequence[set[int]], pool: Executor, progress: Progress) -> Amount:
    unique, count = Amount(), len(copies)
    signed = pool.map(sign_part, repeat(work), range(count), copies)
    for done, amount in enumerate(signed, start=1):
        unique += amount
        progress("near copies", done, count)
    return unique


def _hold_out(
    work: Path, copies: Sequence[set[int]], near: Sequence[set[int]], plan: Plan
) -> tuple[Amount, list[PileRow]]:
    """How much is distinct, and the part of it that is kept for evaluation."""
    amount = Amount()
    rows = (
        row for part in range(len(copies)) for row in distinct(work, part, copies[part], near[part])
    )
    heldout = [row for row in amount.counting(rows) if is_heldout(row.text, plan.heldout_share)]
    return amount, heldout


def _index_evaluation(work: Path, plan: Plan, heldout: Sequence[PileRow]) -> None:
    sets = {
        name: [row.text for row in read_shards(list(paths))]
        for name, paths in plan.evaluation.items()
    }
    Contamination(work / "evaluation", {**sets, "held-out": [row.text for row in heldout]})


def _sort_all(
    work: Path,
    copies: Sequence[set[int]],
    near: Sequence[set[int]],
    plan: Plan,
    pool: Executor,
    progress: Progress,
) -> tuple[dict[str, list[Sizes]], dict[str, int]]:
    sizes: dict[str, list[Sizes]] = {}
    contaminated: dict[str, int] = {}
    count = len(copies)
    found = pool.map(
        sort_part, repeat(work), range(count), copies, near, repeat(plan.heldout_share)
    )
    for done, (part, dropped) in enumerate(found, start=1):
        progress("decontamination", done, count)
        for name, one in part.items():
            sizes.setdefault(name, []).append(one)
        for name, number in dropped.items():
            contaminated[name] = contaminated.get(name, 0) + number
    return sizes, contaminated


def _mixed(
    work: Path,
    sizes: Mapping[str, Sequence[Sizes]],
    wanted: Mapping[str, int],
    taken: dict[str, list[int]],
) -> Iterator[PileRow]:
    """The mixture's rows; ``taken`` is told the bytes of each, by set."""
    readers = {
        name: read_shards([work / "sets" / one.file for one in files])
        for name, files in sizes.items()
    }
    every = {name: [size for one in files for size in one.bytes] for name, files in sizes.items()}
    for name in interleave(every, wanted):
        so_far = taken.setdefault(name, [])
        so_far.append(every[name][len(so_far)])
        yield next(readers[name])


def _count(steps: Sequence[StepCounts]) -> None:
    """For operators, as it goes; what an interrupted run had done counted there."""
    for step in steps:
        amounts = {
            "in": step.documents_in,
            "out": step.documents_out,
            "dropped": step.documents_in - step.documents_out,
        }
        for outcome, count in amounts.items():
            PILE_DOCUMENTS.add(count, {PILE_STEP: step.name, OUTCOME: outcome})
