"""Dynamic settings, read and applied to the parts of a worker while it runs."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from infra.contracts.bus import Bus
from infra.contracts.config_sections import Participation, WorkerConfig
from infra.contracts.events.generation import GenerationRequest
from infra.registry.config import ConfigWatcher
from infra.settings import WorkerSettings
from stream_workers.admission import Limits, Scheduler
from stream_workers.handler import RequestHandler
from stream_workers.request_settings import settled
from stream_workers.slack import BatchPolicy, BatchWindow
from stream_workers.transactions import Outgoing

_LOG = logging.getLogger(__name__)
OWN_PACKAGES = ("infra", "observability", "stream_workers")
"""Whose messages ``worker.log_level`` thins out; other libraries' levels are their own."""


class Configuration:
    """Dynamic settings as the parts of a worker take them. Static settings are the defaults.

    What is set for this worker (``workers.<worker-id>.*``) comes before ``worker.*``.
    """

    def __init__(self, settings: WorkerSettings, watcher: ConfigWatcher) -> None:
        self._settings = settings
        self._watcher = watcher

    @property
    def worker(self) -> WorkerConfig:
        """The settings of this worker."""
        return self._watcher.state.for_worker(self._settings.worker_id)

    @property
    def limits(self) -> Limits:
        """For the scheduler."""
        worker = self.worker
        return Limits(
            max_inflight_tokens=worker.max_inflight_tokens,
            max_waiting=worker.max_waiting,
            tenant=self._watcher.state.tenant,
        )

    @property
    def batch(self) -> BatchPolicy:
        """For the batch window."""
        state = self._watcher.state
        return BatchPolicy(
            max_tokens=self.worker.max_inflight_tokens,
            enabled=state.batch.enabled,
            ttft_factor=state.batch.ttft_factor,
            ttft_slack_s=state.batch.ttft_slack_s,
            max_kv_usage=state.batch.max_kv_usage,
        )

    def settle(self, request: GenerationRequest, value: bytes) -> GenerationRequest:
        """A request as settings complete and limit it. Raises RequestRefused."""
        state = self._watcher.state
        return settled(request, value, state.sampling, state.tenant(request.tenant))

    def participation(self, tenant: str | None) -> Participation:
        """Whether a tenant's requests take part in experiments."""
        return self._watcher.state.tenant(tenant).rollout

    async def follow(
        self,
        handler: RequestHandler[Outgoing],
        scheduler: Scheduler[Any],
        window: BatchWindow,
    ) -> None:
        """Apply what is in force, then every change until cancelled."""
        while True:
            worker = self.worker
            for package in OWN_PACKAGES:
                logging.getLogger(package).setLevel(worker.log_level)
            handler.chunk_interval_s = worker.chunk_interval_s
            handler.chunk_max_tokens = worker.chunk_max_tokens
            scheduler.reconfigure(self.limits)
            window.reconfigure(self.batch)
            while not (changed := await asyncio.to_thread(self._watcher.poll, 1.0)):
                pass
            _LOG.info("settings changed: %s", ", ".join(changed))


def config_watcher(bus: Bus, worker: WorkerSettings) -> ConfigWatcher:
    """A watcher that has read what is in force; ``worker`` has the defaults. Blocking."""
    watcher = ConfigWatcher(
        bus,
        {
            "worker.chunk_interval_s": worker.chunk_interval_s,
            "worker.chunk_max_tokens": worker.chunk_max_tokens,
            "worker.max_inflight_tokens": worker.max_inflight_tokens,
        },
    )
    watcher.catch_up()
    return watcher
