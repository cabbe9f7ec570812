"""Follows the registry and switches the engine. Knows nothing of Faust or vLLM.

Every worker reads the registry topics whole and without a group: in a group only one would see a
new version. Blocking reads run in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Literal

from opentelemetry import trace

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.contracts.events import (
    ModelVersionPublished,
    RolloutChanged,
    VersionSwitch,
    WorkerStatusReported,
)
from infra.registry.client import RegistryWatcher
from infra.registry.errors import ArtifactRejected
from infra.registry.store import ArtifactStore
from infra.registry.transitions import refusal
from stream_workers.engine import Engine, EngineDead

_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.stream_workers")
WorkerState = Literal["starting", "ready", "draining", "stopped", "failed"]


def version_name(published: ModelVersionPublished) -> str:
    """``model@version``, as chunks and results carry it."""
    return f"{published.model}@{published.version}"


async def wait_for_stable(
    watcher: RegistryWatcher, model: str, timeout_s: float = 600.0
) -> ModelVersionPublished:
    """The stable version to start with.

    Raises ConfigurationError after ``timeout_s``, and for one that may not serve.
    """
    await asyncio.to_thread(watcher.catch_up)
    end = time.monotonic() + timeout_s
    said = False
    while (stable := watcher.state.stable(model)) is None:
        if time.monotonic() > end:
            raise ConfigurationError(
                f"no stable version of model {model!r} within {timeout_s:.0f} s: publish one "
                "(feedloom models bootstrap)"
            )
        if not said:
            _LOG.warning("waiting for a stable version of model %r in the registry", model)
            said = True
        await asyncio.to_thread(watcher.poll, 1.0)
    why_not = refusal(stable)
    if why_not is not None:
        raise ConfigurationError(
            f"{version_name(stable)} is stable and may not serve: {why_not}; "
            "`feedloom models promote` another"
        )
    return stable


class VersionSwitcher:
    """Keeps one model's engine at the rollout's stable version, and says so.

    ``report`` publishes a status; ``in_flight`` counts running requests.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        store: ArtifactStore,
        watcher: RegistryWatcher,
        serving: ModelVersionPublished,
        worker_id: str,
        report: Callable[[WorkerStatusReported], None],
        in_flight: Callable[[], int],
        now_ms: Callable[[], int],
    ) -> None:
        self._engine = engine
        self._store = store
        self._watcher = watcher
        self._published = serving
        self._worker_id = worker_id
        self._report = report
        self._in_flight = in_flight
        self._now_ms = now_ms
        self._last: VersionSwitch | None = None
        self._failure: str | None = None
        self._settled: tuple[int, str] | None = None

    def serving(self) -> str:
        """The serving version's full name."""
        return version_name(self._published)

    def announce(self, state: WorkerState) -> None:
        """Publish what is served now."""
        self._report(
            WorkerStatusReported(
                worker_id=self._worker_id,
                state=state,
                versions={self._published.model: self._published.version},
                reported_at_ms=self._now_ms(),
                last_switch=self._last,
                failure=self._failure,
            )
        )

    async def follow(self) -> None:
        """Poll and switch until cancelled. Raises EngineDead."""
        while True:
            await asyncio.to_thread(self._watcher.poll, 0.25)
            await self.reconcile()

    async def reconcile(self) -> None:
        """Switch if the rollout names another version; one try a rollout revision."""
        rollout = self._watcher.state.rollout(self._published.model)
        target = self._watcher.state.stable(self._published.model)
        if rollout is None or target is None:
            return
        mark = (rollout.revision, target.version)
        if mark == self._settled:
            return
        self._settled = mark
        if target.version != self._published.version:
            await self._switch(target, rollout)

    async def _switch(self, target: ModelVersionPublished, rollout: RolloutChanged) -> None:
        before = self._published
        with _TRACER.start_as_current_span(
            f"switch {target.model}",
            attributes={
                "feedloom.version.from": version_name(before),
                "feedloom.version.to": version_name(target),
            },
        ) as span:
            in_flight = self._in_flight()
            try:
                why_not = refusal(target)
                if why_not is not None:
                    raise ArtifactRejected(why_not)
                path = await asyncio.to_thread(self._store.resolve, target)
                pause_ms = await self._engine.switch(
                    path, version_name(target), rollout.switch_policy
                )
            except EngineDead:
                raise
            except FeedloomError as error:
                self._failure = f"{version_name(target)}: {error}"
                span.record_exception(error)
                _LOG.error("switch refused, %s keeps serving: %s", version_name(before), error)
            else:
                self._published, self._failure = target, None
                self._last = VersionSwitch(
                    model=target.model,
                    from_version=before.version,
                    to_version=target.version,
                    switched_at_ms=self._now_ms(),
                    pause_ms=pause_ms,
                    in_flight=in_flight,
                )
                _LOG.info("serving %s after %.1f ms", version_name(target), pause_ms)
        self.announce("ready")
