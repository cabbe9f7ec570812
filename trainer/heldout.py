"""Held-out text by set, and the loss of a model of any family on it.

A decoder's own measures, beside those of its parent, are in ``evaluation``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.evaluation import held_out_blocks
from trainer.model import asked
from trainer.objectives import Batch, Collator, token_nats
from trainer.packing import IGNORED, Block
from trainer.pile import PileRow
from trainer.progress import Say


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Blocks of one set, and the bytes of the text that their counted tokens spell."""

    blocks: list[Block]
    bytes: int


def by_set(rows: Sequence[PileRow], tokenizer: Any, size: int) -> dict[str, HeldOut]:
    """Held-out text in blocks, by ``pile_set_name``; sets too small for one block are left out."""
    found = {}
    for name, blocks in held_out_blocks(rows, tokenizer, size).items():
        counted = [label for block in blocks for label in block.labels if label != IGNORED]
        spelt = len(tokenizer.decode(counted, skip_special_tokens=True).encode())
        if spelt:
            found[name] = HeldOut(blocks=blocks, bytes=spelt)
    return found


def evaluate_sets(
    model: Any,
    collate: Collator,
    evaluated: dict[str, HeldOut],
    *,
    batch_size: int,
    seed: int,
    likelihood: bool,
    say: Say = lambda what, done, total: None,
) -> tuple[float, int, dict[str, float]]:
    """Mean loss over every counted token of all sets, their number, and bits per byte by set.

    ``likelihood``: the loss is that of the text itself, next token by next token.

    Masks and spans are drawn from ``seed``, so that two models are asked the same.
    """
    total, counted = 0.0, 0
    per_byte = {}
    torch.manual_seed(seed)
    with asked(model) as device:
        for done, (name, found) in enumerate(evaluated.items(), start=1):
            nats, tokens = 0.0, 0
            for batch in _batches(found.blocks, batch_size, collate):
                moved = {key: value.to(device) for key, value in batch.items()}
                one, number = _nats(model, moved, shifted=likelihood)
                nats, tokens = nats + one, tokens + number
            total, counted = total + nats, counted + tokens
            if likelihood:
                per_byte[name] = nats / math.log(2) / found.bytes
            say("evaluation", done, len(evaluated))
    return total / counted, counted, per_byte


def _batches(blocks: Sequence[Block], size: int, collate: Collator) -> Iterator[Batch]:
    for start in range(0, len(blocks), size):
        yield collate(blocks[start : start + size])


def _nats(model: Any, batch: Batch, *, shifted: bool) -> tuple[float, int]:
    """Summed loss of a batch's counted labels, and their number.

    ``shifted``: a label stands at its own token, which the logits before it predict.
    """
    labels = batch["labels"]
    options = {"use_cache": False} if "position_ids" in batch else {}
    logits = model(**batch, **options)["logits"]
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(token_nats(logits, labels).sum()), int((labels != IGNORED).sum())
