"""Settings: where they come from, and how a mistake reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.contracts.errors import ConfigurationError
from infra.settings import load_settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_variables_win_over_the_file_and_the_file_over_defaults(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "feedloom.toml").write_text('[worker]\nmodel = "file"\nmax_num_seqs = 3\n')
    monkeypatch.setenv("FEEDLOOM_WORKER__MODEL", "variable")
    settings = load_settings()
    assert (settings.worker.model, settings.worker.max_num_seqs) == ("variable", 3)
    assert settings.trainer.model == "default"


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("FEEDLOOM_WORKR__MODEL", "x", "FEEDLOOM_WORKR__MODEL"),
        ("FEEDLOOM_WORKER__MODLE", "x", "worker.modle"),
        ("FEEDLOOM_WORKER__MAX_NUM_SEQS", "none", "worker.max_num_seqs"),
        ("FEEDLOOM_KAFKA__SECURITY_PROTOCOL", "TLS", "kafka.security_protocol"),
        ("FEEDLOOM_CONFIG", "nowhere.toml", "nowhere.toml"),
    ],
)
def test_a_mistake_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=complaint):
        load_settings()


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(load_settings(kafka={"sasl_password": "hunter2"}))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom infra.cli import cli\n"
        "outcome = CliRunner().invoke(cli, ['--help'])\n"
        "assert outcome.exit_code == 0 and 'generate' in outcome.output, outcome.output\n"
        "print({'torch', 'vllm', 'faust', 'transformers', 'kafka', 'pydantic'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.strip() == "set()", finished.stderr
