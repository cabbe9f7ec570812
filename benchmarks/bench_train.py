"""Tokens/s of training beside a bare PyTorch loop, and of packed batches beside padded ones.

Measured, in one process, sides in turn: `trainer.pretraining.pretrain` (a fresh Llama of the
embedded model's size, float32), and `trainer.training.train` on a feedback round's steps
(completions, pairs, ratings and replay on the embedded model, bf16 as shipped), each beside a loop
written by hand: same weights, batches, order, AdamW and clipping, no schedule, no logging, and
batches that lie ready in memory. A side is timed from the end of its fifth step to the end of its
last; both must come to the same mean loss, or the run is broken. Both have 8 rows of 256 tokens a
step, less than as shipped, so that what is not the model's weighs more.

Packing: one pass of `trainer.training.train` over the same examples, whole and with its start,
once in blocks of 256 tokens that hold several examples, once an example a row, padded to the
longest of the batch or to 256; steps are as many, so an update sees as much text. Tokens are the
examples' own. Before it, the model's summed loss over all answers must be the same in blocks and in
rows. Lengths are the demo's, which hardly differ (its continuations are all of 60 words), and
log-normal ones of about the same mean (median 80, sigma 0.8, cut at 256): texts of people vary
more, but the numbers are an assumption. Padding is all that packing saves: `share of tokens that
are text` bounds the ratio.

Feedloom's loops tell glibc to keep freed memory, for the whole process: the bare ones have that
too.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.bench_pile import corpus
from benchmarks.harness import Broken, Report, Target, command, project_home, table
from benchmarks.models import embedded_model
from benchmarks.stats import paired_ratio, spread
from benchmarks.turns import order_of

if TYPE_CHECKING:
    from benchmarks.training_sides import Timing
    from trainer.packing import Segment

SIZE, BATCH = 256, 8
STEPS, QUICK_STEPS = 20, 10
ROUNDS = 5
EXAMPLES, QUICK_EXAMPLES = 240, 64
HELDOUT_DOCUMENTS = 8
RATE = 1e-4
SEED = 17
BETAS_OF_TRANSFORMERS, BETAS_OF_ROUNDS = (0.9, 0.999), (0.9, 0.95)
TOLERANCE = {"float32": 1e-4, "bf16": 5e-3}
"""Of mean losses: bf16 sums in another order differ in the third digit."""

Sides = Mapping[str, Callable[[], "Timing"]]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What every contest starts from."""

    scratch: Path
    directory: Path
    tokenizer: Any
    text: Sequence[int]
    rows: Sequence[Any]


def measure(report: Report) -> None:
    """See the module."""
    import torch

    from trainer.tokenizer import encode_all, load_tokenizer

    directory = embedded_model()
    tokenizer = load_tokenizer(directory)
    rows = list(corpus(0.5 if report.quick else 2.0))
    text = [
        token
        for ids in encode_all(tokenizer, [row.text for row in rows])
        for token in (*ids, tokenizer.eos_token_id)
    ]
    report.figures["threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="feedloom-bench-") as folder:
        ground = Ground(
            scratch=Path(folder), directory=directory, tokenizer=tokenizer, text=text, rows=rows
        )
        pretraining(report, ground)
        feedback(report, ground)
        packing(report, ground)
    show(report)


def pretraining(report: Report, ground: Ground) -> None:
    """``pretrain`` beside a bare loop."""
    from transformers import set_seed

    from benchmarks import training_sides as sides
    from trainer.architectures import architecture
    from trainer.recipe import Recipe
    from trainer.run import Run

    steps = QUICK_STEPS if report.quick else STEPS
    recipe = Recipe(
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        learning_rate=RATE,
        warmup_steps=0,
        logging_steps=sides.WARM,
        seed=SEED,
    )
    run = Run(
        arch="llama",
        data=sides.data_folder(
            ground.scratch / "data", ground.rows, ground.rows[:HELDOUT_DOCUMENTS]
        ),
        out=ground.scratch / "pretrained",
        recipe=recipe,
        tokenizer=ground.directory,
        context=SIZE,
    )
    batches = sides.pretraining_batches(run)

    def bare() -> Timing:
        set_seed(SEED)
        model = architecture(run.arch).build(sides.shape_of(run, ground.tokenizer))
        optimizer = sides.adamw(
            model,
            rate=RATE,
            weight_decay=recipe.weight_decay,
            betas=BETAS_OF_TRANSFORMERS,
            all_decay=False,
        )
        return sides.bare(
            model,
            optimizer,
            batches,
            sides.own_loss,
            bf16=recipe.bf16,
            max_grad_norm=recipe.max_grad_norm,
        )

    race(
        report,
        "pretraining",
        {"feedloom": partial(sides.pretrained, run), "bare loop": bare},
        tokens=sum(batch["input_ids"].numel() for batch in batches[sides.WARM :]),
        tolerance=TOLERANCE["float32"],
    )


def feedback(report: Report, ground: Ground) -> None:
    """The loop of a round of learning beside a bare loop."""
    from benchmarks import training_sides as sides
    from benchmarks.training_data import demo_examples, material
    from trainer.alignment import Weights, with_references
    from trainer.mixing import task
    from trainer.model import load_model

    steps = QUICK_STEPS if report.quick else STEPS
    padding = ground.tokenizer.pad_token_id
    # Two examples fill a block, and half of the blocks are replay: as many of each a step.
    examples = demo_examples(project_home(), ground.tokenizer, steps * BATCH)
    given = material(examples, ground.text, size=SIZE, padding=padding)
    given = with_references(load_model(ground.directory), given, padding=padding)
    weights = Weights()
    work, batches = sides.recorded(
        task(given, weights, batch_size=BATCH, padding=padding, seed=SEED)
    )
    plan = sides.level_plan(
        steps=work.steps // sides.WARM * sides.WARM, rate=RATE, bf16=True, seed=SEED
    )

    def ours() -> Timing:
        return sides.fine_tuned(load_model(ground.directory), work, plan)

    ours()
    kept = batches[: plan.steps]

    def bare() -> Timing:
        model = load_model(ground.directory)
        optimizer = sides.adamw(
            model,
            rate=RATE,
            weight_decay=plan.weight_decay,
            betas=BETAS_OF_ROUNDS,
            all_decay=True,
        )
        return sides.bare(
            model,
            optimizer,
            kept,
            sides.feedback_loss(weights),
            bf16=plan.bf16,
            max_grad_norm=plan.max_grad_norm,
        )

    race(
        report,
        "feedback round",
        {"feedloom": ours, "bare loop": bare},
        tokens=sum(text_tokens(batch) for batch in kept[sides.WARM :]),
        tolerance=TOLERANCE["bf16"],
    )


def text_tokens(step: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of a step of feedback that are no padding of rows."""
    return sum(
        int(part["attention_mask"].sum())
        if "attention_mask" in part
        else int(part["input_ids"].numel())
        for batch in step
        for part in batch.values()
    )


def packing(report: Report, ground: Ground) -> None:
    """Packed batches beside padded ones, on both sets of lengths."""
    from benchmarks.training_data import demo_examples, skewed_examples

    count = QUICK_EXAMPLES if report.quick else EXAMPLES
    sets = {
        "the demo's lengths": demo_examples(project_home(), ground.tokenizer, count),
        "skewed lengths": skewed_examples(ground.text, count, SIZE, seed=SEED),
    }
    for name, examples in sets.items():
        pack(report, ground, name, examples)


def pack(report: Report, ground: Ground, name: str, examples: Sequence[Segment]) -> None:
    """One set of lengths: checks that both ways hold the same, then races them."""
    from benchmarks import training_sides as sides
    from benchmarks.training_data import PaddedRows, PaddingCollator, check_same, shares_of_text
    from trainer.model import load_model
    from trainer.packing import fit
    from trainer.training import Task, packed

    padding = ground.tokenizer.pad_token_id
    blocks = packed(fit(examples, SIZE, padding=padding), BATCH)
    rows = -(-len(examples) // blocks.steps)

    def padded(size: int | None) -> Task:
        return Task(
            dataset=PaddedRows(examples),
            batch_size=rows,
            tokens_per_step=0,
            steps=-(-len(examples) // rows),
            collate=PaddingCollator(padding, size),
        )

    tasks = {
        "packed": blocks,
        "padded to the longest of the batch": padded(None),
        f"padded to {SIZE}": padded(SIZE),
    }
    check_same(load_model(ground.directory), list(tasks.values()))

    def run(task: Task) -> Timing:
        plan = sides.level_plan(steps=task.steps, rate=RATE, bf16=True, seed=SEED)
        return sides.whole(load_model(ground.directory), task, plan)

    tokens = sum(len(one.tokens) for one in examples)
    race(
        report,
        f"packing, {name}",
        {side: partial(run, task) for side, task in tasks.items()},
        tokens=tokens,
    )
    report.figures[f"share of tokens that are text, {name}"] = shares_of_text(tasks, tokens)


def race(
    report: Report,
    name: str,
    sides: Sides,
    *,
    tokens: int,
    tolerance: float | None = None,
) -> None:
    """Rounds of all sides in turn; the first side is compared with each of the others.

    ``tolerance``: relative, of the sides' mean losses; ``None`` where they need not be equal.
    """
    first, *others = sides
    rates: dict[str, list[float]] = {side: [] for side in sides}
    of_cpu: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(0 if report.quick else -1, 1 if report.quick else ROUNDS):
        losses = {}
        for side in order_of(sides, number):
            timing = sides[side]()
            losses[side] = timing.loss
            if number >= 0:  # the round before the first warms up
                rates[side].append(tokens / timing.seconds)
                of_cpu[side].append(tokens / timing.cpu_s)
        if tolerance is not None:
            check_losses(name, losses, tolerance)
    report.figures[name] = {side: spread(found) for side, found in rates.items()}
    if tolerance is not None:
        report.figures[f"mean loss, {name}"] = losses
    for other in others:
        report.ratio(
            f"tokens/s, {name}, {first} / {other}",
            paired_ratio(rates[first], rates[other]),
            target_of(other),
        )
        report.ratio(
            f"tokens/CPU second, {name}, {first} / {other}",
            paired_ratio(of_cpu[first], of_cpu[other]),
        )
    report.say(f"{name}: " + ", ".join(f"{one} {max(rates[one]):.0f} tokens/s" for one in sides))


def target_of(other: str) -> Target | None:
    """What a side is asked of beside this one."""
    if other == "bare loop":
        return Target(">=", 0.95)
    return Target(">=", 1.5) if "longest" in other else None


def check_losses(name: str, losses: Mapping[str, float], tolerance: float) -> None:
    """Raises Broken when the sides did not do the same."""
    low, high = min(losses.values()), max(losses.values())
    finite = all(map(math.isfinite, losses.values()))
    if not finite or high - low > tolerance * abs(high):
        raise Broken(f"{name}: the sides' losses differ: {losses}")


def show(report: Report) -> None:
    """Rates, side by side."""
    rows = [
        [name, side, f"{found['median']:.0f}", f"{found['min']:.0f} to {found['max']:.0f}"]
        for name, sides in report.figures.items()
        if isinstance(sides, dict)
        for side, found in sides.items()
        if isinstance(found, dict)
    ]
    heads = {"": "left", "side": "left", "median": "right", "spread": "right"}
    table("tokens/s", heads, rows)  # type: ignore[arg-type]


main = command(measure, name="bench_train", description=__doc__)

if __name__ == "__main__":
    main()
