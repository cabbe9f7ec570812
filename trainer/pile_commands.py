"""``feedloom pile``: text for training, prepared and looked at. Heavy imports once it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trainer.preparation.report import Report

STEP_NAMES = ("language", "gopher-quality", "gopher-repetition", "c4", "pii")


@click.group()
def pile() -> None:
    """Prepare, inspect and count text in the format of the Pile."""


@pile.command()
@click.argument("sources", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Result folder."
)
@click.option("--size-mb", type=click.FloatRange(min=0, min_open=True), help="Text to take.")
@click.option(
    "--weight", "weights", multiple=True, metavar="SET=W", help="Share of a set; repeatable."
)
@click.option(
    "--weights-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON object of shares instead of the Pile's.",
)
@click.option(
    "--skip", "skipped", multiple=True, type=click.Choice(STEP_NAMES), help="Leave a step out."
)
@click.option("--language", "languages", multiple=True, default=("en",), show_default=True)
@click.option("--heldout", type=click.FloatRange(0, 0.5), default=0.01, show_default=True)
@click.option("--max-malformed", type=click.FloatRange(0, 1), default=0.01, show_default=True)
@click.option(
    "--eval",
    "evaluation",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Shards, or a folder of them, that training text must not contain.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; one a core by default.")
@click.option("--quiet", is_flag=True, help="No progress, no report.")
def prepare(
    sources: tuple[str, ...],
    out: Path,
    size_mb: float | None,
    weights: tuple[str, ...],
    weights_file: Path | None,
    skipped: tuple[str, ...],
    languages: tuple[str, ...],
    heldout: float,
    max_malformed: float,
    evaluation: tuple[Path, ...],
    workers: int | None,
    quiet: bool,
) -> None:
    """Clean, deduplicate, decontaminate and mix SOURCES into shards.

    A source is a file or folder (.jsonl, .jsonl.zst, .jsonl.gz, .parquet), hub:NAME[:SPLIT], or
    "machine": text that is on this machine. What the trainer evaluates on is kept out by itself.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn

    from infra.cores import available
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from trainer.pile import shard_paths
    from trainer.preparation.prepare import Plan
    from trainer.preparation.prepare import prepare as run
    from trainer.preparation.sources import sources_of
    from trainer.progress import bar

    settings = load_settings()
    sets = {name: shard_paths(settings.shards / name) for name in ("heldout", "demo")}
    for path in evaluation:
        sets[path.name.split(".")[0]] = shard_paths(path) if path.is_dir() else [path]
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        sources=sources_of(sources),
        directory=out,
        steps=[name for name in STEP_NAMES if name not in skipped],
        languages=languages,
        weights=_weights(weights_file, weights),
        size_bytes=None if size_mb is None else int(size_mb * 1_000_000),
        heldout_share=heldout,
        max_malformed=max_malformed,
        evaluation={name: paths for name, paths in sets.items() if paths},
        workers=workers or len(available()),
    )
    with (
        configure_telemetry("feedloom-trainer", settings.telemetry),
        bar(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), quiet=quiet) as say,
    ):
        report = run(plan, say)
    if not quiet:
        _show(report, out)


def _weights(file: Path | None, named: Sequence[str]) -> dict[str, float]:
    from infra.contracts.errors import ConfigurationError
    from trainer.preparation.mixture import PILE_WEIGHTS

    found: dict[str, float] = dict(PILE_WEIGHTS)
    if file is not None:
        try:
            read = json.loads(file.read_text())
            found = {str(name): float(weight) for name, weight in read.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"{file} must be a JSON object of set names and numbers: {error}"
            ) from error
    for text in named:
        name, equals, weight = text.rpartition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ConfigurationError(f"--weight {text!r} is not SET=NUMBER")
    for name, value in found.items():
        if not 0 <= value < float("inf"):
            raise ConfigurationError(f"the weight of {name!r} is {value}, not a number from 0 up")
    return found


def _show(report: Report, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    steps = Table(title="steps", title_justify="left")
    for column in ("step", "documents in", "out", "MB in", "out", "MB/s a core"):
        steps.add_column(column, justify="left" if column == "step" else "right")
    for one in report.steps:
        steps.add_row(
            one.name,
            f"{one.documents_in:,}",
            f"{one.documents_out:,}",
            f"{one.bytes_in / 1e6:.2f}",
            f"{one.bytes_out / 1e6:.2f}",
            f"{one.bytes_in / 1e6 / one.seconds:.1f}" if one.seconds else "",
        )
    console.print(steps)
    for one in report.steps:
        if one.dropped:
            reasons = sorted(one.dropped.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{reason} {number:,}" for reason, number in reasons[:4])
            more = f", {len(reasons) - 4} more" if len(reasons) > 4 else ""
            click.echo(f"{one.name} dropped: {shown}{more}")
    total = sum(one.bytes for one in report.sets.values()) or 1
    sets = Table(title="mixture", title_justify="left")
    for column in ("set", "documents", "MB", "share", "of MB there"):
        sets.add_column(column, justify="left" if column == "set" else "right")
    for name, found in sorted(report.sets.items(), key=lambda item: -item[1].bytes):
        sets.add_row(
            name,
            f"{found.documents:,}",
            f"{found.bytes / 1e6:.2f}",
            f"{found.bytes / total:.1%}",
            f"{found.bytes_available / 1e6:.2f}",
        )
    console.print(sets)
    click.echo(
        f"{out}: {len(report.train)} shards for training, {report.heldout_documents} documents "
        f"held out, {report.malformed} malformed lines, {report.seconds:.0f} s"
    )


@pile.command()
@click.argument("shards", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Folder of a model or tokenizer.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Result folder."
)
@click.option("--size", type=click.IntRange(min=2), default=512, show_default=True)
@click.option("--quiet", is_flag=True, help="No progress.")
def tokenize(shards: Path, tokenizer: Path, out: Path, size: int, quiet: bool) -> None:
    """Turn the documents of SHARDS into packed blocks of --size tokens, to be memory-mapped.

    Blocks hold several documents, and attention does not cross from one to the next. A run that
    was broken off goes on where it was.
    """
    from rich.progress import SpinnerColumn, TimeElapsedColumn

    from infra.contracts.errors import ConfigurationError
    from trainer.pile import read_shards, shard_paths
    from trainer.progress import bar
    from trainer.tokenizer import load_tokenizer
    from trainer.tokens.writing import write_token_shards

    paths = shard_paths(shards)
    if not paths:
        raise ConfigurationError(f"{shards} holds no shard: `feedloom pile prepare` writes them")
    loaded = load_tokenizer(tokenizer)
    with bar(SpinnerColumn(), TimeElapsedColumn(), quiet=quiet) as say:
        manifest = write_token_shards(
            out,
            (row.text for row in read_shards(paths)),
            loaded,
            size=size,
            progress=lambda documents, tokens: say(
                f"{documents:,} documents, {tokens:,} tokens", 0, 0
            ),
        )
    if not quiet:
        click.echo(
            f"{out}: {manifest.documents:,} documents, {manifest.tokens:,} tokens in "
            f"{len(manifest.shards)} shards, {manifest.dropped} left over"
        )


@pile.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--count", "-n", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--set", "name", help="Only this pile_set_name.")
@click.option("--characters", type=click.IntRange(min=1), default=400, show_default=True)
def inspect(sources: tuple[str, ...], count: int, name: str | None, characters: int) -> None:
    """Show documents of SOURCES as the trainer reads them, and lines that are none."""
    from itertools import islice

    from trainer.preparation.sources import Malformed, read_source, sources_of

    bad: list[Malformed] = []
    rows = (
        row
        for source in sources_of(sources)
        for row in read_source(source, bad.append)
        if name in (None, row.meta.pile_set_name)
    )
    shown = 0
    for row in islice(rows, count):
        shown += 1
        size = len(row.text.encode())
        click.secho(f"--- {row.meta.pile_set_name}, {size:,} bytes", bold=True)
        rest = len(row.text) - characters
        click.echo(row.text[:characters] + (f"... ({rest:,} more characters)" if rest > 0 else ""))
    for one in bad[:count]:
        click.secho(f"--- {one.file}:{one.line}: {one.reason}", fg="yellow")
        click.echo(one.excerpt)
    if not shown:
        click.echo("no such document", err=True)


@pile.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def stats(sources: tuple[str, ...], as_json: bool) -> None:
    """Count documents, bytes and malformed lines of SOURCES, by set."""
    from rich.console import Console
    from rich.table import Table

    from trainer.preparation.sources import Malformed, read_source, sources_of

    counts: dict[str, list[int]] = {}
    malformed = 0

    def bad(_: Malformed) -> None:
        nonlocal malformed
        malformed += 1

    for source in sources_of(sources):
        for row in read_source(source, bad):
            found = counts.setdefault(row.meta.pile_set_name, [0, 0])
            found[0] += 1
            found[1] += len(row.text.encode())
    total = sum(size for _, size in counts.values())
    if as_json:
        sets = {name: {"documents": n, "bytes": size} for name, (n, size) in counts.items()}
        click.echo(json.dumps({"sets": sets, "bytes": total, "malformed": malformed}))
        return
    shown = Table()
    for column in ("set", "documents", "MB", "share", "mean bytes"):
        shown.add_column(column, justify="left" if column == "set" else "right")
    for name, (documents, size) in sorted(counts.items(), key=lambda item: -item[1][1]):
        shown.add_row(
            name,
            f"{documents:,}",
            f"{size / 1e6:.2f}",
            f"{size / total:.1%}",
            f"{size / documents:,.0f}",
        )
    Console().print(shown)
    click.echo(f"{total / 1e6:.2f} MB, {malformed} malformed lines")
