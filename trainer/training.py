"""One training run on the Hugging Face ``Trainer``: for the bootstrap and for the fine-tune.

Given blocks and a model it trains within a budget of steps and seconds. Knows nothing of where
blocks come from, or of what becomes of the model.
"""

from __future__ import annotations

import ctypes
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from infra.contracts.errors import FatalError
from trainer.objectives import stacked
from trainer.optimizers import build_optimizer
from trainer.packing import Block
from trainer.precision import bf16_pays

Clock = Callable[[], float]
LOG_EVERY = 5
PART = "loss_"
"""What a trainer logs under a name that begins so is a part of the loss."""
UNBOUNDED_STEPS = 1_000_000


class TrainingStopped(Exception):
    """The run was asked to stop; the half-trained model is of no use."""


class TrainingDiverged(FatalError):
    """The loss is no longer a number. A lower learning rate may help."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is. ``steps`` and ``eta_s`` are of the whole budget, as the pace tells.

    ``tokens``: trained on so far. ``parts``: of the loss, by name, before they are weighed.
    """

    step: int
    steps: int
    loss: float
    elapsed_s: float
    eta_s: float
    tokens_per_s: float
    fraction: float
    tokens: int = 0
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """How to train. Ends at ``steps`` or after ``seconds``, whichever comes first.

    Rates warm up over ``warmup`` steps and fall linearly to zero over the last ``decay`` of the
    budget, in steps or in time, whichever is further on: so a slower machine still ends its
    schedule. ``seconds`` may be infinite where ``steps`` are not. ``muon_rate`` puts Muon on the
    hidden matrices. ``bf16`` counts where it pays. ``threads``: 0 leaves torch's choice.
    ``logging_steps``: between two reports of the progress.
    """

    learning_rate: float
    seconds: float
    seed: int
    steps: int | None = None
    warmup: int = 20
    decay: float = 0.6
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    muon_rate: float | None = None
    bf16: bool = True
    fp16: bool = False
    compile: bool = False
    threads: int = 0
    logging_steps: int = LOG_EVERY


@dataclass(frozen=True, kw_only=True)
class TrainingOutcome:
    """What a run did. ``loss``: mean over its last tenth, nats a counted token."""

    steps: int
    tokens: int
    loss: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained on, and by which loss: ``batch_size`` items of ``dataset`` a step.

    ``steps``: of one pass over it. ``options``: of the ``trainer``, beside the usual ones.
    """

    dataset: Any
    batch_size: int
    tokens_per_step: int
    steps: int
    collate: Callable[[Any], Any] | None = None
    trainer: type[Trainer] = Trainer
    options: dict[str, Any] = field(default_factory=dict)


def packed(blocks: Sequence[Block], batch_size: int) -> Task:
    """Language modelling on blocks, all tokens alike. Raises ValueError for no blocks."""
    if not blocks:
        raise ValueError("nothing to train on")
    batch = min(batch_size, len(blocks))
    return Task(
        dataset=Rows(blocks),
        batch_size=batch,
        tokens_per_step=batch * len(blocks[0].tokens),
        steps=-(-len(blocks) // batch),
    )


class Budget:
    """How much of a run is spent, and the learning-rate factor there. Starts at first use.

    Of a model that is compiled, the first step is not counted: compiling takes half a minute, and
    minutes on a busy machine, and would leave no time to learn in.
    """

    def __init__(self, plan: TrainingPlan, clock: Clock) -> None:
        self._plan = plan
        self._clock = clock
        self._start: float | None = None
        self.steps = 0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first look."""
        now = self._clock()
        if self._start is None:
            self._start = now
        return now - self._start

    def stepped(self, steps: int) -> None:
        """So many steps are done."""
        if self._plan.compile and not self.steps:
            self._start = self._clock()
        self.steps = steps

    @property
    def fraction(self) -> float:
        """0 to 1: of the steps or of the time, the larger."""
        spent = self.elapsed_s / self._plan.seconds
        if self._plan.steps is not None:
            spent = max(spent, self.steps / self._plan.steps)
        return min(1.0, spent)

    def factor(self) -> float:
        """What the rates are multiplied by now."""
        rising = min(1.0, (self.steps + 1) / max(1, self._plan.warmup))
        falling = min(1.0, (1.0 - self.fraction) / max(self._plan.decay, 1e-9))
        return rising * max(falling, 0.01)


def train(
    model: Any,
    task: Task,
    plan: TrainingPlan,
    *,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    clock: Clock = time.monotonic,
) -> TrainingOutcome:
    """Train ``model`` in place. ``stop`` is looked at after each step.

    A GPU is used if there is one. Sets the process's seeds and, if the plan says so, torch's
    thread count.

    Raises:
        TrainingDiverged: the loss became infinite or no number.
        TrainingStopped: ``stop`` was set.
    """
    set_seed(plan.seed)
    if plan.threads:
        torch.set_num_threads(plan.threads)
    keep_large_buffers()
    budget = Budget(plan, clock)
    follower = _Follower(budget, task.tokens_per_step, progress, stop)
    optimizer = build_optimizer(
        model,
        rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        muon_rate=plan.muon_rate,
    )
    with (
        tempfile.TemporaryDirectory(prefix="feedloom-training-") as scratch,
        caching_restored(model),
    ):
        trainer = task.trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                max_steps=plan.steps or UNBOUNDED_STEPS,
                per_device_train_batch_size=task.batch_size,
                use_cpu=not torch.cuda.is_available(),
                max_grad_norm=plan.max_grad_norm,
                bf16=plan.bf16 and bf16_pays(),
                fp16=plan.fp16,
                remove_unused_columns=False,
                torch_compile=plan.compile,
                logging_strategy="steps",
                logging_steps=plan.logging_steps,
                logging_first_step=True,
                logging_nan_inf_filter=False,
                save_strategy="no",
                disable_tqdm=True,
                seed=plan.seed,
                dataloader_pin_memory=False,
            ),
            train_dataset=task.dataset,
            data_collator=task.collate,
            callbacks=[follower],
            optimizers=(optimizer, LambdaLR(optimizer, lambda _: budget.factor())),
            **task.options,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if stop is not None and stop.is_set():
        raise TrainingStopped
    return follower.outcome()


def finite_loss(state: Any, logs: dict[str, float] | None) -> float | None:
    """The training loss of what transformers logs, if it is of training.

    Raises TrainingDiverged when it is infinite or no number.
    """
    loss = (logs or {}).get("loss")
    if loss is not None and not math.isfinite(loss):
        raise TrainingDiverged(f"the loss at step {state.global_step} is {loss}")
    return loss


@contextmanager
def caching_restored(model: Any) -> Iterator[None]:
    """transformers' Trainer turns ``use_cache`` off in the model's configuration for good.

    Saved like that, whoever generates with the model does so without a cache.
    """
    config = getattr(model, "config", None)
    if config is None:
        yield
        return
    before = getattr(config, "use_cache", None)
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Blocks as tensors of int64, each of the block's length."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._columns = stacked(blocks)

    def __len__(self) -> int:
        return len(self._columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self._columns.items()}


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Watches the budget, keeps the losses, tells of the progress."""

    def __init__(
        self,
        budget: Budget,
        tokens_per_step: int,
        progress: Callable[[Progress], None] | None,
        stop: threading.Event | None,
    ) -> None:
        self._budget = budget
        self._tokens_per_step = tokens_per_step
        self._progress = progress
        self._stop = stop
        self._losses: list[tuple[int, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._budget.stepped(state.global_step)
        stopped = self._stop is not None and self._stop.is_set()
        if stopped or self._budget.fraction >= 1.0:
            control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss, found = finite_loss(state, logs), logs or {}
        if loss is None:
            return
        self._losses.append((state.global_step, loss))
        if self._progress is not None:
            elapsed, fraction = self._budget.elapsed_s, self._budget.fraction
            self._progress(
                Progress(
                    step=state.global_step,
                    steps=round(state.global_step / fraction) if fraction else 0,
                    loss=loss,
                    elapsed_s=elapsed,
                    eta_s=elapsed * (1 / fraction - 1) if fraction else 0.0,
                    tokens_per_s=state.global_step * self._tokens_per_step / max(elapsed, 1e-9),
                    fraction=fraction,
                    tokens=state.global_step * self._tokens_per_step,
                    learning_rate=found.get("learning_rate", 0.0),
                    grad_norm=found.get("grad_norm", 0.0),
                    parts=_parts(found),
                )
            )

    def outcome(self) -> TrainingOutcome:
        steps = self._budget.steps
        last = [loss for step, loss in self._losses if step >= 0.9 * steps] or [
            loss for _, loss in self._losses[-1:]
        ]
        return TrainingOutcome(
            steps=steps,
            tokens=steps * self._tokens_per_step,
            loss=sum(last) / len(last) if last else math.nan,
            seconds=self._budget.elapsed_s,
        )


def _parts(logs: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix(PART): value for name, value in logs.items() if name.startswith(PART)}


def keep_large_buffers() -> None:
    """Tell glibc to keep freed memory.

    By default each activation of a step is mapped anew and returned, and faulting its pages in
    costs a fifth of a small model's step on a CPU (6.7k against 8.6k tokens/s).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD, bytes
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
