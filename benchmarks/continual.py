"""Going on with pre-training on another subject: which rate, and how much of the old text again?

At small size, the questions of Gupta et al. 2023 (arXiv 2308.04014: re-warm the rate, how far?) and
of Ibrahim et al. 2024 (arXiv 2403.08763: how much replay?). A model of the embedded one's size is
pre-trained on the text of this machine less the documents about mathematics (`learning_data`), and
goes on on those, for one epoch, through `trainer.training.train`. The rate warms up again from
zero, then decays; or stays at the hundredth part of the peak that pre-training ended with. Replay
is a share of the tokens, in place of none of the new ones: more replay is a longer run, as it is in
a round of the trainer. From scratch: the new text alone, a fresh model of the same shape.

Measured: bits per byte of the held-out old text, and of documents about mathematics that nothing
was trained on.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, command, table
from benchmarks.learning_data import bits_per_byte, hurried, prepare, rows_of
from infra.settings import Settings

CONTEXT = 256
BATCH = 16
LOWEST = 1e-5
"""The rate that pre-training ends with."""
WARMUP = 0.01
"""Share of the steps."""
BLOCKS, QUICK_BLOCKS = 128, 8
SEED = 17


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to go on. ``warmup``: share of the steps; ``replay``: of the tokens."""

    name: str
    rate: float
    warmup: float = WARMUP
    replay: float = 0.0
    decays: bool = True
    fresh: bool = False


ARMS = (
    Arm(name="constant, at the lowest rate", rate=LOWEST, decays=False),
    Arm(name="re-warmed to 0.0003", rate=3e-4),
    Arm(name="re-warmed to 0.001", rate=1e-3),
    Arm(name="re-warmed to 0.003", rate=3e-3),
    Arm(name="re-warmed to 0.001, no warm-up", rate=1e-3, warmup=0.0),
    Arm(name="re-warmed to 0.001, over a tenth", rate=1e-3, warmup=0.1),
    Arm(name="re-warmed to 0.001, 1 % replay", rate=1e-3, replay=0.01),
    Arm(name="re-warmed to 0.001, 5 % replay", rate=1e-3, replay=0.05),
    Arm(name="re-warmed to 0.001, 25 % replay", rate=1e-3, replay=0.25),
    Arm(name="re-warmed to 0.001, 50 % replay", rate=1e-3, replay=0.5),
    Arm(name="from scratch on the new text", rate=1e-3, fresh=True),
)


def mixed(new: Sequence[Any], old: Sequence[Any], replay: float) -> list[Any]:
    """All of the new blocks, and as many old ones as make ``replay`` of the whole.

    Old ones come again when there are too few. The order is drawn where they are trained on.
    """
    count = round(len(new) * replay / (1 - replay))
    return [*new, *islice(cycle(old), count)] if old else list(new)


def measure(report: Report) -> None:
    """See the module."""
    with tempfile.TemporaryDirectory(prefix="feedloom-continual-") as folder:
        settings = Settings(home=Path(folder))
        if report.quick:
            settings = hurried(settings)
        rows = list(_run(settings, report))
    report.figures["arms"] = rows
    before, arms = rows[0], {one["name"]: one for one in rows}
    plain, replayed = arms["re-warmed to 0.001"], arms["re-warmed to 0.001, 5 % replay"]
    report.ratio("new text, re-warmed to 0.001 / before", plain["new"] / before["new"])
    report.ratio("old text, re-warmed to 0.001 / before", plain["old"] / before["old"])
    report.ratio("old text, 5 % replay / before", replayed["old"] / before["old"])
    table(
        "Bits per byte",
        {"way": "left", "steps": "right", "old text": "right", "new text": "right"},
        [[one["name"], str(one["steps"]), f"{one['old']:.4f}", f"{one['new']:.4f}"]
         for one in rows],
    )  # fmt: skip


def _run(settings: Settings, report: Report) -> Iterator[dict[str, Any]]:
    import torch

    from trainer.bootstrap import bootstrap
    from trainer.model import build_model, load_model
    from trainer.pile import PileMeta, PileRow
    from trainer.tokenizer import load_tokenizer, text_blocks
    from trainer.training import TrainingPlan, packed, train

    subject = prepare(settings, lambda done, total: None)
    report.say(f"pre-training, {settings.bootstrap.seconds:g} s")
    first = bootstrap(settings, lambda what, done, total: None).directory
    tokenizer = load_tokenizer(first)
    end = tokenizer.eos_token_id
    most = QUICK_BLOCKS if report.quick else BLOCKS

    def score(model: Any, held: list[PileRow]) -> float:
        return bits_per_byte(model, tokenizer, held, size=CONTEXT, limit=most)

    texts = [row.text for row in rows_of(settings, "train")]
    old = list(text_blocks(tokenizer, texts, CONTEXT))
    new = list(text_blocks(tokenizer, subject.taught_text, CONTEXT))
    if report.quick:
        new = new[: 2 * BATCH]
    held_old = rows_of(settings, "heldout")
    held_new = [
        PileRow(text=text, meta=PileMeta(pile_set_name="mathematics"))
        for text in subject.measured_text
    ]
    before = load_model(first)
    yield {
        "name": "before",
        "steps": 0,
        "old": score(before, held_old),
        "new": score(before, held_new),
    }
    for arm in ARMS:
        torch.manual_seed(SEED)
        model = load_model(first)
        if arm.fresh:
            model = build_model(
                settings.bootstrap,
                vocab_size=len(tokenizer),
                end=end,
                padding=tokenizer.pad_token_id,
            )
        task = packed(mixed(new, old, arm.replay), BATCH)
        train(
            model,
            task,
            TrainingPlan(
                learning_rate=arm.rate,
                seconds=math.inf,
                seed=SEED,
                steps=task.steps,
                warmup=math.ceil(arm.warmup * task.steps),
                decay=1.0 if arm.decays else 0.0,
            ),
        )
        found = {
            "name": arm.name,
            "steps": task.steps,
            "old": score(model, held_old),
            "new": score(model, held_new),
        }
        report.say(f"{arm.name}: {found['old']:.4f} of the old text, {found['new']:.4f} of the new")
        yield found


main = command(measure, name="continual", description=__doc__)

if __name__ == "__main__":
    main()
