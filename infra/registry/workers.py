"""What workers have said of themselves: the newest report of each."""

from __future__ import annotations

import logging

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record, catch_up
from infra.contracts.events.platform import WorkerStatusReported
from infra.contracts.reading import readable

log = logging.getLogger(__name__)

TOPIC = catalogue.WORKERS.name
TIMEOUT_S = 30.0
SILENT_MS = 35_000
"""Workers report every 10 s; one that was not heard of for so long is taken for dead."""


class WorkersWatcher:
    """Reads the topic from the beginning, without a group, and keeps each worker's newest report.

    A worker that died without a word is among them: its report is only older than others'.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reader = bus.reader([TOPIC])
        self.reports: dict[str, WorkerStatusReported] = {}

    def poll(self, timeout_s: float) -> None:
        """Take in what came. A record that cannot be read is logged and passed over."""
        for record in self._reader.poll(timeout_s):
            self._apply(record)

    def _apply(self, record: Record) -> None:
        if record.value is None:
            self.reports.pop(record.key_text, None)
            return
        report = readable(record, WorkerStatusReported, log)
        if report is not None:
            self.reports[report.worker_id] = report

    def live(self, model: str, *, now_ms: int, silent_ms: int) -> set[str]:
        """The workers that serve a model and have said so within ``silent_ms`` (two clocks)."""
        return {
            one.worker_id
            # A copy: another thread may take in reports meanwhile.
            for one in list(self.reports.values())
            if one.state in ("starting", "ready")
            and model in one.versions
            and now_ms - one.reported_at_ms <= silent_ms
        }

    def catch_up(self, timeout_s: float = TIMEOUT_S) -> None:
        """Poll up to the end that the topic has now. Raises FatalError after ``timeout_s``."""
        catch_up(self._bus, self._reader, [TOPIC], self.poll, what=TOPIC, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def read_workers(bus: Bus) -> list[WorkerStatusReported]:
    """The newest report of each worker. Raises FatalError when the topic cannot be read."""
    watcher = WorkersWatcher(bus)
    try:
        watcher.catch_up()
    finally:
        watcher.close()
    return list(watcher.reports.values())
