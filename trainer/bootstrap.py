"""Builds the embedded default model once, from text already on this machine.

Shards, tokenizer, pre-training, evaluation, saving; each step's product is kept under the home, and
a complete build is not repeated. Registration is a step of its own.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
from opentelemetry import trace

from infra.contracts.bus import Bus
from infra.contracts.events.model import Lineage
from infra.cores import available
from infra.files import whole_file
from infra.registry.client import read_registry
from infra.registry.store import ArtifactStore
from infra.settings import Settings
from observability.tracing import span
from trainer.corpus import SPLITS, assemble, collect
from trainer.openings import demo_prompts
from trainer.pile import read_shards, shard_paths, write_shards
from trainer.publishing import publish, roll_out

log = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.trainer")

FIRST_VERSION = "1"
REPORT = "bootstrap.json"
BATCH_SIZE = 8
LEARNING_RATE = 3e-3
MUON_RATE = 0.02
HELDOUT_BLOCKS = 128

Step = Callable[[str, float, float], None]
"""Told of progress: what, done, of how much."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build: where it lies and how it scored."""

    directory: Path
    metrics: dict[str, float]
    fresh: bool


def bootstrap(settings: Settings, step: Step, *, force: bool = False) -> Built:
    """Build the model unless it is there. Raises CorruptShard when a kept shard is damaged."""
    directory = settings.home / "models" / settings.worker.model / FIRST_VERSION
    report = directory.parent / REPORT
    if report.is_file() and directory.is_dir() and not force:
        return Built(
            directory=directory, metrics=json.loads(report.read_text())["metrics"], fresh=False
        )
    _prepare_text(settings, step, force=force)
    staging = directory.with_name(f".building-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        metrics = _pretrain(settings, staging, step)
        # The report says that the build is whole: it goes first and comes last.
        report.unlink(missing_ok=True)
        shutil.rmtree(directory, ignore_errors=True)
        os.replace(staging, directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report.write_text(json.dumps({"metrics": metrics}, indent=2) + "\n")
    return Built(directory=directory, metrics=metrics, fresh=True)


def register(settings: Settings, bus: Bus, built: Built) -> bool:
    """Publish the build as version 1 and make it stable, unless the model has versions already."""
    model = settings.worker.model
    state = read_registry(bus)
    if state.rollout(model) is not None:
        return False
    publisher = bus.publisher(client_id="feedloom-bootstrap")
    try:
        known = state.versions(model)
        version = (
            known[0]
            if known
            else publish(
                built.directory,
                model=model,
                lineage=Lineage(
                    objective="pretrain",
                    replay_shards=tuple(
                        path.name for path in shard_paths(settings.shards / "train")
                    ),
                    seed=settings.bootstrap.seed,
                ),
                metrics=built.metrics,
                store=ArtifactStore(settings.artifacts),
                state=state,
                publisher=publisher,
            )
        )
        roll_out(version, state=state, publisher=publisher, reason="the embedded default model")
    finally:
        publisher.close()
    return True


def _prepare_text(settings: Settings, step: Step, *, force: bool) -> None:
    """Shards under ``pile/`` and the demo's prompts; kept when complete."""
    prompts = settings.home / "demo" / "prompts.jsonl"
    if prompts.is_file() and shard_paths(settings.shards / "heldout") and not force:
        return
    with span(_TRACER, "feedloom.pile.prepare", parent=()):
        corpus = assemble(
            collect(
                settings.bootstrap.corpus_mb,
                workers=len(available()),
                progress=lambda done, total: step("text of this machine", done, total),
            )
        )
        for name in SPLITS:
            write_shards(settings.shards / name, (item.row() for item in corpus.split(name)))
    prompts.parent.mkdir(parents=True, exist_ok=True)
    # Written last: its presence says that the shards are complete.
    with whole_file(prompts) as stream:
        for opening in demo_prompts(corpus.demo):
            stream.write(msgspec.json.encode(opening) + b"\n")


def _pretrain(settings: Settings, directory: Path, step: Step) -> dict[str, float]:
    import torch

    from trainer.evaluation import evaluate
    from trainer.model import build_model, save_model
    from trainer.tokenizer import text_blocks, train_tokenizer
    from trainer.training import Progress, TrainingPlan, packed, train

    options = settings.bootstrap
    texts = _texts(settings, "train")
    step("tokenizer", 0, 1)
    tokenizer = train_tokenizer(texts, vocab_size=options.vocab_size, context=options.context)
    step("tokenizer", 1, 1)
    end = tokenizer.eos_token_id
    random.Random(options.seed).shuffle(texts)  # nosec B311 # the same order again
    size = min(256, options.context)
    blocks = list(text_blocks(tokenizer, texts, size))
    heldout = list(
        islice(text_blocks(tokenizer, _texts(settings, "heldout"), size), HELDOUT_BLOCKS)
    )
    torch.manual_seed(options.seed)
    model = build_model(options, vocab_size=len(tokenizer), end=end, padding=tokenizer.pad_token_id)

    def progress(now: Progress) -> None:
        step(f"training (loss {now.loss:.2f})", now.elapsed_s, now.elapsed_s + now.eta_s)

    outcome = train(
        model,
        packed(blocks, BATCH_SIZE),
        TrainingPlan(
            learning_rate=LEARNING_RATE,
            seconds=options.seconds,
            seed=options.seed,
            muon_rate=MUON_RATE,
            compile=options.compile and _can_compile(),
        ),
        progress=progress,
    )
    score = evaluate(model, tokenizer, heldout)
    log.info("held-out loss %.3f after %d steps", score.loss, outcome.steps)
    save_model(model, tokenizer, directory)
    return {
        "heldout_loss_after": score.loss,
        "heldout_bits_per_byte_after": score.bits_per_byte,
        "train_loss": outcome.loss,
        "train_seconds": outcome.seconds,
        "steps": float(outcome.steps),
        "parameters": float(sum(weight.numel() for weight in model.parameters())),
    }


def _texts(settings: Settings, split: str) -> list[str]:
    return [row.text for row in read_shards(shard_paths(settings.shards / split))]


def _can_compile() -> bool:
    """torch.compile builds C++ on a CPU; without a compiler training runs uncompiled."""
    return shutil.which("g++") is not None or shutil.which("clang++") is not None
