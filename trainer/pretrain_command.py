"""``feedloom trainer pretrain``. torch is imported once it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click
import msgspec

from trainer.recipe import Recipe, changed, read_recipe

ARCHITECTURES = ("gpt2", "gptj", "gpt-neox", "llama", "t5", "bert", "roberta", "rnn", "ngram")


def _recipe_options(function: Callable[..., None]) -> Callable[..., None]:
    """An option for each name of the recipe; one that is not given leaves the file's value."""
    hints = get_type_hints(Recipe)
    for entry in reversed(msgspec.structs.fields(Recipe)):
        kind = hints[entry.name]
        flag = "--" + entry.name.replace("_", "-")
        shown = f"Recipe; {entry.default} by default."
        if kind is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", entry.name, default=None, help=shown)
        elif get_origin(kind) is Literal:
            option = click.option(flag, entry.name, type=click.Choice(get_args(kind)), help=shown)
        else:
            parsed: Any = type(entry.default) if entry.default is not None else str
            option = click.option(flag, entry.name, type=parsed, help=shown)
        function = option(function)
    return function


@click.command()
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="llama", show_default=True)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What `feedloom pile prepare` wrote; by default the text of the embedded model.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML file of recipe names; options on the command line come before it.",
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a model or tokenizer; by default one is made of the text.",
)
@click.option("--vocabulary", type=click.IntRange(min=300), default=8192, show_default=True)
@click.option("--context", type=click.IntRange(min=8), default=512, show_default=True)
@click.option("--width", type=click.IntRange(min=8), default=256, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Of this machine, that share the work; one a GPU.",
)
@click.option("--quiet", is_flag=True, help="No progress, no table.")
@_recipe_options
def pretrain(
    arch: str,
    data: Path | None,
    out: Path,
    config: Path | None,
    tokenizer: Path | None,
    vocabulary: int,
    context: int,
    width: int,
    layers: int,
    heads: int,
    processes: int,
    quiet: bool,
    **given: Any,
) -> None:
    """Train a model from scratch on prepared text, and evaluate it.

    Run it again after it was broken off: it goes on from its last checkpoint.
    """
    from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn

    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from trainer.progress import bar
    from trainer.rank import pretrain_in
    from trainer.run import Run

    quiet = quiet or os.environ.get("RANK", "0") != "0"  # under torchrun
    recipe = read_recipe(config) if config is not None else Recipe()
    recipe = changed(recipe, {name: value for name, value in given.items() if value is not None})
    settings = load_settings()
    run = Run(
        arch=arch,
        data=data or settings.shards,
        out=out,
        recipe=recipe,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        context=context,
        width=width,
        layers=layers,
        heads=heads,
    )
    if processes > 1:
        scores = pretrain_in(processes, run, quiet=quiet)
    else:
        from trainer.pretraining import pretrain as train

        with (
            configure_telemetry("feedloom-trainer", settings.telemetry),
            bar(BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), quiet=quiet) as say,
        ):
            scores = train(run, say)
    if not quiet:
        for name, value in json.loads(msgspec.json.encode(scores)).items():
            click.echo(f"{name:18} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items()) or "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "-" if value is None else str(value)
