"""Loss on held-out text: nats per token, and bits per byte, which no tokenizer skews."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.packing import IGNORED, Block


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``loss``: mean nats per counted token. ``bits_per_byte``: of the text those tokens spell."""

    loss: float
    bits_per_byte: float
    tokens: int


def evaluate(
    model: Any, tokenizer: Any, blocks: Sequence[Block], *, batch_size: int = 16
) -> Evaluation:
    """Score a model on blocks, in float32, leaving it as it was.

    Raises ValueError when no label is counted.
    """
    import torch

    training = model.training
    model.eval()
    total, counted, size = 0.0, 0, 0
    with torch.inference_mode():
        for start in range(0, len(blocks), batch_size):
            batch = blocks[start : start + batch_size]
            labels = torch.tensor([block.labels for block in batch])
            logits = model(
                input_ids=torch.tensor([block.tokens for block in batch]),
                position_ids=torch.tensor([block.positions for block in batch]),
                # With a cache transformers no longer keeps a row's documents apart.
                use_cache=False,
            ).logits
            # Labels stand at their own token; the token before predicts it.
            following = labels[:, 1:]
            total += torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                following.flatten(),
                ignore_index=IGNORED,
                reduction="sum",
            ).item()
            kept = following[following != IGNORED].tolist()
            counted += len(kept)
            size += len(tokenizer.decode(kept).encode())
    model.train(training)
    if counted == 0:
        raise ValueError("there is no held-out token to score")
    return Evaluation(
        loss=total / counted,
        bits_per_byte=total / math.log(2) / max(size, 1),
        tokens=counted,
    )
