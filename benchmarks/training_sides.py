"""The two sides of a training race: the trainer's own paths, and a loop that one writes by hand.

Both see the same batches in the same order, from the same weights. A side is timed from the end of
its ``WARM``-th step to the end of its last, and tells its mean loss, which must be the other's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from trainer import architectures
from trainer.alignment import Weights
from trainer.architectures import Architecture, Shape
from trainer.packing import IGNORED
from trainer.pretraining import pretrain
from trainer.run import Run
from trainer.training import Progress, Task, TrainingPlan, train

WARM = 5
"""Steps that are not timed. The trainer also looks at the loss after every so many."""
RECORDED = "recorded"

LossOf = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """``seconds``: of the steps after the warm ones. ``loss``: mean over all steps.

    ``cpu_s``: of all threads, in the same time.
    """

    seconds: float
    cpu_s: float
    loss: float


class Watch:
    """When each step ended."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[float, float]] = {}

    def note(self, step: int) -> None:
        """``step`` has just ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._at[step] = time.perf_counter(), time.process_time()

    def timing(self, loss: float, *, since: int = WARM) -> Timing:
        """From the end of step ``since`` to the end of the last noted one."""
        begin, end = self._at[since], self._at[max(self._at)]
        return Timing(seconds=end[0] - begin[0], cpu_s=end[1] - begin[1], loss=loss)


def bare(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    loss_of: LossOf,
    *,
    bf16: bool,
    max_grad_norm: float,
) -> Timing:
    """The loop of a PyTorch tutorial. The batches lie ready, which costs it nothing."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    losses, watch = [], Watch()
    for step, batch in enumerate(batches, start=1):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(model, _moved(batch, device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step in (WARM, len(batches)):
            watch.note(step)
    return watch.timing(float(torch.stack(losses).mean()))


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, list):
        return [_moved(value, device) for value in batch]
    return batch.to(device)


def adamw(
    model: Any, *, rate: float, weight_decay: float, betas: tuple[float, float], all_decay: bool
) -> torch.optim.Optimizer:
    """Fused AdamW; without ``all_decay`` only matrices decay, as transformers has it."""
    parameters = list(model.parameters())
    still = [one for one in parameters if one.ndim < 2 and not all_decay]
    chosen = {id(one) for one in still}
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if id(one) not in chosen]},
        {"params": still, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=rate,
        betas=betas,
        weight_decay=weight_decay,
        fused=True,
    )


def own_loss(model: Any, batch: Any) -> torch.Tensor:
    """The loss that a model of transformers works out of its labels."""
    loss = model(**batch, use_cache=False).loss
    assert isinstance(loss, torch.Tensor)
    return loss


def feedback_loss(weights: Weights) -> LossOf:
    """Language modelling, DPO and KTO, written anew: the trainer's must come to the same."""

    def of(model: Any, step: Any) -> torch.Tensor:
        (batch,) = step
        parts = []
        if "packed" in batch:
            rows = batch["packed"]
            counted = rows["weights"][:, 1:]
            nats = _nats(model, rows, "position_ids")
            parts.append((nats * counted).sum() / counted.sum())
        if "pairs" in batch:
            rows = batch["pairs"]
            good, bad = (-_nats(model, rows).sum(1) - rows["reference"]).chunk(2)
            parts.append(weights.dpo * -logsigmoid(weights.beta * (good - bad)).mean())
        if "rated" in batch:
            rows, others = batch["rated"], batch["mismatched"]
            with torch.no_grad():
                left = (-_nats(model, others).sum(1) - others["reference"]).mean().clamp(min=0)
            ratio = -_nats(model, rows).sum(1) - rows["reference"] - left
            signed = torch.where(rows["desirable"], ratio, -ratio)
            value = 1 - torch.sigmoid(weights.beta * signed)
            parts.append(weights.kto * (rows["weights"] * value).mean())
        return torch.stack(parts).sum()

    return of


def _nats(model: Any, rows: Any, beside: str = "attention_mask") -> torch.Tensor:
    """Of each token but the first: [rows, length - 1], 0 where no label counts."""
    inputs = {"input_ids": rows["input_ids"], beside: rows[beside]}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    labels = rows["labels"][:, 1:]
    return cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)


@dataclass(frozen=True, kw_only=True)
class _Recorded(Architecture):
    """A family that keeps the batches which its collator makes."""

    batches: list[Any]

    def collator(self, shape: Shape) -> Any:
        collate = super().collator(shape)

        def kept(blocks: Any) -> Any:
            self.batches.append(collate(blocks))
            return self.batches[-1]

        return kept


def pretrained(run: Run) -> Timing:
    """``trainer.pretraining.pretrain``, between its reports of progress."""
    watch = Watch()

    def say(what: str, done: float, total: float) -> None:
        if what.startswith("training"):
            watch.note(int(done))

    scores = pretrain(run, say)
    assert scores.train_loss is not None
    return watch.timing(scores.train_loss)


def pretraining_batches(run: Run) -> list[Any]:
    """What :func:`pretrained` trains on, in order."""
    family = architectures.architecture(run.arch)
    recorded = _Recorded(name=RECORDED, objective=family.objective, build=family.build, batches=[])
    with patch.dict(architectures.ARCHITECTURES, {RECORDED: recorded}):
        pretrain(replace(run, arch=RECORDED, out=run.out.with_name(RECORDED)))
    return recorded.batches[: run.recipe.max_steps]


def fine_tuned(model: Any, task: Task, plan: TrainingPlan) -> Timing:
    """``trainer.training.train``, between its reports of progress."""
    watch = Watch()
    seen: list[tuple[int, float]] = [(0, 0.0)]

    def progress(now: Progress) -> None:
        watch.note(now.step)
        seen.append((now.step, now.loss))

    outcome = train(model, task, plan, progress=progress, stop=threading.Event())
    # Each report tells the mean since the one before.
    whole = sum(loss * (step - before) for (before, _), (step, loss) in pairwise(seen))
    return watch.timing(whole / outcome.steps)


def whole(model: Any, task: Task, plan: TrainingPlan) -> Timing:
    """``trainer.training.train``, its set-up included."""
    watch = Watch()
    watch.note(0)
    outcome = train(model, task, plan)
    watch.note(outcome.steps)
    return watch.timing(outcome.loss, since=0)


def recorded(task: Task) -> tuple[Task, list[Any]]:
    """The task, and a list that its batches will be in once it has been trained on."""
    batches: list[Any] = []
    collate = task.collate
    assert collate is not None

    def kept(items: Any) -> Any:
        batches.append(collate(items))
        return batches[-1]

    return replace(task, collate=kept), batches


def level_plan(*, steps: int, rate: float, bf16: bool, seed: int) -> TrainingPlan:
    """A plan whose rate neither rises nor falls, so that a loop without a schedule can follow."""
    return TrainingPlan(
        learning_rate=rate, seconds=1e6, seed=seed, steps=steps, warmup=1, decay=0.0, bf16=bf16
    )


def shape_of(run: Run, tokenizer: Any) -> Shape:
    """Of the model that ``pretrain`` makes for the run."""
    return Shape(
        vocabulary=len(tokenizer),
        end=tokenizer.eos_token_id,
        padding=tokenizer.pad_token_id,
        context=run.context,
        width=run.width,
        layers=run.layers,
        heads=run.heads,
    )


def data_folder(folder: Path, rows: Sequence[Any], heldout: Sequence[Any]) -> Path:
    """The rows as ``feedloom pile prepare`` leaves them."""
    from trainer.pile import write_shards

    write_shards(folder / "train", rows)
    write_shards(folder / "heldout", heldout)
    return folder
