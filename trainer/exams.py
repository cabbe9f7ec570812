"""What parent and child are both asked, the marks they get, and what the gate makes of the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.alignment import Pair
from trainer.curation import Completion
from trainer.evaluation import Evaluation, evaluate, joined
from trainer.gate import Measured, wins
from trainer.judging import SafetyPrompt, generate, margins, similarity, violations
from trainer.packing import Block
from trainer.report import Sample
from trainer.tokenizer import padding_of


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One model's marks. ``sets``: held-out text by ``pile_set_name``.

    ``answers``: to the references' prompts. ``safety_answers``: to the safety list.
    """

    sets: dict[str, Evaluation]
    margins: Any
    answers: list[str]
    safety_answers: list[str]
    violations: int

    @property
    def text(self) -> Evaluation:
        """All sets together."""
        return joined(self.sets.values())


@dataclass(frozen=True, kw_only=True)
class Exam:
    """The questions. ``batch_size``: sequences at a time."""

    tokenizer: Any
    size: int
    seed: int
    batch_size: int
    blocks: dict[str, list[Block]]
    pairs: list[Pair]
    references: tuple[Completion, ...]
    safety: list[SafetyPrompt]

    def take(self, model: Any) -> Measurement:
        """A model's marks."""
        answers = generate(
            model,
            self.tokenizer,
            [*(one.prompt for one in self.references), *(one.prompt for one in self.safety)],
            size=self.size,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        count = len(self.references)
        return Measurement(
            sets={
                name: evaluate(model, self.tokenizer, blocks, batch_size=self.batch_size)
                for name, blocks in self.blocks.items()
            },
            margins=margins(model, self.pairs, padding=padding_of(self.tokenizer)),
            answers=answers[:count],
            safety_answers=answers[count:],
            violations=violations(self.safety, answers[count:]),
        )

    def samples(self, before: Measurement, after: Measurement) -> list[Sample]:
        """Answers to the prompts that people gave feedback on."""
        return [
            Sample(
                prompt=one.prompt,
                before=old,
                after=new,
                wanted=one.target,
                request_id=one.request_id,
            )
            for one, old, new in zip(self.references, before.answers, after.answers, strict=True)
        ]

    def safety_samples(self, before: Measurement, after: Measurement) -> list[Sample]:
        """Answers to the safety list, which holds nobody's words."""
        return [
            Sample(prompt=one.prompt, before=old, after=new)
            for one, old, new in zip(
                self.safety, before.safety_answers, after.safety_answers, strict=True
            )
        ]


def measured(before: Measurement, after: Measurement, exam: Exam) -> Measured:
    """What the gate looks at."""
    return Measured(
        parent_nats=before.text.nats,
        nats=after.text.nats,
        preferred=wins(after.margins, before.margins),
        wins=wins(
            similarity(after.answers, exam.references),
            similarity(before.answers, exam.references),
        ),
        parent_violations=before.violations,
        violations=after.violations,
        safety_prompts=len(exam.safety),
    )


def metrics_of(before: Measurement, after: Measurement, found: Measured) -> dict[str, float]:
    """What is published of the two."""
    metrics = {}
    for name, one in (("before", before), ("after", after)):
        text = one.text
        metrics[f"heldout_loss_{name}"] = text.loss
        metrics[f"heldout_perplexity_{name}"] = text.perplexity
        metrics[f"heldout_bits_per_byte_{name}"] = text.bits_per_byte
        for pile_set, scores in one.sets.items():
            metrics[f"bits_per_byte_{name}/{pile_set}"] = scores.bits_per_byte
        metrics[f"safety_violations_{name}"] = float(one.violations)
    for name, shares in (("preference_accuracy", found.preferred), ("win_rate", found.wins)):
        if len(shares):
            metrics[name] = float(shares.mean())
    return metrics


def sets_compared(
    before: Measurement, after: Measurement
) -> Sequence[tuple[str, Evaluation, Evaluation]]:
    """Each set's name and marks, all together first."""
    return [
        ("all", before.text, after.text),
        *((name, before.sets[name], after.sets[name]) for name in before.sets),
    ]
