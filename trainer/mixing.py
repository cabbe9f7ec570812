"""The steps of a run that learns from feedback: what each holds, and the loss of it all.

A step may be taken in several batches; its loss and its gradients are the same.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset
from transformers import Trainer

from trainer.alignment import (
    Material,
    Rated,
    Weights,
    balance,
    dpo_loss,
    kto_loss,
    logps_of,
    rows_of,
)
from trainer.objectives import Batch, following_nats, stacked
from trainer.packing import IGNORED, Block
from trainer.training import PART, Task

T = TypeVar("T")


def task(
    material: Material,
    weights: Weights,
    *,
    batch_size: int,
    padding: int,
    seed: int,
    accumulation: int = 1,
) -> Task:
    """The run: every step has up to ``accumulation`` batches.

    A batch holds up to ``batch_size`` blocks, as many pairs and as many ratings. Raises ValueError
    when there is nothing to train on.
    """
    steps = _Steps(
        material,
        weights,
        batch_size=batch_size,
        accumulation=accumulation,
        padding=padding,
        seed=seed,
    )
    return Task(
        dataset=steps,
        batch_size=1,
        tokens_per_step=steps.tokens // len(steps),
        steps=len(steps),
        collate=_only,
        trainer=_AlignmentTrainer,
        options={"weights": weights},
    )


class _Steps(Dataset[list[dict[str, Batch]]]):
    """The batches of each step. Pairs and ratings are spread evenly over the blocks' steps."""

    def __init__(
        self,
        material: Material,
        weights: Weights,
        *,
        batch_size: int,
        accumulation: int,
        padding: int,
        seed: int,
    ) -> None:
        order = random.Random(seed)  # nosec B311 # the same order again
        blocks = [(block, 1.0, False) for block in material.feedback]
        blocks += [(block, weights.ptx, True) for block in material.replay]
        pairs, rated = list(material.pairs), list(material.rated)
        for items in (blocks, pairs, rated):
            order.shuffle(items)
        most = batch_size * accumulation
        count = max(-(-len(items) // most) for items in (blocks, pairs, rated))
        if not count:
            raise ValueError("nothing to train on")
        self._blocks = _spread(blocks, count)
        self._pairs = _spread(pairs, count)
        self._rated = _spread(rated, count)
        self._balance = balance(rated)
        self._batch_size = batch_size
        self._padding = padding
        self.tokens = sum(len(block.tokens) for block, *_ in blocks) + sum(
            len(answer.tokens)
            for answer in (
                *(one for pair in pairs for one in (pair.preferred, pair.rejected)),
                *(item.answer for item in rated),
            )
        )

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> list[dict[str, Batch]]:
        blocks, pairs, rated = self._blocks[index], self._pairs[index], self._rated[index]
        parts = max(-(-len(items) // self._batch_size) for items in (blocks, pairs, rated))
        batches: list[dict[str, Batch]] = []
        for some_blocks, some_pairs, some_rated in zip(
            _spread(blocks, parts), _spread(pairs, parts), _spread(rated, parts), strict=True
        ):
            batch: dict[str, Batch] = {}
            if some_blocks:
                batch["packed"] = _packed(some_blocks)
            if some_pairs:
                answers = [one.preferred for one in some_pairs]
                answers += [one.rejected for one in some_pairs]
                share = torch.tensor(len(some_pairs) / len(pairs))
                batch["pairs"] = rows_of(answers, self._padding) | {"share": share}
            if some_rated:
                batch["rated"] = self._ratings(some_rated)
                batch["rated"]["share"] = torch.tensor(len(some_rated) / len(rated))
                other = [item.mismatched for item in some_rated]
                batch["mismatched"] = rows_of(other, self._padding)
            batches.append(batch)
        return _normalised(batches)

    def _ratings(self, rated: Sequence[Rated]) -> Batch:
        good, bad = self._balance
        return rows_of([item.answer for item in rated], self._padding) | {
            "desirable": torch.tensor([item.desirable for item in rated]),
            "weights": torch.tensor([good if item.desirable else bad for item in rated]),
        }


class _AlignmentTrainer(Trainer):  # type: ignore[misc]
    """The loss of this module, and in what is logged its parts, each as the mean of its own."""

    def __init__(self, *, weights: Weights, **options: Any) -> None:
        super().__init__(**options)
        self._weights = weights
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def training_step(
        self, model: Any, inputs: list[dict[str, Batch]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of a whole step, batch by batch. Returns its loss."""
        model.train()
        batches = self._prepare_inputs(inputs)
        total = torch.zeros((), device=self.args.device)
        with self.compute_loss_context_manager():
            mismatched = _mismatched(model, batches)
        for batch in batches:
            with self.compute_loss_context_manager():
                loss = self._loss(model, batch, mismatched)
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds ``loss_sft``, ``loss_replay``, ``loss_dpo`` and ``loss_kto`` since the last time."""
        for name, count in self._counts.items():
            if count:
                logs[f"{PART}{name}"] = self._sums[name] / count
        self._sums.clear()
        self._counts.clear()
        super().log(logs, start_time)

    def _loss(
        self, model: Any, batch: dict[str, Batch], mismatched: torch.Tensor | None
    ) -> torch.Tensor:
        """This batch's part of the step's loss."""
        weights = self._weights
        parts = []
        if "packed" in batch:
            parts.append(self._language_loss(model, batch["packed"]))
        if "pairs" in batch:
            pairs = batch["pairs"]
            preferred, rejected = logps_of(model, pairs).chunk(2)
            margin = torch.sub(*pairs["reference"].chunk(2))
            loss = dpo_loss(preferred, rejected, margin, weights.beta)
            self._note("dpo", loss * len(preferred), len(preferred))
            parts.append(weights.dpo * pairs["share"] * loss)
        if "rated" in batch and mismatched is not None:
            rated = batch["rated"]
            ratio = logps_of(model, rated) - rated["reference"]
            loss = kto_loss(ratio, mismatched, rated["desirable"], rated["weights"], weights.beta)
            self._note("kto", loss * len(ratio), len(ratio))
            parts.append(weights.kto * rated["share"] * loss)
        return torch.stack(parts).sum()

    def _language_loss(self, model: Any, packed: Batch) -> torch.Tensor:
        logits = model(
            input_ids=packed["input_ids"], position_ids=packed["position_ids"], use_cache=False
        ).logits
        nats = following_nats(logits, packed["labels"])
        counted = packed["labels"][:, 1:] != IGNORED
        for name, rows in (("sft", ~packed["replayed"]), ("replay", packed["replayed"])):
            self._note(name, nats[rows].sum(), int(counted[rows].sum()))
        return (nats * packed["weights"][:, 1:]).sum()

    def _note(self, name: str, total: torch.Tensor, count: int) -> None:
        self._sums[name] += float(total.detach())
        self._counts[name] += count


def _packed(blocks: Sequence[tuple[Block, float, bool]]) -> Batch:
    """``weights`` of the tokens, [blocks, size], and whether a block is replay, [blocks]."""
    rows = stacked([block for block, *_ in blocks])
    weights = torch.tensor([weight for _, weight, _ in blocks])
    return rows | {
        "weights": (rows["labels"] != IGNORED) * weights[:, None],
        "replayed": torch.tensor([replayed for *_, replayed in blocks]),
    }


def _normalised(batches: list[dict[str, Batch]]) -> list[dict[str, Batch]]:
    """Token weights that sum to 1 over the step."""
    packed = [batch["packed"] for batch in batches if "packed" in batch]
    total = sum(float(rows["weights"][:, 1:].sum()) for rows in packed)
    for rows in packed:
        rows["weights"] = rows["weights"] / max(total, 1e-9)
    return batches


def _mismatched(model: Any, batches: Sequence[dict[str, Batch]]) -> torch.Tensor | None:
    """Log-probabilities of answers to something else, less the parent's, of a whole step."""
    with torch.no_grad():
        found = [
            logps_of(model, rows) - rows["reference"]
            for rows in (batch.get("mismatched") for batch in batches)
            if rows is not None
        ]
    return torch.cat(found) if found else None


def _spread(items: Sequence[T], parts: int) -> list[Sequence[T]]:
    """In ``parts`` slices whose lengths differ by one at most."""
    return [
        items[len(items) * part // parts : len(items) * (part + 1) // parts]
        for part in range(parts)
    ]


def _only(items: Sequence[T]) -> T:
    (item,) = items
    return item
