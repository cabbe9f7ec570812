"""A model of any family from scratch, on prepared text, and the table of how good it is.

Knows nothing of feedback or the registry: what it writes is registered as any other model.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils.logging import disable_progress_bar

from infra.contracts.errors import ConfigurationError
from infra.files import whole_file
from trainer.architectures import Shape, architecture
from trainer.baselines import NgramModel
from trainer.evaluation import held_out_blocks, perplexity
from trainer.objectives import Batch, Collator, pieces, token_nats
from trainer.packing import IGNORED, Block
from trainer.pile import PileRow, read_shards, shard_paths
from trainer.recipe import Recipe
from trainer.tokenizer import load_tokenizer, train_tokenizer
from trainer.tokens import TokenShards, write_token_shards
from trainer.training import caching_restored, finite_loss

NGRAM = "ngram"
NGRAM_ORDER = 3
REPORT = "pretraining.json"
TOKENIZER_DOCUMENTS = 20_000
MAX_EVALUATED = 2_000

Say = Callable[[str, float, float], None]
"""Told what is done, how much of it, out of how much."""


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
    train_loss: float
    train_seconds: float
    samples_per_s: float
    tokens_per_s: float
    peak_memory_mb: float
    parameters: int


def pretrain(run: Run, say: Say = lambda what, done, total: None) -> Scores:
    """Train, evaluate and save: model, tokenizer and ``pretraining.json`` in ``run.out``.

    Token shards are kept under ``run.out/tokens`` and checkpoints under ``run.out/checkpoints``: a
    run that was broken off goes on from them, and a finished one removes the checkpoints.

    Raises:
        ConfigurationError: no text, an unknown family, or a recipe this machine cannot follow.
        TrainingDiverged: the loss became infinite or no number.
    """
    if run.arch != NGRAM:
        architecture(run.arch)
    if run.recipe.fp16 and not torch.cuda.is_available():
        raise ConfigurationError("fp16 needs a GPU; on a CPU bf16 is there")
    train = shard_paths(run.data / "train")
    heldout = list(read_shards(shard_paths(run.data / "heldout")))
    if not train or not heldout:
        raise ConfigurationError(
            f"{run.data} holds no text in train/ and heldout/: `feedloom pile prepare` writes both"
        )
    run.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(run, train)
    write_token_shards(
        run.out / "tokens",
        (row.text for row in read_shards(train)),
        tokenizer,
        size=run.context,
        progress=lambda documents, _: say("tokens", documents, 0),
    )
    blocks = TokenShards(run.out / "tokens")
    if not len(blocks):
        raise ConfigurationError(f"{run.data} has too little text for one block of {run.context}")
    evaluated = by_set(heldout[:MAX_EVALUATED], tokenizer, run.context)
    if not evaluated:
        raise ConfigurationError(f"no held-out set in {run.data} fills a block of {run.context}")
    scores = (
        _ngram(run, tokenizer, blocks, evaluated, say)
        if run.arch == NGRAM
        else _neural(run, tokenizer, blocks, evaluated, say)
    )
    tokenizer.save_pretrained(str(run.out))
    with whole_file(run.out / REPORT) as stream:
        stream.write(msgspec.json.format(msgspec.json.encode(scores), indent=1) + b"\n")
    return scores


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Blocks of one set, and the bytes of the text that their counted tokens spell."""

    blocks: list[Block]
    bytes: int


def by_set(rows: Sequence[PileRow], tokenizer: Any, size: int) -> dict[str, HeldOut]:
    """Held-out text in blocks, by ``pile_set_name``; sets too small for one block are left out."""
    found = {}
    for name, blocks in held_out_blocks(rows, tokenizer, size).items():
        counted = [label for block in blocks for label in block.labels if label != IGNORED]
        spelt = len(tokenizer.decode(counted, skip_special_tokens=True).encode())
        if spelt:
            found[name] = HeldOut(blocks=blocks, bytes=spelt)
    return found


def _tokenizer(run: Run, train: Sequence[Path]) -> Any:
    if run.tokenizer is not None:
        return load_tokenizer(run.tokenizer)
    if (run.out / "tokenizer.json").is_file():
        return load_tokenizer(run.out)
    rows = (
        row.text for _, row in zip(range(TOKENIZER_DOCUMENTS), read_shards(train), strict=False)
    )
    tokenizer = train_tokenizer(rows, vocab_size=run.vocabulary, context=run.context)
    tokenizer.save_pretrained(str(run.out))
    return tokenizer


class _Blocks(Dataset[Block]):
    """Token shards for a data loader."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> Block:
        return self._blocks[int(index)]


class _Follower(TrainerCallback):  # type: ignore[misc]
    """Stops at a loss that is no number, and tells of the progress."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss = finite_loss(state, logs)
        if loss is not None:
            self._say(f"training (loss {loss:.3f})", state.global_step, state.max_steps)


def _neural(
    run: Run,
    tokenizer: Any,
    blocks: Sequence[Block],
    evaluated: dict[str, HeldOut],
    say: Say,
) -> Scores:
    disable_progress_bar()  # of each file saved, among the caller's own
    recipe, family = run.recipe, architecture(run.arch)
    set_seed(recipe.seed)
    shape = Shape(
        vocabulary=len(tokenizer),
        end=tokenizer.eos_token_id,
        padding=tokenizer.pad_token_id,
        context=run.context,
        width=run.width,
        layers=run.layers,
        heads=run.heads,
    )
    model, collate = family.build(shape), family.collator(shape)
    checkpoints = run.out / "checkpoints"
    every = [block for found in evaluated.values() for block in found.blocks]
    writer = SummaryWriter(recipe.logging_dir or str(run.out / "logs"))
    before, begin = _steps_of(checkpoints), time.monotonic()
    with caching_restored(model):
        trainer = Trainer(
            model=model,
            args=_arguments(recipe, checkpoints),
            train_dataset=_Blocks(blocks),
            eval_dataset=_Blocks(every),
            data_collator=collate,
            callbacks=[_Follower(say), TensorBoardCallback(tb_writer=writer)],
        )
        trainer.remove_callback(PrinterCallback)
        result = trainer.train(resume_from_checkpoint=_checkpoint(checkpoints))
    seconds = time.monotonic() - begin
    steps = trainer.state.global_step
    samples = (steps - before) * recipe.per_device_train_batch_size
    samples *= recipe.gradient_accumulation_steps * trainer.args.world_size
    loss, counted, per_byte = evaluate_sets(
        model, collate, evaluated, recipe, likelihood=family.objective.startswith("causal"), say=say
    )
    _save(model, run.out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return Scores(
        arch=run.arch,
        objective=family.objective,
        eval_loss=loss,
        eval_perplexity=perplexity(loss),
        eval_tokens=counted,
        bits_per_byte=per_byte,
        epoch=float(trainer.state.epoch or 0.0),
        global_step=steps,
        train_loss=float(result.training_loss),
        train_seconds=seconds,
        samples_per_s=samples / max(seconds, 1e-9),
        tokens_per_s=samples * run.context / max(seconds, 1e-9),
        peak_memory_mb=_peak_memory_mb(),
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


def _arguments(recipe: Recipe, checkpoints: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.per_device_train_batch_size,
        per_device_eval_batch_size=recipe.per_device_eval_batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        gradient_checkpointing=recipe.gradient_checkpointing,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        logging_strategy="steps",
        logging_steps=recipe.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=recipe.save_steps,
        save_total_limit=recipe.save_total_limit,
        eval_strategy="steps" if recipe.eval_steps else "no",
        eval_steps=recipe.eval_steps or None,
        prediction_loss_only=True,
        fp16=recipe.fp16,
        bf16=recipe.bf16,
        torch_compile=recipe.torch_compile,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def _checkpoint(folder: Path) -> str | None:
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def _steps_of(folder: Path) -> int:
    found = _checkpoint(folder)
    if found is None:
        return 0
    return int(json.loads((Path(found) / "trainer_state.json").read_text())["global_step"])


def evaluate_sets(
    model: Any,
    collate: Collator,
    evaluated: dict[str, HeldOut],
    recipe: Recipe,
    *,
    likelihood: bool,
    say: Say = lambda what, done, total: None,
) -> tuple[float, int, dict[str, float]]:
    """Mean loss over every counted token of all sets, their number, and bits per byte by set.

    ``likelihood``: the loss is that of the text itself, next token by next token.

    Masks and spans are drawn from the recipe's seed, so that two models are asked the same.
    """
    device = next(model.parameters()).device
    total, counted = 0.0, 0
    per_byte = {}
    training = model.training
    model.eval()
    torch.manual_seed(recipe.seed)
    for done, (name, found) in enumerate(evaluated.items(), start=1):
        nats, tokens = 0.0, 0
        for batch in _batches(found.blocks, recipe.per_device_eval_batch_size, collate):
            moved = {key: value.to(device) for key, value in batch.items()}
            one, number = _nats(model, moved, shifted=likelihood)
            nats, tokens = nats + one, tokens + number
        total, counted = total + nats, counted + tokens
        if likelihood:
            per_byte[name] = nats / math.log(2) / found.bytes
        say("evaluation", done, len(evaluated))
    model.train(training)
    return total / counted, counted, per_byte


def _batches(blocks: Sequence[Block], size: int, collate: Collator) -> Iterator[Batch]:
    for start in range(0, len(blocks), size):
        yield collate(blocks[start : start + size])


def _nats(model: Any, batch: Batch, *, shifted: bool) -> tuple[float, int]:
    """Summed loss of a batch's counted labels, and their number.

    ``shifted``: a label stands at its own token, which the logits before it predict.
    """
    labels = batch["labels"]
    options = {"use_cache": False} if "position_ids" in batch else {}
    with torch.inference_mode():
        logits = model(**batch, **options)["logits"]
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(token_nats(logits, labels).sum()), int((labels != IGNORED).sum())


def _save(model: Any, directory: Path) -> None:
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(str(directory), safe_serialization=True)
        return
    from safetensors.torch import save_model

    save_model(model, str(directory / "model.safetensors"))


def _ngram(
    run: Run,
    tokenizer: Any,
    blocks: Sequence[Block],
    evaluated: dict[str, HeldOut],
    say: Say,
) -> Scores:
    begin = time.monotonic()
    model = NgramModel(order=NGRAM_ORDER, vocabulary=len(tokenizer))
    for index in range(len(blocks)):
        model.learn(piece.tolist() for piece in pieces(blocks[index]))
        if index % 64 == 0:
            say("counting", index, len(blocks))
    seconds = time.monotonic() - begin
    per_byte, total, counted = {}, 0.0, 0
    for name, found in evaluated.items():
        texts = [piece.tolist() for block in found.blocks for piece in pieces(block)]
        nats = sum(map(model.nats, texts))
        total, counted = total + nats, counted + sum(len(text) - 1 for text in texts)
        per_byte[name] = nats / math.log(2) / found.bytes
    model.save(run.out)
    loss = total / counted
    return Scores(
        arch=run.arch,
        objective="causal",
        eval_loss=loss,
        eval_perplexity=perplexity(loss),
        eval_tokens=counted,
        bits_per_byte=per_byte,
        epoch=1.0,
        global_step=0,
        train_loss=math.nan,
        train_seconds=seconds,
        samples_per_s=len(blocks) / max(seconds, 1e-9),
        tokens_per_s=len(blocks) * run.context / max(seconds, 1e-9),
        peak_memory_mb=_peak_memory_mb(),
        parameters=model.size,
    )


def _peak_memory_mb() -> float:
    """Of a GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
