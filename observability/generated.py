"""Files under ``infra/deploy/observability`` that are made from code, and how they are kept so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

FOLDER = Path(__file__).parents[1] / "infra" / "deploy" / "observability"


def stale(contents: Mapping[Path, str], folder: Path = FOLDER) -> list[Path]:
    """Paths whose file is missing or says something else."""
    return [
        path
        for path, text in contents.items()
        if not (folder / path).is_file() or (folder / path).read_text() != text
    ]


def write(contents: Mapping[Path, str], folder: Path = FOLDER) -> None:
    """Every file, in place of what was there."""
    for path, text in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def command(contents: Callable[[], Mapping[Path, str]]) -> click.Command:
    """Names stale files and ends with 1 if there are any; with ``--write`` writes them."""

    @click.command()
    @click.option("--write", "writing", is_flag=True, help="Write the files.")
    def main(writing: bool) -> None:
        made = contents()
        found = stale(made)
        for path in found:
            click.echo(f"{'wrote' if writing else 'stale'}: {FOLDER / path}")
        if writing:
            write(made)
        elif found:
            raise SystemExit(1)

    return main
