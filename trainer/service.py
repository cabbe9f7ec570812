"""The learning loop: wait for feedback, fine-tune the stable version, evaluate, publish."""

from __future__ import annotations

import logging
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version as package_version
from itertools import islice
from pathlib import Path

from opentelemetry import trace

from infra.contracts.bus import Bus
from infra.contracts.errors import FatalError
from infra.contracts.events import Lineage, ModelVersionPublished
from infra.registry.client import RegistryWatcher
from infra.registry.store import ArtifactStore
from infra.settings import Settings
from trainer.curation import Curated, curate
from trainer.evaluation import Evaluation, evaluate
from trainer.intake import Batch, FeedbackIntake, next_offsets
from trainer.model import load_model, save_model
from trainer.packing import Block, completion, document, fill, fit
from trainer.pile import read_shards, shard_paths
from trainer.publishing import passes_gate, publish, published_from, roll_out
from trainer.tokenizer import encode_all, load_tokenizer
from trainer.training import Progress, TrainingPlan, TrainingStopped, train

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.trainer")

HELDOUT_BLOCKS = 96
REPLAY_DOCUMENTS = 4000
MAXIMUM_SECONDS = 75.0
MAXIMUM_LINKS = 128
LOG_EVERY_S = 5.0


class TrainerService:
    """One model's loop. ``stop`` ends it between steps; an unfinished round publishes nothing."""

    def __init__(self, settings: Settings, bus: Bus, *, stop: threading.Event) -> None:
        self._settings = settings
        self._options = settings.trainer
        self._bus = bus
        self._stop = stop
        self._store = ArtifactStore(settings.artifacts)

    def run(self, *, once: bool = False) -> None:
        """Train whenever enough feedback waits, until stopped (or after one round).

        Raises FatalError when there is no stable version to start from.
        """
        watcher = RegistryWatcher(self._bus)
        publisher = self._bus.publisher(client_id="feedloom-trainer")
        intake: FeedbackIntake | None = None
        try:
            watcher.catch_up()
            self._finish_rollout(watcher, publisher)
            intake = FeedbackIntake(
                self._bus,
                model=self._options.model,
                start=next_offsets(watcher.state.versions(self._options.model)),
            )
            log.info("waiting for %d feedback examples", self._options.min_examples)
            while not self._stop.is_set():
                intake.poll(0.5)
                watcher.poll(0.0)
                if not self._enough(intake):
                    continue
                try:
                    self._round(intake.batch(), watcher, publisher)
                except TrainingStopped:
                    log.info("stopped; the feedback is read again next time")
                    return
                intake.settle()
                if once:
                    return
        finally:
            if intake is not None:
                intake.close()
            publisher.close()
            watcher.close()

    def _enough(self, intake: FeedbackIntake) -> bool:
        if intake.teaching >= self._options.min_examples:
            return True
        return intake.waiting > 0 and intake.waited_s >= self._options.max_wait_s

    def _finish_rollout(self, watcher: RegistryWatcher, publisher: object) -> None:
        """A trainer that died between version and rollout left the rollout undone."""
        state, model = watcher.state, self._options.model
        current = state.rollout(model)
        if current is None:
            return
        for version in state.versions(model):
            if version.lineage.parent == current.stable and self._passed(version):
                roll_out(version, state=state, publisher=publisher, reason=_reason(version))  # type: ignore[arg-type]
                return

    def _passed(self, version: ModelVersionPublished) -> bool:
        before = version.metrics.get("heldout_loss_before")
        after = version.metrics.get("heldout_loss_after")
        if before is None or after is None:
            return False
        return passes_gate(before, after, max_increase=self._options.max_loss_increase)

    def _round(self, batch: Batch, watcher: RegistryWatcher, publisher: object) -> None:
        model = self._options.model
        parent = watcher.state.stable(model)
        if parent is None:
            raise FatalError(
                f"model {model!r} has no stable version to train from: `feedloom models bootstrap`"
            )
        with tracer.start_as_current_span(
            f"train {model}",
            links=batch.links[:MAXIMUM_LINKS],
            attributes={
                "feedloom.version.parent": parent.version,
                "feedloom.examples": len(batch.examples),
            },
        ):
            heldout_texts = self._heldout_texts()
            curated = curate(batch.examples, heldout=frozenset(heldout_texts))
            for reason, count in sorted(curated.dropped.items()):
                log.info("%d examples left out: %s", count, reason)
            if not curated.pairs:
                log.info("nothing in %d examples to train on", len(batch.examples))
                return
            lineage = Lineage(
                parent=parent.version,
                objective="sft",
                feedback=batch.ranges,
                feedback_examples=len(curated.pairs),
                replay_shards=tuple(path.name for path in self._train_shards()),
                replay_fraction=self._options.replay_fraction,
                seed=self._options.seed,
                code_version=package_version("feedloom"),
            )
            version = published_from(watcher.state, model, lineage)
            if version is None:
                version = self._train(parent, lineage, curated, heldout_texts, watcher, publisher)
            if self._passed(version):
                if self._stop.wait(self._options.rollout_delay_s):
                    raise TrainingStopped  # the next start finishes the rollout
                roll_out(
                    version,
                    state=watcher.state,
                    publisher=publisher,  # type: ignore[arg-type]
                    reason=_reason(version),
                )
            else:
                log.warning("%s@%s is not rolled out: %s", model, version.version, _reason(version))

    def _train(
        self,
        parent: ModelVersionPublished,
        lineage: Lineage,
        curated: Curated,
        heldout_texts: Sequence[str],
        watcher: RegistryWatcher,
        publisher: object,
    ) -> ModelVersionPublished:
        import torch

        directory = Path(self._store.resolve(parent))
        torch.manual_seed(self._options.seed)
        net, tokenizer = load_model(directory), load_tokenizer(directory)
        size = min(self._options.block_size, net.config.max_position_embeddings)
        heldout = list(
            islice(fill(map(document, encode_all(tokenizer, heldout_texts)), size), HELDOUT_BLOCKS)
        )
        before = evaluate(net, tokenizer, heldout)
        blocks = self._blocks(tokenizer, curated, size)
        plan = TrainingPlan(
            batch_size=self._options.batch_size,
            learning_rate=self._options.learning_rate,
            seconds=MAXIMUM_SECONDS,
            seed=self._options.seed,
            steps=max(1, round(len(blocks) / self._options.batch_size)),
            threads=self._options.threads,
        )
        log.info("fine-tuning %s@%s: %d steps", parent.model, parent.version, plan.steps)
        outcome = train(net, blocks, plan, progress=_Logger(), stop=self._stop)
        after = evaluate(net, tokenizer, heldout)
        log.info("held-out loss %.3f before, %.3f after", before.loss, after.loss)
        if self._stop.is_set():
            raise TrainingStopped
        lineage = _with_steps(lineage, outcome.steps)
        with tempfile.TemporaryDirectory(prefix="feedloom-trained-") as folder:
            save_model(net, tokenizer, Path(folder))
            return publish(
                Path(folder),
                model=parent.model,
                lineage=lineage,
                metrics=_metrics(before, after, outcome.loss, outcome.seconds),
                store=self._store,
                state=watcher.state,
                publisher=publisher,  # type: ignore[arg-type]
            )

    def _blocks(self, tokenizer: object, curated: Curated, size: int) -> list[Block]:
        """Feedback, ``epochs`` times, and replayed Pile text to make up its share of the tokens."""
        prompts = encode_all(tokenizer, [pair.prompt for pair in curated.pairs])
        targets = encode_all(tokenizer, [pair.target for pair in curated.pairs])
        segments = [completion(p, t) for p, t in zip(prompts, targets, strict=True)]
        blocks = fit(segments, size, padding=tokenizer.pad_token_id)  # type: ignore[attr-defined]
        passes = max(1, round(self._options.epochs))
        share = self._options.replay_fraction
        wanted = round(passes * len(blocks) * share / (1 - share))
        texts = [row.text for row in islice(read_shards(self._train_shards()), REPLAY_DOCUMENTS)]
        random.Random(self._options.seed).shuffle(texts)
        replay = fill(map(document, encode_all(tokenizer, texts)), size)
        # Feedback is seen once a pass, replayed text once in all.
        blocks = [*blocks * passes, *islice(replay, wanted)]
        random.Random(self._options.seed).shuffle(blocks)
        return blocks

    def _train_shards(self) -> list[Path]:
        return shard_paths(self._settings.shards / "train")

    def _heldout_texts(self) -> list[str]:
        paths = shard_paths(self._settings.shards / "heldout")
        if not paths:
            raise FatalError(
                f"no held-out shards in {self._settings.shards}: `feedloom models bootstrap`"
            )
        return [row.text for row in read_shards(paths)]


class _Logger:
    """A line of progress every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last >= LOG_EVERY_S:
            self._last = now
            log.info(
                "step %d of %d, loss %.3f, %.0f tokens/s, %.0f s to go",
                progress.step,
                progress.steps,
                progress.loss,
                progress.tokens_per_s,
                progress.eta_s,
            )


def _with_steps(lineage: Lineage, steps: int) -> Lineage:
    import msgspec

    return msgspec.structs.replace(lineage, steps=steps)


def _metrics(
    before: Evaluation, after: Evaluation, train_loss: float, seconds: float
) -> dict[str, float]:
    return {
        "heldout_loss_before": before.loss,
        "heldout_loss_after": after.loss,
        "heldout_bits_per_byte_before": before.bits_per_byte,
        "heldout_bits_per_byte_after": after.bits_per_byte,
        "train_loss": train_loss,
        "train_seconds": seconds,
    }


def _reason(version: ModelVersionPublished) -> str:
    before = version.metrics.get("heldout_loss_before", float("nan"))
    after = version.metrics.get("heldout_loss_after", float("nan"))
    return f"held-out loss {before:.3f} before, {after:.3f} after"
