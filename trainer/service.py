"""The learning loop: wait for feedback, learn from it, publish, and roll out what passed.

Single-threaded. A crash at any point loses no feedback and publishes nothing twice: the position is
in the lineage of what was published.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version as package_version
from itertools import islice
from pathlib import Path

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Publisher
from infra.contracts.config_keys import Value
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import FatalError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import Lineage, ModelVersionPublished
from infra.files import sha256_of
from infra.registry.client import RegistryWatcher
from infra.registry.config import ConfigWatcher
from infra.registry.lineage import LEARNT_FROM
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.registry.transitions import reasons
from infra.settings import Settings
from observability.messaging import MAXIMUM_LINKS, receive_attributes
from trainer import origins
from trainer.curation import held_out
from trainer.intake import Batch, FeedbackIntake, awaiting_rollout, in_use, next_offsets
from trainer.model import save_model
from trainer.pile import PileRow, read_shards, shard_paths
from trainer.publishing import publish, published_from, roll_out
from trainer.recording import RoundRecord
from trainer.replay import replay_fraction
from trainer.rounds import REPLAY_DOCUMENTS, Inputs, curated_feedback, run_round
from trainer.run_folders import forget
from trainer.training import TrainingStopped
from trainer.triggers import LiveWinRate, Schedule, why_now
from trainer.whole import whole

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.trainer")


class TrainerService:
    """One model's loop. ``stop`` ends it between steps; an unfinished round publishes nothing.

    ``pinned``: values of ``trainer.*`` by name that hold whatever the configuration topic says.
    """

    def __init__(
        self,
        settings: Settings,
        bus: Bus,
        *,
        stop: threading.Event,
        pinned: Mapping[str, Value] | None = None,
    ) -> None:
        self._settings = settings
        self._pinned = dict(pinned or {})
        self._model = settings.trainer.model
        self._bus = bus
        self._stop = stop
        self._store = ArtifactStore(settings.artifacts)

    def run(self, *, once: bool = False, now: bool = False) -> None:
        """Train whenever enough feedback waits, until stopped (or after one round).

        ``now``: the first round does not wait for more than there is.

        Raises FatalError when there is no stable version to start from.
        """
        watcher = RegistryWatcher(self._bus)
        configuration = ConfigWatcher(
            self._bus,
            {f"trainer.{name}": value for name, value in self._settings.trainer.config.items()},
        )
        publisher = self._bus.publisher(client_id="feedloom-trainer")
        intake: FeedbackIntake | None = None
        try:
            watcher.catch_up()
            configuration.catch_up()
            self._finish_rollout(watcher, configuration, publisher)
            state = watcher.state
            rate = LiveWinRate()
            schedule = Schedule(self._settings.trainer.schedule, last_s=self._last_round_s(state))
            rate.follow(self._serving(state))
            intake = FeedbackIntake(
                self._bus,
                model=self._model,
                used=next_offsets(in_use(state, self._model)),
                tried=next_offsets(state.versions(self._model)),
                measures=lambda one: self._measures(one, self._config(configuration)),
                rate=rate,
            )
            counted = self._in_use(state)
            if now:
                intake.catch_up()
                self._forget(intake)
            else:
                least = self._config(configuration).min_examples
                log.info("waiting for %d feedback examples", least)
            while not self._stop.is_set():
                intake.poll(0.5)
                self._forget(intake)
                watcher.poll(0.0)
                configuration.poll(0.0)
                config = self._config(configuration)
                before, counted = counted, self._in_use(watcher.state)
                if before != counted:
                    if gone := ", ".join(sorted(before - counted)):
                        log.info("%s serves no more: its feedback is learnt again", gone)
                    if come := ", ".join(sorted(counted - before)):
                        log.info("%s is in use: its feedback is learnt", come)
                    intake.follow(next_offsets(in_use(watcher.state, self._model)))
                rate.follow(self._serving(watcher.state))
                why = "manual" if now else _due(intake, rate, schedule, config)
                if why is None:
                    continue
                now = False
                log.info("a round begins, by %s", why)
                try:
                    learnt = self._round(
                        intake.batch(), config, watcher, configuration, publisher, why=why
                    )
                except TrainingStopped:
                    log.info("stopped; the feedback is read again next time")
                    return
                intake.settle(learnt=learnt)
                counted = self._in_use(watcher.state)
                schedule.ran(time.time())
                if once:
                    return
        finally:
            if intake is not None:
                intake.close()
            publisher.close()
            configuration.close()
            watcher.close()

    def _config(self, configuration: ConfigWatcher) -> TrainerConfig:
        """What is in force now."""
        return msgspec.structs.replace(configuration.state.trainer, **self._pinned)

    @staticmethod
    def _measures(example: FeedbackExample, config: TrainerConfig) -> bool:
        return held_out(example.prompt, config.heldout_fraction)

    def _forget(self, intake: FeedbackIntake) -> None:
        """No report on this machine shows what somebody asked to be forgotten."""
        for report in forget(self._settings.runs, self._model, intake.take_forgotten()):
            log.info("%s is removed: it showed feedback that was to be forgotten", report)

    def _in_use(self, state: RegistryState) -> set[str]:
        """The versions whose feedback need not be learnt again."""
        return {version.version for version in in_use(state, self._model)}

    def _serving(self, state: RegistryState) -> str | None:
        version = state.stable(self._model)
        return None if version is None else f"{self._model}@{version.version}"

    def _last_round_s(self, state: RegistryState) -> float:
        """When this model's newest version was published, epoch; now if there is none."""
        moments = [version.created_at_ms for version in state.versions(self._model)]
        return max(moments) / 1000 if moments else time.time()

    def _finish_rollout(
        self, watcher: RegistryWatcher, configuration: ConfigWatcher, publisher: Publisher
    ) -> None:
        version = awaiting_rollout(watcher.state, self._model)
        if version is not None:
            self._roll_out(version, watcher, configuration, publisher)

    def _round(
        self,
        batch: Batch,
        config: TrainerConfig,
        watcher: RegistryWatcher,
        configuration: ConfigWatcher,
        publisher: Publisher,
        *,
        why: str,
    ) -> bool:
        """Whether the feedback is in a version that serves or is tried, or is of no use."""
        if not batch.examples:
            log.info("no feedback that is not learnt from")
            return True
        parent = watcher.state.stable(self._model)
        if parent is None:
            raise FatalError(
                f"model {self._model!r} has no stable version to train from: "
                "`feedloom models bootstrap`"
            )
        with tracer.start_as_current_span(
            f"train {self._model}",
            Context(),
            links=[
                *watcher.links(self._model, parent.version),
                *origins.links(self._settings.shards),
            ],
            attributes={
                "feedloom.model": self._model,
                "feedloom.replay.shards": [path.name for path in self._train_shards()],
                "feedloom.version.parent": parent.version,
                "feedloom.examples": len(batch.examples),
                "feedloom.trigger": why,
            },
        ) as span:
            _link_feedback(batch)
            version = published_from(
                watcher.state,
                self._model,
                Lineage(parent=parent.version, feedback=batch.ranges),
            ) or self._train(parent, batch, config, watcher, publisher)
            if version is None:
                return True
            span.set_attribute("feedloom.version", version.version)
            span.set_attribute("feedloom.gate.passed", not version.rejected)
            if version.rejected:
                return False
            if self._stop.wait(self._settings.trainer.rollout_delay_s):
                raise TrainingStopped  # the next start finishes the rollout
            return self._roll_out(version, watcher, configuration, publisher)

    def _train(
        self,
        parent: ModelVersionPublished,
        batch: Batch,
        config: TrainerConfig,
        watcher: RegistryWatcher,
        publisher: Publisher,
    ) -> ModelVersionPublished | None:
        """Train and publish, whatever the gate says. ``None``: nothing to train on."""
        replay = replay_fraction(config, watcher.state.versions(self._model))
        if replay != config.replay_fraction:
            log.info("%.0f %% replay, by what the last round forgot", 100 * replay)
            config = msgspec.structs.replace(config, replay_fraction=replay)
        shards = self._train_shards()
        inputs = Inputs(
            parent=whole(
                parent,
                state=watcher.state,
                store=self._store,
                cache=self._settings.home / "merged",
            ),
            feedback=batch.examples,
            measuring=batch.measuring,
            replay=list(islice(read_shards(shards), REPLAY_DOCUMENTS)),
            heldout=self._heldout(),
        )
        settings = self._settings.trainer
        curated = curated_feedback(inputs, config, settings, now_ms=time.time_ns() // 1_000_000)
        for reason, count in sorted(curated.dropped.items()):
            log.info("%d examples left out: %s", count, reason)
        with RoundRecord(
            self._settings,
            config,
            curated,
            model=self._model,
            version=watcher.state.next_version(self._model),
            parent=parent.version,
        ) as record:
            trained = run_round(
                inputs, curated, config, settings, progress=record.progress, stop=self._stop
            )
            if trained is not None:
                record.finish(trained)
        if trained is None:
            log.info("nothing in %d examples to train on", len(batch.examples))
            return None
        for check in trained.gate.checks:
            log.info("gate: %s: %s", "passed" if check.passed else "FAILED", check.reason)
        with tempfile.TemporaryDirectory(prefix="feedloom-trained-") as name:
            folder = Path(name)
            save_model(trained.model, trained.tokenizer, folder)
            (folder / LEARNT_FROM).write_bytes(msgspec.json.encode(curated.request_ids))
            record.write(folder)
            return publish(
                folder,
                model=self._model,
                lineage=Lineage(
                    parent=parent.version,
                    objective=trained.objective,
                    feedback=batch.ranges,
                    feedback_examples=len(curated.request_ids),
                    replay_shards=tuple(path.name for path in shards),
                    replay_sha256=tuple(map(sha256_of, shards)),
                    replay_fraction=config.replay_fraction,
                    seed=settings.seed,
                    steps=trained.steps,
                    adapter_rank=config.lora_rank,
                    code_version=package_version("feedloom"),
                ),
                metrics=trained.metrics,
                gate=trained.gate,
                store=self._store,
                state=watcher.state,
                publisher=publisher,
            )

    def _roll_out(
        self,
        version: ModelVersionPublished,
        watcher: RegistryWatcher,
        configuration: ConfigWatcher,
        publisher: Publisher,
    ) -> bool:
        """Whether it serves, or is tried, from now on."""
        # A round is long: what was changed meanwhile must not be undone.
        watcher.catch_up()
        configuration.catch_up()
        current = roll_out(
            version,
            state=watcher.state,
            publisher=publisher,
            reason=reasons(version.gate) if version.gate is not None else "published",
            config=configuration.state.rollout,
        )
        return current is not None

    def _train_shards(self) -> list[Path]:
        return shard_paths(self._settings.shards / "train")

    def _heldout(self) -> list[PileRow]:
        paths = shard_paths(self._settings.shards / "heldout")
        if not paths:
            raise FatalError(
                f"no held-out shards in {self._settings.shards}: `feedloom models bootstrap`"
            )
        return list(read_shards(paths))


def _link_feedback(batch: Batch) -> None:
    """Spans that link to each example of a round, as many as the SDK keeps on one."""
    for start in range(0, len(batch.links), MAXIMUM_LINKS):
        links = batch.links[start : start + MAXIMUM_LINKS]
        attributes = receive_attributes(catalogue.EXAMPLES.name, len(links))
        tracer.start_span(
            f"poll {catalogue.EXAMPLES.name}",
            kind=SpanKind.CLIENT,
            links=links,
            attributes=attributes,
        ).end()


def _due(
    intake: FeedbackIntake, rate: LiveWinRate, schedule: Schedule, config: TrainerConfig
) -> str | None:
    return why_now(
        teaching=intake.teaching,
        waiting=intake.waiting,
        waited_s=intake.waited_s,
        fall=rate.fall(config.drift_window),
        scheduled=schedule.is_due(time.time()),
        config=config,
    )
