"""The command line as a whole: every command answers --help, and mistakes are one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra import cli
from infra.contracts.errors import ConfigurationError, FeedloomError
from trainer.commands import models

HEAVY = ("torch", "vllm", "faust", "transformers", "aiokafka", "kafka", "pydantic", "jgo")


def test_every_command_has_a_summary_and_the_other_way_round() -> None:
    names = sorted(entry.name for entry in entry_points(group=cli.GROUP))
    assert names == sorted(cli.SUMMARIES)
    context = cli.cli.make_context("feedloom", [], resilient_parsing=True)
    assert cli.cli.list_commands(context) == [name for name in names if "." not in name]


@pytest.mark.parametrize("command", sorted(cli.SUMMARIES))
def test_help_of_a_command_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom infra.cli import cli\n"
        f"outcome = CliRunner().invoke(cli, [*{command.split('.')!r}, '--help'])\n"
        "assert outcome.exit_code == 0, outcome.output\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert finished.stdout.strip() == "[]", finished.stderr


def test_a_command_is_added_to_the_group_of_another_package() -> None:
    outcome = CliRunner().invoke(cli.cli, ["models", "--help"])
    listed = [line.split()[0] for line in outcome.output.splitlines() if line.startswith("  ")]
    assert {"list", "promote", "replay"} <= set(listed)
    assert cli.SUMMARIES["models.replay"] in outcome.output
    assert "replay" not in models.commands
    assert "Usage: feedloom models replay" in _help("models", "replay")
    assert (
        "No such command 'models.replay'" in CliRunner().invoke(cli.cli, ["models.replay"]).output
    )


def test_help_of_a_group_does_not_load_what_others_added(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = [
        EntryPoint("models", "trainer.commands:models", cli.GROUP),
        EntryPoint("models.replay", "no_such_module:replay", cli.GROUP),
    ]
    monkeypatch.setattr(cli, "entry_points", lambda group: broken)
    assert cli.SUMMARIES["models.replay"] in _help("models")
    assert "show one version" in _help("models", "show").lower()


def _help(*command: str) -> str:
    outcome = CliRunner().invoke(cli.cli, [*command, "--help"], prog_name="feedloom")
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_an_unknown_command_is_named() -> None:
    outcome = CliRunner().invoke(cli.cli, ["genrate"])
    assert outcome.exit_code == 2
    assert "No such command 'genrate'" in outcome.output


def test_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "feedloom.toml").write_text("[worker]\nmodle = 1\n")
    finished = subprocess.run(
        [sys.executable, "-c", "from infra.cli import main; main()", "generate", "hello"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert finished.returncode == 1
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("feedloom: settings: worker.modle")


@pytest.mark.parametrize("error", [FeedloomError("stop"), ConfigurationError("stop")])
def test_an_error_of_ours_ends_with_status_1(
    error: FeedloomError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "cli", failing)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "feedloom: stop\n"


def test_a_part_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)

    def lacking(**_: object) -> None:
        import zstandard  # noqa: F401

    monkeypatch.setattr(cli, "cli", lacking)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "needs zstandard, which is not installed here" in said
    assert "trainer" in said


def test_a_module_of_ours_that_is_missing_is_a_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: object) -> None:
        raise ModuleNotFoundError(name="infra.gone")

    monkeypatch.setattr(cli, "cli", broken)
    with pytest.raises(ModuleNotFoundError):
        cli.main()
