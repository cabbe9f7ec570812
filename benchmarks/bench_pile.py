"""Preparing text for training: MB/s of one core in each step, beside plain datatrove.

Measured, on documents of the machine-local corpus, in one process: each step as `feedloom pile
prepare` runs it, and the same block of datatrove as its own pipeline runs it, over the same
documents in memory; then the whole, files in to files out, beside a datatrove pipeline of the same
blocks. Both use the word splitter of `trainer.preparation.steps`: datatrove's own for English needs
spaCy, and would only make datatrove slower. MB are of UTF-8 text going in. CPU seconds are
counted, so that other processes do not matter. Not in datatrove, or not without the network:
exact copies in one pass, the language of a document, the mixture; they have no ratio.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.harness import Report, command, project_home, table
from benchmarks.models import embedded_model
from benchmarks.stats import paired_ratio, spread
from benchmarks.turns import order_of
from trainer.pile import PileRow, read_shards, shard_paths, shard_writer

MEGABYTES, QUICK_MEGABYTES = 12.0, 2.0
ROUNDS = 3


def measure(report: Report) -> None:
    """See the module."""
    embedded_model()  # the corpus is built with it
    rows = list(corpus(QUICK_MEGABYTES if report.quick else MEGABYTES))
    megabytes = sum(len(row.text.encode()) for row in rows) / 1e6
    report.figures["documents"], report.figures["megabytes"] = len(rows), megabytes
    rounds = 1 if report.quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="feedloom-bench-") as folder:
        scratch = Path(folder)
        source = scratch / "source" / "00000.jsonl.zst"
        with shard_writer(source) as write:
            for row in rows:
                write(row)
        for name, (ours, theirs) in contests(rows, scratch).items():
            sides: dict[str, Callable[[], Iterable[Any]] | None] = {
                "feedloom": ours,
                "datatrove": theirs,
            }
            found: dict[str, list[float]] = {}
            for number in range(rounds):
                for side in order_of(sides, number):
                    run = sides[side]
                    if run is not None:
                        begin = process_time()
                        for _ in run():
                            pass
                        seconds = process_time() - begin
                        found.setdefault(side, []).append(megabytes / seconds)
            report.figures[name] = {side: spread(rates) for side, rates in found.items()}
            if "datatrove" in found:
                report.ratio(
                    f"MB/s of a core, {name}, feedloom / datatrove",
                    paired_ratio(found["feedloom"], found["datatrove"]),
                )
            report.say(
                f"{name}: "
                + ", ".join(f"{side} {max(rates):.1f} MB/s" for side, rates in found.items())
            )
    show(report)


def corpus(megabytes: float) -> Iterator[PileRow]:
    """Documents of the machine-local corpus, up to so much text."""
    left = megabytes * 1e6
    for row in read_shards(shard_paths(project_home() / "pile" / "train")):
        left -= len(row.text.encode())
        yield row
        if left < 0:
            return


Run = Callable[[], Iterable[Any]]


def contests(rows: list[PileRow], scratch: Path) -> dict[str, tuple[Run, Run | None]]:
    """For each step: it as we run it, and as datatrove does."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontFilter
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter

    from trainer.preparation.duplicates import CONFIG, Contamination, digest, exact_copies, sign
    from trainer.preparation.steps import STEPS, WORDS, build_steps

    def documents() -> Iterator[Document]:
        return (Document(text=row.text, id="") for row in rows)

    def ours(name: str) -> Run:
        return lambda: build_steps([name], ("en",))[0].run(iter(rows))

    blocks: dict[str, Callable[[], Any]] = {
        "gopher-quality": lambda: GopherQualityFilter(language=WORDS),
        "gopher-repetition": lambda: GopherRepetitionFilter(language=WORDS),
        "c4": lambda: C4QualityFilter(language=WORDS),
        "pii": PIIFormatter,
    }

    def block(name: str) -> Run | None:
        make = blocks.get(name)
        return None if make is None else lambda: make().run(documents())

    found: dict[str, tuple[Run, Run | None]] = {name: (ours(name), block(name)) for name in STEPS}

    def exact() -> Iterator[set[int]]:
        yield from exact_copies([b"".join(digest(row.text) for row in rows)])

    def signatures() -> Iterator[None]:
        yield sign(rows, scratch / "ours", 0)

    def their_signatures() -> Iterator[None]:
        yield MinhashDedupSignature(str(scratch / "theirs"), CONFIG, language=WORDS).run(
            documents()
        )

    index = scratch / "index"
    judge = Contamination(index, {"heldout": heldout()}).judge
    found["exact-copies"] = (exact, None)
    found["near-copies (signatures)"] = (signatures, their_signatures)
    found["decontamination"] = (
        lambda: (judge(document) for document in documents()),
        lambda: NGramsDecontFilter(str(index), language=WORDS).run(documents()),
    )
    found["files to files"] = (
        lambda: whole(scratch),
        lambda: their_whole(scratch, [make() for make in blocks.values()]),
    )
    return found


def heldout() -> list[str]:
    """What the embedded model is evaluated on."""
    return [row.text for row in read_shards(shard_paths(project_home() / "pile" / "heldout"))]


def whole(scratch: Path) -> Iterator[Any]:
    """Read, clean with the steps that datatrove has too, and write."""
    from trainer.preparation.sources import sources_of
    from trainer.preparation.stages import clean_source

    (scratch / "work" / "clean").mkdir(parents=True, exist_ok=True)
    (source,) = sources_of([str(scratch / "source")])
    steps = ("gopher-quality", "gopher-repetition", "c4", "pii")
    yield clean_source(scratch / "work", 0, source, steps, ("en",))


def their_whole(scratch: Path, blocks: list[Any]) -> Iterator[Any]:
    """The same as a pipeline of datatrove: its reader, blocks and writer, one after the other."""
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    documents: Any = JsonlReader(str(scratch / "source"), compression="zstd").run()
    for block in blocks:
        documents = block.run(documents)
    yield from JsonlWriter(str(scratch / "written"), compression="zstd").run(documents)


def show(report: Report) -> None:
    """Rates, side by side."""
    rows = []
    for name, sides in report.figures.items():
        if isinstance(sides, dict):
            rates = [
                f"{sides[side]['median']:.1f}" if side in sides else "-"
                for side in ("feedloom", "datatrove")
            ]
            rows.append([name, *rates])
    table("MB/s of one core", {"step": "left", "feedloom": "right", "datatrove": "right"}, rows)


main = command(measure, name="bench_pile", description=__doc__)

if __name__ == "__main__":
    main()
