"""What feedback teaches with: completions (SFT), pairs (DPO), ratings (KTO), and replayed text.

One run may use all of them. Each step holds a share of each, and its loss is

    language modelling + dpo * DPO + kto * KTO

where language modelling is the mean over the tokens of completions, which weigh 1, and of replayed
text, which weigh ``ptx`` each (the pre-training term of Ouyang et al. 2022). DPO is that of
Rafailov et al. 2023, KTO that of Ethayarajh et al. 2024. :mod:`trainer.mixing` puts them together.

Knows token ids, not text; nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.nn.functional import logsigmoid

from trainer.model import asked
from trainer.objectives import Batch, following_nats, padded
from trainer.packing import IGNORED, Block

Objective = Literal["sft", "dpo", "kto"]

MAX_BALANCE = 8.0
"""By how much the rarer kind of rating may be made to weigh more."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Of the parts of the loss. ``beta``: how dearly the model pays for leaving its parent."""

    ptx: float = 1.0
    dpo: float = 1.0
    kto: float = 1.0
    beta: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt and an answer. ``reference``: the parent's log-probability of the answer, nats."""

    tokens: tuple[int, ...]
    prompt: int
    """Tokens of the prompt, at least one, for it is what the answer's first is predicted from."""
    reference: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt."""

    preferred: Answer
    rejected: Answer


@dataclass(frozen=True, kw_only=True)
class Rated:
    """An answer and what people thought of it; ``mismatched`` is an answer to something else."""

    answer: Answer
    mismatched: Answer
    desirable: bool


@dataclass(frozen=True, kw_only=True)
class Material:
    """All that a run trains on; each block, pair and rating is seen once."""

    feedback: Sequence[Block] = ()
    replay: Sequence[Block] = ()
    pairs: Sequence[Pair] = ()
    rated: Sequence[Rated] = ()

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Those that there is feedback for."""
        kinds: tuple[tuple[Objective, Sequence[Any]], ...] = (
            ("sft", self.feedback),
            ("dpo", self.pairs),
            ("kto", self.rated),
        )
        return tuple(name for name, items in kinds if items)

    @property
    def replay_share(self) -> float:
        """Of the blocks, that is replayed text."""
        return len(self.replay) / max(1, len(self.feedback) + len(self.replay))


def answer_of(prompt: Sequence[int], answer: Sequence[int], size: int, *, end: int) -> Answer:
    """At most ``size`` tokens: an answer loses its end, then the prompt its beginning.

    An empty prompt becomes one ``end`` token, after which documents begin.
    """
    kept = tuple(answer[: size - 1])
    before = (tuple(prompt) or (end,))[-(size - len(kept)) :]
    return Answer(tokens=(*before, *kept), prompt=len(before))


def rated_of(
    items: Sequence[tuple[Sequence[int], Sequence[int], bool]], size: int, *, end: int
) -> list[Rated]:
    """Of prompt, answer and whether it was good; each is mismatched with the next one's answer."""
    return [
        Rated(
            answer=answer_of(prompt, answer, size, end=end),
            mismatched=answer_of(prompt, items[(index + 1) % len(items)][1], size, end=end),
            desirable=desirable,
        )
        for index, (prompt, answer, desirable) in enumerate(items)
    ]


def with_references(
    model: Any, material: Material, *, padding: int, batch_size: int = 16
) -> Material:
    """The material with what ``model``, the parent, thinks of each answer."""

    def scored(answers: Sequence[Answer]) -> Iterator[Answer]:
        found = answer_logps(model, answers, padding=padding, batch_size=batch_size)
        return (
            replace(answer, reference=logp) for answer, logp in zip(answers, found, strict=True)
        )

    return replace(
        material,
        pairs=[
            replace(pair, preferred=preferred, rejected=rejected)
            for pair, preferred, rejected in zip(
                material.pairs,
                scored([pair.preferred for pair in material.pairs]),
                scored([pair.rejected for pair in material.pairs]),
                strict=True,
            )
        ],
        rated=[
            replace(item, answer=answer, mismatched=mismatched)
            for item, answer, mismatched in zip(
                material.rated,
                scored([item.answer for item in material.rated]),
                scored([item.mismatched for item in material.rated]),
                strict=True,
            )
        ],
    )


def answer_logps(
    model: Any, answers: Sequence[Answer], *, padding: int, batch_size: int = 16
) -> list[float]:
    """Log-probability of each answer given its prompt, summed over its tokens, nats."""
    found: list[float] = []
    with asked(model) as device:
        for start in range(0, len(answers), batch_size):
            rows = rows_of(answers[start : start + batch_size], padding)
            found += logps_of(
                model, {key: value.to(device) for key, value in rows.items()}
            ).tolist()
    return found


def dpo_loss(
    preferred: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor, beta: float
) -> torch.Tensor:
    """Mean over pairs. Log-probabilities of the answers, [pairs] each.

    ``margin``: the parent's of the preferred answer less its of the rejected.
    """
    return -logsigmoid(beta * (preferred - rejected - margin)).mean()


def kto_loss(
    ratio: torch.Tensor,
    mismatched_ratio: torch.Tensor,
    desirable: torch.Tensor,
    weights: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Mean over ratings. Log-probabilities less the parent's, [ratings] each.

    How far the model has left its parent in general is told by the answers to something else.
    """
    distance = mismatched_ratio.mean().clamp(min=0).detach()
    sign = torch.where(desirable, 1.0, -1.0)
    return (weights * (1 - torch.sigmoid(beta * sign * (ratio - distance)))).mean()


def balance(rated: Sequence[Rated]) -> tuple[float, float]:
    """Weights of desirable and undesirable ratings that make both kinds weigh the same in all."""
    good = sum(item.desirable for item in rated)
    bad = len(rated) - good
    if not good or not bad:
        return 1.0, 1.0
    return (
        min(MAX_BALANCE, max(1.0, bad / good)),
        min(MAX_BALANCE, max(1.0, good / bad)),
    )


def rows_of(answers: Sequence[Answer], padding: int) -> Batch:
    """[answers, longest]: tokens, and labels that count the answers' own."""
    tokens = [torch.tensor(answer.tokens) for answer in answers]
    labels = [
        torch.tensor([*([IGNORED] * answer.prompt), *answer.tokens[answer.prompt :]])
        for answer in answers
    ]
    return {
        **padded(tokens, labels, padding),
        "reference": torch.tensor([answer.reference for answer in answers]),
    }


def logps_of(model: Any, rows: Batch) -> torch.Tensor:
    """Log-probability of each row's counted tokens: [rows]."""
    logits = model(
        input_ids=rows["input_ids"], attention_mask=rows["attention_mask"], use_cache=False
    ).logits
    return -following_nats(logits, rows["labels"]).sum(1)
