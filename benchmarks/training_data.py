"""Feedback to train on, of the demo's lengths and of lengths that vary more.

Knows token ids and rows, nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from benchmarks.harness import Broken
from trainer.alignment import Answer, Material, Pair, Rated
from trainer.objectives import token_nats
from trainer.packing import IGNORED, Segment, completion, document, fill, fit
from trainer.tokenizer import encode_all
from trainer.training import Task

MEDIAN_TOKENS, SIGMA = 80.0, 0.8
LEAST_TOKENS = 8
PROMPT_SHARE = 0.25
"""About the demo's: 12 to 20 words of 72 to 80."""
TOLERANCE = 1e-4


def demo_examples(home: Path, tokenizer: Any, count: int) -> list[Segment]:
    """Openings with the words that follow, as the demo gives them for accepted answers."""
    lines = (home / "demo" / "prompts.jsonl").read_bytes().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["split"] == "feedback"]
    if len(rows) < count:
        raise Broken(f"the demo has {len(rows)} openings for feedback, and {count} are needed")
    prompts = encode_all(tokenizer, [row["prompt"] for row in rows[:count]])
    answers = encode_all(tokenizer, [row["continuation"] for row in rows[:count]])
    return [completion(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def skewed_lengths(count: int, most: int, *, seed: int) -> list[int]:
    """Log-normal, median 80 tokens, sigma 0.8; no shorter than 8, and cut at ``most``."""
    draw = random.Random(seed)
    return [
        min(most, max(LEAST_TOKENS, round(draw.lognormvariate(math.log(MEDIAN_TOKENS), SIGMA))))
        for _ in range(count)
    ]


def skewed_examples(text: Sequence[int], count: int, most: int, *, seed: int) -> list[Segment]:
    """Consecutive pieces of ``text`` in :func:`skewed_lengths`, a quarter of each a prompt."""
    found, start = [], 0
    for length in skewed_lengths(count, most, seed=seed):
        piece = text[start : start + length]
        start += length
        cut = max(1, round(length * PROMPT_SHARE))
        found.append(completion(piece[:cut], piece[cut:]))
    if start > len(text):
        raise Broken(f"{start} tokens of text are needed, and there are {len(text)}")
    return found


def material(
    examples: Sequence[Segment], replay: Sequence[int], *, size: int, padding: int
) -> Material:
    """A round's: every example once as completion, half of a pair and rating, with as much replay.

    The other half of a pair is the next example's answer.
    """
    blocks = fit(examples, size, padding=padding)
    prompts = [_prompt(one) for one in examples]
    answers = [one.tokens[len(prompt) :] for one, prompt in zip(examples, prompts, strict=True)]
    following = [*answers[1:], answers[0]]
    good = [_answer(*both, size) for both in zip(prompts, answers, strict=True)]
    bad = [_answer(*both, size) for both in zip(prompts, following, strict=True)]
    return Material(
        feedback=blocks,
        replay=list(fill([document(replay)], size))[: len(blocks)],
        pairs=[Pair(preferred=a, rejected=b) for a, b in zip(good, bad, strict=True)],
        rated=[
            Rated(answer=a, mismatched=b, desirable=index % 2 == 0)
            for index, (a, b) in enumerate(zip(good, bad, strict=True))
        ],
    )


def _prompt(example: Segment) -> tuple[int, ...]:
    known = [label == IGNORED for label in example.labels]
    return example.tokens[: known.index(False)]


def _answer(prompt: Sequence[int], answer: Sequence[int], size: int) -> Answer:
    return Answer(tokens=(*prompt, *answer)[:size], prompt=len(prompt))


class PaddedRows(Dataset[Segment]):
    """One example a row."""

    def __init__(self, examples: Sequence[Segment]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Segment:
        return self._examples[index]


class PaddingCollator:
    """Rows as long as the longest of the batch, or ``size`` long where that is given."""

    def __init__(self, padding: int, size: int | None = None) -> None:
        self._padding = padding
        self._size = size

    def __call__(self, examples: Sequence[Segment]) -> dict[str, torch.Tensor]:
        tokens = [torch.tensor(one.tokens) for one in examples]
        labels = [torch.tensor(one.labels) for one in examples]
        return {
            "input_ids": self._filled(tokens, self._padding),
            "attention_mask": self._filled([torch.ones_like(row) for row in tokens], 0),
            "labels": self._filled(labels, IGNORED),
        }

    def _filled(self, rows: list[torch.Tensor], value: int) -> torch.Tensor:
        filled = pad_sequence(rows, True, value)
        short = 0 if self._size is None else self._size - filled.shape[1]
        return torch.nn.functional.pad(filled, (0, short), value=value)


def check_same(model: Any, tasks: Sequence[Task]) -> None:
    """Raises Broken unless all tasks ask the model for the same labels, at the same loss."""
    found = [counted_nats(model, batches_of(task)) for task in tasks]
    nats, counted = found[0]
    for other_nats, other_counted in found[1:]:
        if other_counted != counted or abs(other_nats / nats - 1) > TOLERANCE:
            raise Broken(f"the batches do not hold the same: (nats, labels) are {found}")


def shares_of_text(tasks: Mapping[str, Task], tokens: int) -> dict[str, float]:
    """Of all tokens that the model is given, by task; the tasks hold ``tokens`` of text each."""
    return {
        name: tokens / sum(batch["input_ids"].numel() for batch in batches_of(task))
        for name, task in tasks.items()
    }


def batches_of(task: Task) -> list[dict[str, torch.Tensor]]:
    """All batches of a task, in the data's order."""
    collate = task.collate or default_collate
    starts = range(0, len(task.dataset), task.batch_size)
    return [
        collate(
            [task.dataset[index] for index in range(len(task.dataset))[start:][: task.batch_size]]
        )
        for start in starts
    ]


def counted_nats(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> tuple[float, int]:
    """Summed loss of all counted labels, and their number: of one text the same in any rows."""
    nats, counted = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            inputs = {name: rows for name, rows in batch.items() if name != "labels"}
            labels = batch["labels"][:, 1:]
            logits = model(**inputs, use_cache=False).logits[:, :-1]
            nats += float(token_nats(logits, labels).sum())
            counted += int((labels != IGNORED).sum())
    model.train()
    return nats, counted
