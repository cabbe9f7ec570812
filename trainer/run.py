"""A pretraining run as it is asked for, and the table that comes out. Imports neither torch nor
transformers: who starts the processes of a run needs no more than this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from infra.files import whole_file
from trainer.recipe import Recipe

REPORT = "pretraining.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to train on what. ``data`` is what ``feedloom pile prepare`` wrote.

    Without ``tokenizer`` one of ``vocabulary`` ids is made of the text. ``width``, ``layers`` and
    ``heads`` are the model's, ``context`` also the length of a training block.
    """

    arch: str
    data: Path
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    tokenizer: Path | None = None
    vocabulary: int = 8192
    context: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation table. Losses in nats a token that the objective asks for.

    ``bits_per_byte`` by set, for families that give text a likelihood. Throughput is of training.
    """

    arch: str
    objective: str
    eval_loss: float
    eval_perplexity: float
    eval_tokens: int
    bits_per_byte: dict[str, float]
    epoch: float
    global_step: int
    train_loss: float | None
    train_seconds: float
    samples_per_s: float
    tokens_per_s: float
    peak_memory_mb: float
    parameters: int


def save_scores(scores: Scores, out: Path) -> None:
    """Beside the model."""
    with whole_file(out / REPORT) as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(scores), indent=1) + b"\n")


def load_scores(out: Path) -> Scores:
    """The table of a finished run."""
    return msgspec.json.decode((out / REPORT).read_bytes(), type=Scores)
