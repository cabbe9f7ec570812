"""Tasks of EleutherAI's language-model evaluation harness (lm-eval), asked of one version.

An optional extra: it brings scipy, scikit-learn and more, and its own tasks fetch their data from
the hub. Tasks in YAML files of one's own may read local data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra.contracts.errors import ConfigurationError
from trainer.model import load_model
from trainer.tokenizer import load_tokenizer

EXTRA = "feedloom[lm-eval]"


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One measure of one task. ``error``: standard error, where the harness has one."""

    task: str
    metric: str
    value: float
    error: float | None
    samples: int


def evaluate_tasks(
    model: Path,
    tasks: Sequence[str],
    *,
    directory: Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
    seed: int = 17,
) -> list[TaskScore]:
    """A saved model's scores. ``directory`` holds tasks of one's own; ``limit``: documents a task.

    Raises ConfigurationError when the harness is not installed, or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigurationError(
            f"the evaluation harness is missing ({error}): `pip install '{EXTRA}'`"
        ) from error
    manager, unknown = None, list(tasks)
    if directory is not None:
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        # The harness's own are thousands of files: read only if they are asked for.
        manager = TaskManager(include_path=None if directory is None else str(directory))
        unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown:
        raise ConfigurationError(f"the evaluation harness knows no task {', '.join(unknown)}")
    found: Any = simple_evaluate(
        model=HFLM(
            pretrained=load_model(model),
            tokenizer=load_tokenizer(model),
            device="cuda" if torch.cuda.is_available() else "cpu",
            batch_size=batch_size,
        ),
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=fewshot,
        limit=limit,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
        log_samples=False,
        bootstrap_iters=0,
    )
    return [
        score
        for task, values in sorted(found["results"].items())
        for score in _scores(task, values, found["n-samples"].get(task, {}))
    ]


def _scores(task: str, values: dict[str, Any], samples: dict[str, int]) -> list[TaskScore]:
    """The harness names a measure ``name,filter`` and its error ``name_stderr,filter``."""
    scores = []
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{name}_stderr,{kind}")
        scores.append(
            TaskScore(
                task=task,
                metric=name if kind == "none" else f"{name} ({kind})",
                value=float(value),
                error=float(error) if isinstance(error, int | float) else None,
                samples=int(samples.get("effective", 0)),
            )
        )
    return scores
