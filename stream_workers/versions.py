"""Follows the registry and makes the engine serve what it says. Knows nothing of Faust or vLLM.

Every worker reads the registry topics whole and without a group: in a group only one would see a
new version. Blocking reads run in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opentelemetry import trace

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import VersionSwitch, WorkerStatusReported
from infra.registry.client import RegistryWatcher
from infra.registry.errors import ArtifactRejected
from infra.registry.store import ArtifactStore
from infra.registry.workers import SILENT_MS, WorkersWatcher
from infra.rollouts.assignment import cohort
from observability.instruments import MODEL_KIND, OUTCOME, SWITCH_PAUSE, SWITCHES
from observability.tracing import fail, span
from stream_workers.adapters import check_fit
from stream_workers.engine import Engine, EngineDead, SwitchPolicy
from stream_workers.plan import Plan, obstacle, plan_of, version_name
from stream_workers.routing import Routing, Trial
from stream_workers.smoke import smoke

HEARTBEAT_S = 10.0

_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.stream_workers")
WorkerState = Literal["starting", "ready", "draining", "stopped", "failed"]


async def wait_for_plan(watcher: RegistryWatcher, model: str, timeout_s: float = 600.0) -> Plan:
    """What to start with: the stable version, without the candidate.

    Raises ConfigurationError after ``timeout_s``, and for a version that may not serve.
    """
    await asyncio.to_thread(watcher.catch_up)
    end = time.monotonic() + timeout_s
    said = False
    while (plan := _stable_plan(watcher, model)) is None:
        if time.monotonic() > end:
            raise ConfigurationError(
                f"no stable version of model {model!r} within {timeout_s:.0f} s: publish one "
                "(feedloom models bootstrap)"
            )
        if not said:
            _LOG.warning("waiting for a stable version of model %r in the registry", model)
            said = True
        await asyncio.to_thread(watcher.poll, 1.0)
    for version in (plan.base, plan.serving):
        why_not = obstacle(plan, version)
        if why_not is not None:
            raise ConfigurationError(
                f"{version_name(plan.serving)} is stable and may not serve: {why_not}; "
                "`feedloom models promote` another"
            )
    return plan


def _stable_plan(watcher: RegistryWatcher, model: str) -> Plan | None:
    rollout = watcher.state.rollout(model)
    if rollout is None:
        return None
    plan = plan_of(watcher.state, rollout, in_cohort=False)
    return None if plan is None else Plan(base=plan.base, serving=plan.serving)


@dataclass(frozen=True)
class _Served:
    """What a worker served before a switch."""

    base: ModelVersionPublished
    path: str
    adapters: dict[str, ModelVersionPublished]
    routing: Routing


class VersionSwitcher:
    """Keeps one model's engine at what the rollout says, chooses each request's version, reports.

    ``base`` are the weights that the engine was built with, from ``path``; an adapter that is
    stable is loaded by the first ``reconcile``. ``report`` publishes a status; ``in_flight`` counts
    running requests, ``queued`` those that wait to run.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        store: ArtifactStore,
        watcher: RegistryWatcher,
        workers: WorkersWatcher,
        base: ModelVersionPublished,
        path: str,
        worker_id: str,
        report: Callable[[WorkerStatusReported], None],
        in_flight: Callable[[], int],
        queued: Callable[[], int],
        now_ms: Callable[[], int],
        max_adapter_rank: int = 16,
    ) -> None:
        self._engine = engine
        self._store = store
        self._watcher = watcher
        self._workers = workers
        self._base, self._path = base, path
        self._serving = base
        self._worker_id = worker_id
        self._report = report
        self._in_flight = in_flight
        self._queued = queued
        self._now_ms = now_ms
        self._max_adapter_rank = max_adapter_rank
        self._state: WorkerState = "starting"
        self._last: VersionSwitch | None = None
        self._failure: str | None = None
        self._settled: tuple[RolloutChanged, bool] | None = None
        self._adapters: dict[str, ModelVersionPublished] = {}
        """Loaded ones by name; the one that was wanted last comes last."""
        self.routing = Routing(serving=version_name(base))

    def serving(self) -> str:
        """The full name of the version that answers whoever takes part in no experiment."""
        return self.routing.serving

    @property
    def failure(self) -> str | None:
        """Why the last rollout could not be followed; ``None``: it was."""
        return self._failure

    def announce(self, state: WorkerState) -> None:
        """Publish what is served now."""
        self._state = state
        served = self._serving
        loaded = [self._base.version, *(one.version for one in self._adapters.values())]
        self._report(
            WorkerStatusReported(
                worker_id=self._worker_id,
                state=state,
                versions={served.model: served.version},
                reported_at_ms=self._now_ms(),
                last_switch=self._last,
                failure=self._failure,
                loaded={served.model: tuple(loaded)},
                in_flight=self._in_flight(),
                queued=self._queued(),
            )
        )

    async def begin(self, plan: Plan) -> None:
        """Load what is there to be loaded, before the first request.

        Generates once: vLLM compiles at the first log-probability, and 64 streams stood still for
        2.4 s when that came with the first switch.

        Raises ConfigurationError when the stable version is an adapter that cannot be loaded: the
        weights below it are another version; SwitchFailed when the weights cannot generate.
        """
        await smoke(self._engine, version_name(self._base))
        await self.reconcile()
        if plan.serving != plan.base and self.serving() == version_name(plan.base):
            raise ConfigurationError(
                f"{version_name(plan.serving)} is stable and cannot be loaded: {self._failure}"
            )

    async def follow(self) -> None:
        """Poll, switch, and report every HEARTBEAT_S until cancelled. Raises EngineDead."""
        reported = time.monotonic()
        while True:
            await asyncio.to_thread(self._watcher.poll, 0.25)
            await asyncio.to_thread(self._workers.poll, 0.0)
            await self.reconcile()
            if time.monotonic() - reported >= HEARTBEAT_S:
                reported = time.monotonic()
                self.announce(self._state)

    async def reconcile(self) -> None:
        """Load and switch if the rollout asks for it; one try a rollout and cohort."""
        rollout = self._watcher.state.rollout(self._base.model)
        if rollout is None:
            return
        mark = (rollout, self._in_cohort(rollout))
        if mark == self._settled:
            return
        plan = plan_of(self._watcher.state, rollout, in_cohort=mark[1])
        if plan is None:
            return
        self._settled = mark
        before = (self._base, self._serving, tuple(self._adapters), self._failure)
        self._failure = None
        wanted = {version_name(one) for one in plan.adapters}
        trial = self.routing.trial
        if trial is not None and trial.candidate not in wanted:
            # First of all nobody is sent to what is withdrawn.
            self.routing = Routing(serving=self.routing.serving)
        if await self._serve(plan, rollout):
            candidate = await self._beside(plan, rollout)
            self.routing = self._routing(plan, rollout, candidate)
        if before != (self._base, self._serving, tuple(self._adapters), self._failure):
            self.announce(self._state)

    def _in_cohort(self, rollout: RolloutChanged) -> bool:
        if rollout.state != "canary":
            return False
        live = self._workers.live(rollout.model, now_ms=self._now_ms(), silent_ms=SILENT_MS)
        members = cohort(rollout.experiment, live | {self._worker_id}, rollout.candidate_weight)
        return self._worker_id in members

    async def _serve(self, plan: Plan, rollout: RolloutChanged) -> bool:
        """Make the plan's version answer. ``False``: what answered before still does."""
        before, target = self._serving, plan.serving
        if target == before and plan.base == self._base:
            return True
        with span(
            _TRACER,
            f"switch {target.model}",
            parent=(),
            links=self._watcher.links(target.model, target.version),
            attributes={
                "feedloom.model": target.model,
                "feedloom.version.from": version_name(before),
                "feedloom.version.to": version_name(target),
                "feedloom.worker.id": self._worker_id,
            },
        ) as switching:
            in_flight = self._in_flight()
            served = _Served(self._base, self._path, dict(self._adapters), self.routing)
            try:
                for version in (plan.base, target):
                    self._admit(plan, version)
                pause_ms = await self._switch_base(plan.base, rollout)
                if target.kind == "lora":
                    await self._load(plan, target, rollout.switch_policy)
            except EngineDead:
                raise
            except FeedloomError as error:
                self._refused(target, error)
                fail(switching, type(error).__qualname__, str(error))
                await self._go_back(served, rollout.switch_policy)
                return False
            self._serving = target
            # At once: an adapter may be long in coming, and nothing else must be asked for.
            self.routing = Routing(serving=version_name(target))
            if target != before:
                kind = {MODEL_KIND: target.kind}
                SWITCH_PAUSE.record(pause_ms / 1000, kind)
                SWITCHES.add(1, {**kind, OUTCOME: "loaded"})
                self._last = VersionSwitch(
                    model=target.model,
                    from_version=before.version,
                    to_version=target.version,
                    switched_at_ms=self._now_ms(),
                    pause_ms=pause_ms,
                    in_flight=in_flight,
                )
            _LOG.info("serving %s after a pause of %.1f ms", version_name(target), pause_ms)
            return True

    async def _beside(self, plan: Plan, rollout: RolloutChanged) -> ModelVersionPublished | None:
        """Load the candidate's adapter, if there is one; ``None`` when there is none to be had."""
        candidate = plan.candidate
        if candidate is None:
            return None
        known = version_name(candidate) in self._adapters
        try:
            self._admit(plan, candidate)
            await self._load(plan, candidate, rollout.switch_policy)
        except EngineDead:
            raise
        except FeedloomError as error:
            self._refused(candidate, error)
            return None
        if not known:
            SWITCHES.add(1, {MODEL_KIND: candidate.kind, OUTCOME: "loaded"})
        return candidate

    def _routing(
        self, plan: Plan, rollout: RolloutChanged, candidate: ModelVersionPublished | None
    ) -> Routing:
        serving = version_name(plan.serving)
        tried = self._watcher.state.version(rollout.model, rollout.candidate or "")
        if tried is None or (tried.kind == "lora" and candidate is None):
            return Routing(serving=serving)
        return Routing(
            serving=serving,
            trial=Trial(
                experiment=rollout.experiment,
                unit=rollout.unit,
                weight=rollout.candidate_weight,
                candidate=None if candidate is None else version_name(candidate),
                arm=plan.arm,
                shadow=rollout.state == "shadow",
            ),
        )

    @staticmethod
    def _admit(plan: Plan, version: ModelVersionPublished) -> None:
        why_not = obstacle(plan, version)
        if why_not is not None:
            raise ArtifactRejected(why_not)

    def _refused(self, version: ModelVersionPublished, error: FeedloomError) -> None:
        self._failure = f"{version_name(version)}: {error}"
        outcome = "refused" if isinstance(error, ArtifactRejected) else "failed"
        SWITCHES.add(1, {MODEL_KIND: version.kind, OUTCOME: outcome})
        _LOG.error("%s refused, %s keeps serving: %s", version_name(version), self.serving(), error)

    async def _switch_base(self, base: ModelVersionPublished, rollout: RolloutChanged) -> float:
        """Other full weights, in place; returns the pause, ms.

        Adapters go first, as they fit their own base alone.
        """
        if base == self._base:
            return 0.0
        path = await asyncio.to_thread(self._store.resolve, base)
        self.routing = Routing(serving=version_name(self._base))
        for name in tuple(self._adapters):
            del self._adapters[name]
            await self._engine.unload_adapter(name, rollout.switch_policy)
        pause_ms = await self._engine.switch(path, version_name(base), rollout.switch_policy)
        self._base, self._path = base, path
        await smoke(self._engine, version_name(base))
        return pause_ms

    async def _go_back(self, served: _Served, policy: SwitchPolicy) -> None:
        """Serve what served before a switch that failed half-way. Raises EngineDead."""
        try:
            if self._base != served.base:
                for name in tuple(self._adapters):
                    del self._adapters[name]
                    await self._engine.unload_adapter(name, policy)
                await self._engine.switch(served.path, version_name(served.base), policy)
                self._base, self._path = served.base, served.path
            for name, version in served.adapters.items():
                if name not in self._adapters:
                    path = await asyncio.to_thread(self._store.resolve, version)
                    await self._engine.load_adapter(path, name)
                    self._adapters[name] = version
        except EngineDead:
            raise
        except FeedloomError as error:
            raise EngineDead(f"neither what was to serve nor what served loads: {error}") from error
        self.routing = served.routing

    async def _load(self, plan: Plan, version: ModelVersionPublished, policy: SwitchPolicy) -> None:
        """Load an adapter beside the weights, if it is not there yet, and try it."""
        name = version_name(version)
        if name in self._adapters:
            self._adapters[name] = self._adapters.pop(name)
            return
        path = await asyncio.to_thread(self._store.resolve, version)
        await asyncio.to_thread(
            check_fit, Path(path), Path(self._path), max_rank=self._max_adapter_rank
        )
        await self._make_room(plan, policy)
        await self._engine.load_adapter(path, name)
        try:
            await smoke(self._engine, name)
        except FeedloomError:
            await self._engine.unload_adapter(name, "keep")
            raise
        self._adapters[name] = version
        _LOG.info("loaded %s beside %s", name, version_name(self._base))

    async def _make_room(self, plan: Plan, policy: SwitchPolicy) -> None:
        """Unload what nothing asks for any more, the one wanted longest ago first."""
        kept = {version_name(one) for one in plan.adapters} | {version_name(self._serving)}
        while len(self._adapters) >= self._engine.max_adapters:
            name = next((one for one in self._adapters if one not in kept), None)
            if name is None:
                return
            del self._adapters[name]
            await self._engine.unload_adapter(name, policy)
