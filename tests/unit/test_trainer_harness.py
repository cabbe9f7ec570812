"""A task of one's own, asked of a tiny model through lm-eval, without the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.contracts.errors import ConfigurationError
from tests.learning import prepare, settings_at
from trainer.harness import evaluate_tasks
from trainer.version_commands import evaluate

WRONG = " seman fo tsil a snruter tI" * 2
DOCUMENTS = [
    {"prompt": "The module", "right": " reads files.", "wrong": WRONG},
    {"prompt": "A class", "right": " holds values.", "wrong": WRONG},
]
TASK = """
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(settings_at(tmp_path_factory.mktemp("home")))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "words.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "words.yaml").write_text(TASK.format(data=data))
    return folder


def test_a_task_of_ones_own_is_scored(model: Path, tasks: Path) -> None:
    (score,) = evaluate_tasks(model, ["words"], directory=tasks)
    # Any model finds the shorter of two texts it knows nothing of more likely.
    assert (score.task, score.metric, score.value, score.samples) == ("words", "acc", 1.0, 2)


def test_the_command_prints_a_line_a_measure(model: Path, tasks: Path) -> None:
    outcome = CliRunner().invoke(
        evaluate, [str(model), "--task", "words", "--tasks-dir", str(tasks), "--limit", "1"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert "1.0000 (1 samples)" in outcome.output


def test_an_unknown_task_is_named(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="no task nonesuch"):
        evaluate_tasks(model, ["nonesuch"])
