"""The settings of ``trainer.*`` as options and as a YAML file, for one process. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from infra.contracts.config_keys import CATALOGUE, Value, parse_value
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import ConfigurationError
from trainer.recipe import read_yaml

SECTION = "trainer"
LOGGING_DIR = "logging_dir"
"""Not of the catalogue, for it is a place on one machine; but a name of ``TrainingArguments``."""


def round_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--config``, ``--logging-dir`` and an option for each setting; none given, none passed."""
    for entry in reversed(msgspec.structs.fields(TrainerConfig)):
        known = CATALOGUE[f"{SECTION}.{entry.name}"]
        flag = "--" + entry.name.replace("_", "-")
        if isinstance(known.default, bool):
            option = click.option(
                f"{flag}/--no-{flag[2:]}", entry.name, default=None, help=known.description
            )
        else:
            option = click.option(
                flag, entry.name, metavar="NUMBER", help=f"{known.description} {known.accepts}."
            )
        function = option(function)
    function = click.option(
        "--logging-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Each round's report and TensorBoard files, a folder each.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="YAML file of these names, as trainer.* has them; options come before it.",
    )(function)


def read_options(
    config: Path | None, given: Mapping[str, Any]
) -> tuple[dict[str, Value], Path | None]:
    """What file and options say of ``trainer.*``, and the logging folder; options come first.

    Raises:
        ConfigurationError: the file is no mapping, or holds a folder that is no text.
        InvalidSetting: a name or value that the catalogue does not accept; says what would do.
    """
    said: dict[str, Any] = {} if config is None else read_yaml(config, dict[str, Any])
    said |= {name: value for name, value in given.items() if value is not None}
    folder = said.pop(LOGGING_DIR, None)
    if folder is not None and not isinstance(folder, str | Path):
        raise ConfigurationError(f"{LOGGING_DIR} must be a folder, not {folder!r}")
    values = {name: parse_value(f"{SECTION}.{name}", value) for name, value in said.items()}
    return values, None if folder is None else Path(folder)
