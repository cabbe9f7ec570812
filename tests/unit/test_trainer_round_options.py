"""Settings of a round by option and YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from infra.contracts.config_keys import InvalidSetting, Value
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import ConfigurationError
from trainer.round_options import read_options, round_options

SEED_RECIPE = """
num_train_epochs: 2
per_device_train_batch_size: 4
per_device_eval_batch_size: 8
warmup_steps: 3
weight_decay: 0.1
logging_dir: runs/here
save_total_limit: 1
bf16: false
fp16: true
"""


def parsed(*arguments: str) -> tuple[dict[str, Value], Path | None]:
    found: list[tuple[dict[str, Value], Path | None]] = []

    @click.command()
    @round_options
    def program(config: Path | None, **given: Any) -> None:
        found.append(read_options(config, given))

    result = CliRunner().invoke(program, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return found[0]


def test_nothing_given_pins_nothing() -> None:
    assert parsed() == ({}, None)


def test_every_name_of_the_recipe_works_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(SEED_RECIPE)
    values, folder = parsed("--config", str(path))
    assert values == {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "save_total_limit": 1,
        "bf16": False,
        "fp16": True,
    }
    assert folder == Path("runs/here")


def test_every_setting_has_an_option() -> None:
    for entry in msgspec.structs.fields(TrainerConfig):
        flag = "--" + entry.name.replace("_", "-")
        default: Any = entry.default
        arguments = [flag] if isinstance(default, bool) else [flag, str(default)]
        values, _ = parsed(*arguments)
        assert values == {entry.name: True if isinstance(default, bool) else default}


def test_options_come_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "round.yaml"
    path.write_text("learning_rate: 0.1\nbf16: true\nlogging_dir: a\n")
    values, folder = parsed(
        "--config", str(path), "--learning-rate", "1e-4", "--no-bf16", "--logging-dir", "b"
    )
    assert values == {"learning_rate": 1e-4, "bf16": False}
    assert folder == Path("b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learning_rat: 0.1", "trainer.learning_rate"),
        ("learning_rate: 7", "a number from 1e-09 to 1.0"),
        ("learning_rate: fast", "a number from 1e-09 to 1.0"),
        ("bf16: 1", "true or false"),
        ("learning_rate: null", "null"),
        ("- learning_rate", "round.yaml"),
        ("learning_rate: [", "round.yaml"),
        ("logging_dir: 7", "logging_dir must be a folder"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "round.yaml"
    path.write_text(text)
    with pytest.raises((ConfigurationError, InvalidSetting), match=says.replace(".", r"\.")):
        parsed("--config", str(path))
