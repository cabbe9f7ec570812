"""A model of any family from scratch, on prepared text, and the table of how good it is.

Knows nothing of feedback or the registry: what it writes is registered as any other model.
"""

from __future__ import annotations

import math
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from opentelemetry import trace

from infra.contracts.errors import ConfigurationError
from observability.tracing import span
from trainer import origins
from trainer.architectures import Shape, architecture
from trainer.baselines import NgramModel
from trainer.distributed import Ranks, joined
from trainer.evaluation import perplexity
from trainer.heldout import HeldOut, by_set, evaluate_sets
from trainer.neural import check_recipe, save, train_blocks
from trainer.objectives import pieces
from trainer.packing import Block
from trainer.pile import PileRow, read_shards, shard_paths
from trainer.pretraining_findings import report_of
from trainer.progress import Say
from trainer.report import REPORT, write_report
from trainer.run import Run, Scores, load_scores, save_scores
from trainer.tokenizer import load_tokenizer, train_tokenizer
from trainer.tokens.reading import TokenShards
from trainer.tokens.writing import write_token_shards

NGRAM = "ngram"
NGRAM_ORDER = 3
TOKENIZER_DOCUMENTS = 20_000
MAX_EVALUATED = 2_000

History = Sequence[Mapping[str, Any]]

_TRACER = trace.get_tracer("feedloom.trainer")


def pretrain(run: Run, say: Say = lambda what, done, total: None) -> Scores:
    """Train, evaluate and save: model, tokenizer, ``pretraining.json`` and ``report.html``.

    All in ``run.out``, and in a trace that links to what made the text.

    Under torchrun every rank calls this and gets the same table; the first prepares and writes.
    Token shards are kept under ``run.out/tokens`` and checkpoints under ``run.out/checkpoints``: a
    run that was broken off goes on from them, and a finished one removes the checkpoints.

    Raises:
        ConfigurationError: no text, an unknown family, or a recipe this machine cannot follow.
        TrainingDiverged: the loss became infinite or no number.
    """
    _check(run)
    with (
        joined() as ranks,
        span(
            _TRACER,
            "feedloom.pretrain",
            attributes={
                "feedloom.arch": run.arch,
                "feedloom.rank": ranks.rank,
                "feedloom.ranks": ranks.size,
            },
            links=origins.links(run.data),
            parent=(),
        ),
    ):
        if run.arch == NGRAM and ranks.size > 1:
            raise ConfigurationError("an n-gram model is counted in one process")
        if ranks.first:
            _prepare(run, say)
        ranks.wait()
        trained = _trained(run, ranks, say)
        if trained is not None:
            scores, history = trained
            write_report(run.out / REPORT, report_of(run, scores, history))
            save_scores(scores, run.out)
        ranks.wait()
    return load_scores(run.out)


def _check(run: Run) -> None:
    if run.arch != NGRAM:
        architecture(run.arch)
    check_recipe(run.recipe)
    if not (shard_paths(run.data / "train") and _heldout(run)):
        raise ConfigurationError(
            f"{run.data} holds no text in train/ and heldout/: `feedloom pile prepare` writes both"
        )


def _heldout(run: Run) -> list[PileRow]:
    return list(islice(read_shards(shard_paths(run.data / "heldout")), MAX_EVALUATED))


def _prepare(run: Run, say: Say) -> None:
    """Tokenizer and token shards."""
    train = shard_paths(run.data / "train")
    run.out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(run, train)
    tokenizer.save_pretrained(str(run.out))
    write_token_shards(
        run.out / "tokens",
        (row.text for row in read_shards(train)),
        tokenizer,
        size=run.context,
        progress=lambda documents, _: say("tokens", documents, 0),
    )


def _trained(run: Run, ranks: Ranks, say: Say) -> tuple[Scores, History] | None:
    """The table and what was logged on the way, on rank 0."""
    tokenizer = load_tokenizer(run.out)
    blocks = TokenShards(run.out / "tokens")
    if not len(blocks):
        raise ConfigurationError(f"{run.data} has too little text for one block of {run.context}")
    evaluated = by_set(_heldout(run), tokenizer, run.context)
    if not evaluated:
        raise ConfigurationError(f"no held-out set in {run.data} fills a block of {run.context}")
    if run.arch == NGRAM:
        return _ngram(run, tokenizer, blocks, evaluated, say)
    return _neural(run, tokenizer, blocks, evaluated, ranks, say)


def _tokenizer(run: Run, train: Sequence[Path]) -> Any:
    if run.tokenizer is not None:
        return load_tokenizer(run.tokenizer)
    if (run.out / "tokenizer.json").is_file():
        return load_tokenizer(run.out)
    texts = (row.text for row in islice(read_shards(train), TOKENIZER_DOCUMENTS))
    return train_tokenizer(texts, vocab_size=run.vocabulary, context=run.context)


def _neural(
    run: Run,
    tokenizer: Any,
    blocks: Sequence[Block],
    evaluated: dict[str, HeldOut],
    ranks: Ranks,
    say: Say,
) -> tuple[Scores, History] | None:
    """The table, on rank 0: it evaluates, so that what is drawn there does not hang on ranks."""
    recipe, family = run.recipe, architecture(run.arch)
    shape = Shape(
        vocabulary=len(tokenizer),
        end=tokenizer.eos_token_id,
        padding=tokenizer.pad_token_id,
        context=run.context,
        width=run.width,
        layers=run.layers,
        heads=run.heads,
    )
    checkpoints = run.out / "checkpoints"
    trained = train_blocks(
        family,
        shape,
        recipe,
        blocks=blocks,
        heldout=[block for found in evaluated.values() for block in found.blocks],
        checkpoints=checkpoints,
        logs=Path(recipe.logging_dir or run.out / "logs"),
        ranks=ranks,
        say=say,
    )
    if not ranks.first:
        return None
    loss, counted, per_byte = evaluate_sets(
        trained.model,
        family.collator(shape),
        evaluated,
        batch_size=recipe.per_device_eval_batch_size,
        seed=recipe.seed,
        likelihood=family.objective.startswith("causal"),
        say=say,
    )
    save(trained.model, run.out)
    shutil.rmtree(checkpoints, ignore_errors=True)
    scores = Scores(
        arch=run.arch,
        objective=family.objective,
        eval_loss=loss,
        eval_perplexity=perplexity(loss),
        eval_tokens=counted,
        bits_per_byte=per_byte,
        epoch=trained.epoch,
        global_step=trained.steps,
        train_loss=trained.loss,
        train_seconds=trained.seconds,
        samples_per_s=trained.samples / max(trained.seconds, 1e-9),
        tokens_per_s=trained.samples * run.context / max(trained.seconds, 1e-9),
        peak_memory_mb=_peak_memory_mb(),
        parameters=sum(weight.numel() for weight in trained.model.parameters()),
    )
    return scores, trained.history


def _ngram(
    run: Run,
    tokenizer: Any,
    blocks: Sequence[Block],
    evaluated: dict[str, HeldOut],
    say: Say,
) -> tuple[Scores, History]:
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
    scores = Scores(
        arch=run.arch,
        objective="causal",
        eval_loss=loss,
        eval_perplexity=perplexity(loss),
        eval_tokens=counted,
        bits_per_byte=per_byte,
        epoch=1.0,
        global_step=0,
        train_loss=None,
        train_seconds=seconds,
        samples_per_s=len(blocks) / max(seconds, 1e-9),
        tokens_per_s=len(blocks) * run.context / max(seconds, 1e-9),
        peak_memory_mb=_peak_memory_mb(),
        parameters=model.size,
    )
    return scores, []


def _peak_memory_mb() -> float:
    """Of a GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
