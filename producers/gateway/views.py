"""What the gateway knows of the platform: versions, settings, workers, and how far they lag.

Each is a fold of a topic that is read from its beginning before the first call is answered.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from infra.contracts import catalogue
from infra.contracts.bus import Bus
from infra.contracts.config_keys import ConfigState
from infra.contracts.errors import FeedloomError
from infra.kafka.connection import AccessRefused, LoginRefused
from infra.registry.client import RegistryWatcher
from infra.registry.config import ConfigWatcher
from infra.registry.state import RegistryState
from infra.registry.workers import SILENT_MS, WorkersWatcher

log = logging.getLogger(__name__)

POLL_S = 0.05
LAG_EVERY_S = 2.0


class Views:
    """Kept up to date by a thread of its own. ``lag`` counts requests; it may raise FeedloomError.

    ``polls`` are called in turn with the time that each may take.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        lag: Callable[[], int] | None = None,
        polls: tuple[Callable[[float], object], ...] = (),
    ) -> None:
        self._registry = RegistryWatcher(bus)
        self._config = ConfigWatcher(bus)
        self.workers = WorkersWatcher(bus)
        for watcher in (self._registry, self._config, self.workers):
            watcher.catch_up()
        self._measure_lag = lag
        self._polls = (self._registry.poll, self._config.poll, self.workers.poll, *polls)
        self.lag = 0
        """Interactive requests that no worker has finished; as of two seconds ago."""
        self.fault: str | None = None
        """Why these views are no longer kept up to date."""
        self.kafka_answers = True
        """Whether the last look at the lag found Kafka; then workers are not silent because of
        it."""
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("gateway-views", self._watch), ("gateway-lag", self._weigh))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def registry(self) -> RegistryState:
        """All versions and rollouts."""
        return self._registry.state

    @property
    def config(self) -> ConfigState:
        """All settings."""
        return self._config.state

    def serving(self, model: str) -> set[str]:
        """Workers that serve a model and were heard of lately."""
        return self.workers.live(model, now_ms=time.time_ns() // 1_000_000, silent_ms=SILENT_MS)

    def close(self) -> None:
        """Stop reading."""
        self._closing.set()
        for thread in self._threads:
            thread.join()
        for watcher in (self._registry, self._config, self.workers):
            watcher.close()

    def _watch(self) -> None:
        try:
            while not self._closing.is_set():
                for poll in self._polls:
                    poll(POLL_S)
        except FeedloomError as error:
            log.exception("the platform's topics can no longer be read")
            self.fault = str(error)

    def _weigh(self) -> None:
        if self._measure_lag is None:
            return
        while not self._closing.wait(LAG_EVERY_S):
            try:
                self.lag = self._measure_lag()
                self.kafka_answers = True
            except FeedloomError as error:
                # The last figure stands.
                self.kafka_answers = isinstance(error, AccessRefused | LoginRefused)
                log.warning("lag of %s not measured: %s", catalogue.REQUESTS.name, error)
