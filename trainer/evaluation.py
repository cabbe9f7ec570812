"""Held-out text: nats a block, and from them loss, perplexity and bits per byte.

Bits per byte, which no tokenizer skews, are kept by set of the Pile.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from trainer.model import asked
from trainer.packing import IGNORED, Block
from trainer.pile import PileRow
from trainer.tokenizer import text_blocks

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Per block, [blocks] each: nats of the counted tokens, their number, the bytes they spell."""

    nats: Array
    tokens: Array
    text_bytes: Array

    @property
    def loss(self) -> float:
        """Mean nats a counted token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Of the loss; finite."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Of the text that the counted tokens spell."""
        return float(self.nats.sum() / math.log(2) / max(self.text_bytes.sum(), 1))


def perplexity(loss: float) -> float:
    """``exp`` of a mean loss in nats; of one that no float can hold, the largest float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return sys.float_info.max


def held_out_blocks(
    rows: Iterable[PileRow], tokenizer: Any, size: int, *, limit: int | None = None
) -> dict[str, list[Block]]:
    """Held-out text in blocks, by ``pile_set_name``; sets too small for one block are left out.

    ``limit``: blocks in all, taken from each set in proportion.
    """
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row.meta.pile_set_name, []).append(row.text)
    found = {}
    total = sum(len(text) for each in texts.values() for text in each)
    for name, each in sorted(texts.items()):
        blocks = text_blocks(tokenizer, each, size)
        share = sum(map(len, each)) / max(total, 1)
        kept = list(islice(blocks, None if limit is None else max(1, round(limit * share))))
        if kept:
            found[name] = kept
    return found


def evaluate(
    model: Any, tokenizer: Any, blocks: Sequence[Block], *, batch_size: int = 16
) -> Evaluation:
    """Score a decoder-only model on blocks, in float32, leaving it as it was.

    Raises ValueError when no label is counted.
    """
    from trainer.objectives import following_nats, stacked

    nats: list[float] = []
    tokens: list[int] = []
    text_bytes: list[int] = []
    with asked(model) as device:
        for start in range(0, len(blocks), batch_size):
            batch = stacked(blocks[start : start + batch_size])
            labels = batch.pop("labels").to(device)
            inputs = {name: column.to(device) for name, column in batch.items()}
            logits = model(**inputs, use_cache=False).logits
            nats += following_nats(logits, labels).double().sum(1).tolist()
            for row in labels[:, 1:].cpu():
                kept = row[row != IGNORED].tolist()
                tokens.append(len(kept))
                text_bytes.append(len(tokenizer.decode(kept, skip_special_tokens=True).encode()))
    if not sum(tokens):
        raise ValueError("there is no held-out token to score")
    return Evaluation(nats=np.array(nats), tokens=np.array(tokens), text_bytes=np.array(text_bytes))


def joined(evaluations: Iterable[Evaluation]) -> Evaluation:
    """Several sets as one, their blocks one after the other."""
    parts = list(evaluations)
    return Evaluation(
        nats=np.concatenate([part.nats for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        text_bytes=np.concatenate([part.text_bytes for part in parts]),
    )
