"""Model FLOPs utilisation of pretraining GPT-2 124M in bf16 on one GPU.

Measured: `trainer.pretraining.pretrain` itself, from text to logged steps, with the `gpt2` family
at 12 layers, width 768, 12 heads, 1,024 tokens and 50,304 ids (GPT-2's, rounded up to a multiple
of 64 as nanoGPT has it), weights random, data made of random words. The recipe is bf16 with
`torch_compile` where the machine has a C compiler; all else as the trainer has it. Timed from the
report of progress after the warm steps to the last one: loading, compiling, evaluating and saving
are outside. FLOPs a token are 6 N + 12 L d T (Chowdhery et al. 2022, PaLM, appendix B; N as in
nanoGPT all parameters but the positions'): attention counts in full, recomputation does not. The
peak is that of dense bf16 of the GPU's own kind, by its name; for another, `--peak-tflops`.

Without a GPU nothing is measured, unless `--peak-tflops` is given: then a tiny model trains on the
CPU, which tries the script and tells nothing else.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.harness import Broken, Report, Target, Unavailable, command, table

if TYPE_CHECKING:
    from trainer.pile import PileRow
    from trainer.run import Run

PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100 80GB HBM3": 989.0,
    "H100 SXM": 989.0,
    "H200": 989.0,
}
"""Dense bf16, without sparsity, from NVIDIA's data sheets, by a part of torch's device name."""
NOT_FOR = ("GH200", "H200 NVL")
"""Names that hold one of the above and are another kind."""
TARGET = Target(">=", 0.45)
LABEL = "model FLOPs utilisation, GPT-2 124M, bf16"
SEED = 17


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model, and how long it trains. ``batch`` rows a step."""

    layers: int
    width: int
    heads: int
    context: int
    vocabulary: int
    batch: int
    warm: int
    steps: int


GPT2 = Size(
    layers=12,
    width=768,
    heads=12,
    context=1024,
    vocabulary=50_304,
    batch=32,
    warm=40,
    steps=140,
)
QUICK = replace(GPT2, warm=20, steps=40)
TINY = Size(layers=2, width=64, heads=2, context=128, vocabulary=512, batch=4, warm=10, steps=30)


def flops_per_token(*, parameters: int, layers: int, width: int, context: int) -> int:
    """Of forward and backward. ``parameters``: without those of positions."""
    return 6 * parameters + 12 * layers * width * context


def peak_tflops(device: str) -> float:
    """Dense bf16 peak of a GPU by its name. Raises Broken for one that is not known."""
    known = {part: peak for part, peak in PEAK_TFLOPS.items() if part in device}
    if not known or any(part in device for part in NOT_FOR):
        raise Broken(
            f"the bf16 peak of {device!r} is not known: give it with --peak-tflops (dense, as in "
            "its data sheet, without sparsity)"
        )
    return max(known.values())


def measure(report: Report, *, peak: float | None, batch: int | None) -> None:
    """See the module."""
    import torch

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        size = QUICK if report.quick else GPT2
    elif peak is None:
        raise Unavailable("there is no GPU")
    else:
        device, size = "the CPU, with a tiny model", TINY
    peak = peak or peak_tflops(device)
    with tempfile.TemporaryDirectory(prefix="feedloom-bench-") as folder:
        found = trained(report, Path(folder), size, batch or size.batch)
    reached = found["tokens_per_s"] * found["flops_per_token"] / 1e12
    report.figures |= found | {
        "device": device,
        "peak_tflops": peak,
        "tflops": reached,
    }
    tiny = size is TINY
    report.ratio("a try on the CPU" if tiny else LABEL, reached / peak, None if tiny else TARGET)
    show(report)


def trained(report: Report, scratch: Path, size: Size, batch: int) -> dict[str, Any]:
    """Figures of one run of ``pretrain``."""
    from trainer.pretraining import pretrain

    compiles, why = can_compile()
    if not compiles:
        report.say(f"without torch.compile: {why}")
    run = run_of(scratch, size, batch, compiles)
    at: dict[int, float] = {}

    def say(what: str, done: float, total: float) -> None:
        if what.startswith("training"):  # its loss has been read: the GPU is done with the step
            at[int(done)] = time.perf_counter()
            report.say(f"{what}, step {done:.0f} of {total:.0f}")

    scores = pretrain(run, say)
    seconds = at[size.steps] - at[size.warm]
    steps = size.steps - size.warm
    positions = size.context * size.width
    return {
        "parameters": scores.parameters,
        "flops_per_token": flops_per_token(
            parameters=scores.parameters - positions,
            layers=size.layers,
            width=size.width,
            context=size.context,
        ),
        "batch": batch,
        "context": size.context,
        "compiled": compiles,
        "steps": steps,
        "step_ms": 1000 * seconds / steps,
        "tokens_per_s": steps * batch * size.context / seconds,
        "peak_memory_mb": scores.peak_memory_mb,
        "loss": scores.train_loss,
    }


def run_of(scratch: Path, size: Size, batch: int, compiles: bool) -> Run:
    """The run, its text and its tokenizer in ``scratch``."""
    from trainer.pile import write_shards
    from trainer.recipe import Recipe
    from trainer.run import Run

    # Enough for every step to be of one epoch: the loader begins anew with each.
    needed = (size.steps + 1) * batch * size.context
    write_shards(scratch / "data" / "train", documents(needed, size, seed=SEED))
    write_shards(scratch / "data" / "heldout", documents(2 * size.context, size, seed=SEED + 1))
    save_tokenizer(scratch / "tokenizer", size)
    return Run(
        arch="gpt2",
        data=scratch / "data",
        out=scratch / "out",
        tokenizer=scratch / "tokenizer",
        context=size.context,
        width=size.width,
        layers=size.layers,
        heads=size.heads,
        recipe=Recipe(
            max_steps=size.steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=2,
            warmup_steps=10,
            logging_steps=10,
            save_steps=10 * size.steps,
            bf16=True,
            torch_compile=compiles,
            seed=SEED,
        ),
    )


def documents(tokens: int, size: Size, *, seed: int) -> Iterator[PileRow]:
    """Random words, one a token, in documents of a tenth of a block to two blocks."""
    from trainer.pile import PileMeta, PileRow

    draw = random.Random(seed)
    while tokens > 0:
        length = draw.randint(size.context // 10, 2 * size.context)
        tokens -= length + 1
        words = draw.choices(range(2, size.vocabulary), k=length)
        yield PileRow(" ".join(f"w{word}" for word in words), PileMeta("random words"))


def save_tokenizer(folder: Path, size: Size) -> None:
    """One that knows as many words as the model has ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from trainer.tokenizer import END_OF_TEXT, PADDING

    words = [END_OF_TEXT, PADDING, *(f"w{word}" for word in range(2, size.vocabulary))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=PADDING)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=size.context,
    ).save_pretrained(str(folder))


def can_compile() -> tuple[bool, str]:
    """Whether torch.compile works here, tried, and if not why: it needs a C compiler."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001 - inductor raises many kinds
        return False, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return True, ""


def show(report: Report) -> None:
    """The figures as a table."""
    rows = [
        [name, f"{value:,.4g}" if isinstance(value, float) else str(value)]
        for name, value in report.figures.items()
    ]
    table("one GPU", {"": "left", "value": "right"}, rows)


OPTIONS = (
    click.Option(
        ["--peak-tflops", "peak"],
        type=click.FloatRange(min=0, min_open=True),
        help="Dense bf16 peak of a GPU that is not in the table.",
    ),
    click.Option(["--batch"], type=click.IntRange(min=1), help="Rows a step; 32 by default."),
)
main = command(measure, name="bench_mfu", description=__doc__, options=OPTIONS)

if __name__ == "__main__":
    main()
