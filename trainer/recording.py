"""What a round of training leaves for people: metrics, TensorBoard files, a bar, its report.

Watches; decides nothing. Learnt of by the service, unknown to the round.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from infra.contracts.config_sections import TrainerConfig
from infra.settings import Settings
from observability.instruments import (
    DROPPED_EXAMPLES,
    ERROR_TYPE,
    FEEDBACK_EXAMPLES,
    FORGETTING,
    GATE,
    GATES,
    GRADIENT_NORM,
    HELDOUT_LOSS,
    LEARNING_RATE,
    MODEL,
    MOMENT,
    OBJECTIVE,
    OUTCOME,
    REASON,
    ROUND_DURATION,
    ROUNDS,
    ROUNDS_OPEN,
    STEP_LOSS,
    TRAINED_TOKENS,
    TRAINING_SPEED,
    TRAINING_STEPS,
    VERSION,
    WIN_RATE,
    bounded_version,
)
from trainer.curation import Curated
from trainer.findings import report_of
from trainer.progress import training_bar
from trainer.report import REPORT, Sample, write_report
from trainer.rounds import Trained
from trainer.run_folders import new_run, note_shown, prune
from trainer.training import PART, Progress, TrainingStopped

SAMPLES = 6
FLUSH_S = 10


class RoundRecord:
    """Of one round; a context manager around it, whose ``progress`` the round is given.

    A round that ends without :meth:`finish` had nothing to train on, or failed.
    """

    def __init__(
        self,
        settings: Settings,
        config: TrainerConfig,
        curated: Curated,
        *,
        model: str,
        version: str,
        parent: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._config = config
        self._curated = curated
        self._names = {"model": model, "version": version, "parent": parent}
        self._attributes = {MODEL: model}
        self._clock = clock
        self._began = clock()
        self._stack = ExitStack()
        self._trained: Trained | None = None
        self._history: list[dict[str, float]] = []
        self._last = (0, 0)

    def __enter__(self) -> Self:
        root = self._settings.runs
        self.folder = new_run(
            root,
            model=self._names["model"],
            version=self._names["version"],
            now=datetime.now(UTC),
        )
        self._writer = SummaryWriter(str(self.folder), flush_secs=FLUSH_S)
        self._stack.callback(self._writer.close)
        self._show = self._stack.enter_context(training_bar())
        for reason, count in self._curated.dropped.items():
            DROPPED_EXAMPLES.add(count, {**self._attributes, REASON: reason})
        ROUNDS_OPEN.add(1, self._attributes)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()
        ROUNDS_OPEN.add(-1, self._attributes)
        outcome = self._outcome(exc)
        attributes = {**self._attributes, OUTCOME: outcome}
        ROUND_DURATION.record(self._clock() - self._began, attributes)
        if exc is not None and not isinstance(exc, TrainingStopped):
            attributes[ERROR_TYPE] = type(exc).__qualname__
        ROUNDS.add(1, attributes)
        if outcome in ("empty", "stopped"):
            # Nothing to see, and it would push out what there is.
            shutil.rmtree(self.folder, ignore_errors=True)
        prune(self._settings.runs, self._names["model"], keep=self._config.save_total_limit)

    def progress(self, now: Progress) -> None:
        """Take note of a step."""
        self._show(now)
        values = {"loss": now.loss} | {f"{PART}{name}": loss for name, loss in now.parts.items()}
        values |= {"learning_rate": now.learning_rate, "grad_norm": now.grad_norm}
        self._history.append({"step": float(now.step), **values})
        for name, value in (*values.items(), ("tokens_per_s", now.tokens_per_s)):
            self._writer.add_scalar(f"train/{name}", value, now.step)
        step, tokens = self._last
        self._last = (now.step, now.tokens)
        TRAINING_STEPS.add(now.step - step, self._attributes)
        TRAINED_TOKENS.add(now.tokens - tokens, self._attributes)
        LEARNING_RATE.set(now.learning_rate, self._attributes)
        GRADIENT_NORM.set(now.grad_norm, self._attributes)
        TRAINING_SPEED.set(now.tokens_per_s, self._attributes)
        for objective, loss in (("all", now.loss), *now.parts.items()):
            STEP_LOSS.set(loss, {**self._attributes, OBJECTIVE: objective})

    def finish(self, trained: Trained) -> None:
        """Take note of what came of it, and write the run folder's report."""
        self._trained = trained
        self._count_examples(trained)
        self._note_marks(trained)
        self._note_verdicts(trained)
        shown = trained.samples[:SAMPLES]
        # First: a report without it could not be found again when somebody asks to be forgotten.
        note_shown(self.folder, [one.request_id for one in shown if one.request_id is not None])
        self.write(self.folder, [*shown, *trained.safety_samples[:2]])

    def write(self, folder: Path, samples: Sequence[Sample] | None = None) -> Path:
        """The report in a folder that is published: it shows nobody's prompts.

        What is published is kept for good, and a prompt may have to be forgotten. Not before
        :meth:`finish`.
        """
        assert self._trained is not None
        if samples is None:
            samples = self._trained.safety_samples[:SAMPLES]
        report = report_of(
            self._trained,
            self._curated,
            self._config,
            **self._names,
            history=self._history,
            samples=samples,
        )
        write_report(folder / REPORT, report)
        return folder / REPORT

    def _count_examples(self, trained: Trained) -> None:
        kinds = {
            "sft": self._curated.completions,
            "dpo": self._curated.preferences,
            "kto": self._curated.ratings,
        }
        for objective in trained.objective.split("+"):
            attributes = {**self._attributes, OBJECTIVE: objective}
            FEEDBACK_EXAMPLES.add(len(kinds[objective]), attributes)

    def _note_marks(self, trained: Trained) -> None:
        attributes = {**self._attributes, VERSION: bounded_version(self._names["version"])}
        for moment, step in (("before", 0), ("after", trained.steps)):
            loss = trained.metrics[f"heldout_loss_{moment}"]
            HELDOUT_LOSS.set(loss, {**attributes, MOMENT: moment})
            for name, value in trained.metrics.items():
                measure, _, pile_set = name.partition("/")
                if measure.endswith(f"_{moment}"):
                    tag = measure.removesuffix(f"_{moment}")
                    tag += f"/{pile_set}" if pile_set else ""
                    self._writer.add_scalar(f"eval/{tag}", value, step)
        for name in ("win_rate", "preference_accuracy"):
            if name in trained.metrics:
                self._writer.add_scalar(f"eval/{name}", trained.metrics[name], trained.steps)
        if "win_rate" in trained.metrics:
            WIN_RATE.set(trained.metrics["win_rate"], attributes)

    def _note_verdicts(self, trained: Trained) -> None:
        for check in trained.gate.checks:
            outcome = "passed" if check.passed else "failed"
            GATES.add(1, {**self._attributes, GATE: check.name, OUTCOME: outcome})
            if check.name == "forgetting":
                FORGETTING.set(check.value, self._attributes)

    def _outcome(self, exc: BaseException | None) -> str:
        if exc is not None:
            return "stopped" if isinstance(exc, TrainingStopped) else "failed"
        if self._trained is None:
            return "empty"
        return "passed" if self._trained.gate.passed else "rejected"
