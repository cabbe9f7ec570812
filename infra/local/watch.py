"""What the platform says of itself: worker reports, versions and rollouts, read without a group."""

from __future__ import annotations

import time
from collections.abc import Callable

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus
from infra.contracts.errors import ContractError, FatalError
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import WorkerStatusReported


class PlatformSilent(FatalError):
    """The platform did not reach an expected state in time."""


class PlatformWatch:
    """The newest worker reports, versions and rollouts, as of the last :meth:`poll`."""

    def __init__(self, bus: Bus) -> None:
        self._reader = bus.reader(
            [catalogue.WORKERS.name, catalogue.REGISTRY.name, catalogue.ROLLOUTS.name]
        )
        self.workers: dict[str, WorkerStatusReported] = {}
        self.versions: dict[tuple[str, str], ModelVersionPublished] = {}
        self.rollouts: dict[str, RolloutChanged] = {}

    def poll(self, timeout_s: float = 0.1) -> None:
        """Take in what was published since."""
        for record in self._reader.poll(timeout_s):
            if record.value is None:
                continue
            try:
                event = codec.decode_any(record.value)
            except ContractError:
                continue  # the services that own these topics report what they cannot read
            if isinstance(event, WorkerStatusReported):
                self.workers[event.worker_id] = event
            elif isinstance(event, ModelVersionPublished):
                self.versions[event.model, event.version] = event
            elif isinstance(event, RolloutChanged):
                self.rollouts[event.model] = event

    def serving(self, model: str, version: str | None = None) -> bool:
        """True if a ready worker serves ``model`` (at ``version``, if given)."""
        return any(
            report.state == "ready"
            and model in report.versions
            and (version is None or report.versions[model] == version)
            for report in self.workers.values()
        )

    def wait_for(
        self,
        what: str,
        condition: Callable[[], bool],
        *,
        timeout_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> float:
        """Poll until ``condition`` holds; returns the seconds it took.

        ``check`` runs between polls and may raise, as when a child has died. Raises
        PlatformSilent, naming ``what``, after ``timeout_s``.
        """
        start = time.monotonic()
        while not condition():
            check()
            if time.monotonic() - start > timeout_s:
                raise PlatformSilent(f"no sign of: {what}, after {timeout_s:.0f} s")
            self.poll()
        return time.monotonic() - start

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()
