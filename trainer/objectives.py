"""What a model is asked of packed text: the next token, masked ones, or spans that were taken out.

Collators: blocks in, a model's batch out. Randomness is torch's global generator, which
transformers' Trainer stores with a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.nn.utils.rnn import pad_sequence

from trainer.packing import IGNORED, Block

Objective = Literal["causal", "causal-pieces", "masked", "span-corruption"]
"""``causal-pieces``: next token, for models that cannot keep apart what shares a row."""

MASKED_SHARE = 0.15
NOISE_DENSITY = 0.15
MEAN_SPAN = 3.0
Batch = dict[str, torch.Tensor]


def stacked(blocks: Sequence[Block]) -> Batch:
    """Rows of several documents that positions keep apart: int64 [blocks, size] each.

    A model must be called with ``use_cache=False`` on them: with a cache transformers no longer
    keeps a row's documents apart.
    """
    return {
        "input_ids": torch.tensor([tuple(block.tokens) for block in blocks]),
        "labels": torch.tensor([tuple(block.labels) for block in blocks]),
        "position_ids": torch.tensor([tuple(block.positions) for block in blocks]),
    }


def token_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each label, 0 where it is ignored: float32 [rows, length].

    ``logits``: [rows, length, vocabulary].
    """
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(labels.shape)


def following_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """:func:`token_nats` where a label stands at its own token, which the one before predicts.

    [rows, length - 1]: the first label is predicted by nothing.
    """
    return token_nats(logits[:, :-1], labels[:, 1:])


def pieces(block: Block) -> list[torch.Tensor]:
    """The documents, or parts of them, that share a block: int64 tokens of each."""
    tokens = torch.as_tensor(block.tokens, dtype=torch.int64)
    starts = [index for index, at in enumerate(block.positions) if at == 0]
    ends = [*starts[1:], len(tokens)]
    return [tokens[start:end] for start, end in zip(starts, ends, strict=True)]


class PiecesCollator:
    """One row a document: [pieces, longest], the rest padding that no label counts."""

    def __init__(self, padding: int) -> None:
        self._padding = padding

    def __call__(self, blocks: Sequence[Block]) -> Batch:
        rows = [piece for block in blocks for piece in pieces(block)]
        labels = [torch.cat([torch.tensor([IGNORED]), row[1:]]) for row in rows]
        return padded(rows, labels, self._padding)


class MaskedCollator:
    """BERT's task (Devlin et al. 2019): 15 % of the tokens are to be told.

    Of those 80 % read as ``mask``, 10 % as any token below ``vocabulary``, 10 % as they are.
    """

    def __init__(self, *, mask: int, padding: int, vocabulary: int) -> None:
        self._mask = mask
        self._padding = padding
        self._vocabulary = vocabulary

    def __call__(self, blocks: Sequence[Block]) -> Batch:
        rows = [piece for block in blocks for piece in pieces(block)]
        masked = [self._masked(row) for row in rows]
        return padded([seen for seen, _ in masked], [told for _, told in masked], self._padding)

    def _masked(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.rand(len(row)) < MASKED_SHARE
        if not chosen.any():
            chosen[torch.randint(len(row), (1,))] = True
        labels = torch.where(chosen, row, torch.full_like(row, IGNORED))
        draw = torch.rand(len(row))
        seen = torch.where(chosen & (draw < 0.8), torch.full_like(row, self._mask), row)
        other = torch.randint(self._vocabulary, (len(row),))
        return torch.where(chosen & (draw >= 0.9), other, seen), labels


class SpanCorruptionCollator:
    """T5's task (Raffel et al. 2020): spans are taken out, and told after their sentinels.

    ``sentinels`` are the ids that stand for the first, second ... span; ``end`` ends both texts.
    """

    def __init__(self, *, sentinels: Sequence[int], end: int, padding: int) -> None:
        self._sentinels = sentinels
        self._end = end
        self._padding = padding

    def __call__(self, blocks: Sequence[Block]) -> Batch:
        rows = [piece for block in blocks for piece in pieces(block) if len(piece) > 1]
        corrupted = [self._corrupted(row) for row in rows]
        return padded(
            [seen for seen, _ in corrupted], [told for _, told in corrupted], self._padding
        )

    def _corrupted(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        noise = noise_mask(len(row), limit=len(self._sentinels))
        seen, told, span = [], [], -1
        previous = False
        for token, taken in zip(row.tolist(), noise, strict=True):
            if taken and not previous:
                span += 1
                seen.append(self._sentinels[span])
                told.append(self._sentinels[span])
            (told if taken else seen).append(token)
            previous = taken
        return torch.tensor([*seen, self._end]), torch.tensor([*told, self._end])


def noise_mask(length: int, *, limit: int) -> list[bool]:
    """Which of ``length`` tokens (at least 2) are taken out: about 15 %, in spans of about 3.

    At least one token is taken and one left, the first is never taken, and there are no more than
    ``limit`` spans.
    """
    taken = min(max(1, round(length * NOISE_DENSITY)), length - 1)
    spans = min(max(1, round(taken / MEAN_SPAN)), taken, length - taken, limit)
    mask: list[bool] = []
    for left, noisy in zip(_parts(length - taken, spans), _parts(taken, spans), strict=True):
        mask += [False] * left + [True] * noisy
    return mask


def _parts(total: int, count: int) -> list[int]:
    """``total`` in ``count`` random parts of at least one."""
    cuts = sorted((torch.randperm(total - 1)[: count - 1] + 1).tolist())
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def padded(rows: list[torch.Tensor], labels: list[torch.Tensor], padding: int) -> Batch:
    """[rows, longest], and labels [rows, their longest]; nothing attends to, or counts, padding."""
    return {
        "input_ids": pad_sequence(rows, True, padding),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True, 0),
        "labels": pad_sequence(labels, True, IGNORED),
    }


Collator = Any
"""``Callable[[Sequence[Block]], Batch]``; transformers types it so."""
