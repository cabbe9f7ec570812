"""Which gateways there are, and on which partition each reads its answers.

A replica takes a partition of the chunk topic that no other live one reads. Two that start at the
same moment may take the same one, and so must some when there are more replicas than partitions:
they then read each other's records too, and pass them over by their keys.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import Literal

from infra.contracts import catalogue
from infra.contracts.bus import Bus, read_to_end
from infra.contracts.errors import FeedloomError
from infra.contracts.events.platform import GatewayStatusReported
from infra.contracts.reading import readable
from infra.registry.client import send
from infra.registry.workers import SILENT_MS

log = logging.getLogger(__name__)

TOPIC = catalogue.GATEWAYS.name
REPORT_S = 10.0
STOP_S = 5.0


def live_gateways(bus: Bus, *, now_ms: int) -> list[GatewayStatusReported]:
    """Those that were heard of lately, by id."""
    newest: dict[str, GatewayStatusReported] = {}
    for record in read_to_end(bus, TOPIC):
        newest.pop(record.key_text, None)
        if record.value is None:
            continue
        report = readable(record, GatewayStatusReported, log)
        if report is not None:
            newest[record.key_text] = report
    return sorted(
        (
            report
            for report in newest.values()
            if report.state == "ready" and now_ms - report.reported_at_ms <= SILENT_MS
        ),
        key=lambda report: report.gateway_id,
    )


def free_partition(others: list[GatewayStatusReported], partitions: int) -> int:
    """The one that the fewest others read; the first of several."""
    readers = Counter(report.reply_partition for report in others)
    return min(range(partitions), key=lambda partition: (readers[partition], partition))


class Presence:
    """Says every ten seconds that a replica is there, and at its end that it is not."""

    def __init__(self, bus: Bus, *, gateway_id: str, reply_partition: int, url: str) -> None:
        self._gateway_id = gateway_id
        self._reply_partition = reply_partition
        self._url = url
        self._publisher = bus.publisher(client_id=gateway_id)
        self._closing = threading.Event()
        self._report("ready")
        self._thread = threading.Thread(target=self._run, name="gateway-presence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say that it stops."""
        self._closing.set()
        self._thread.join()
        self._report("stopped")
        try:
            self._publisher.flush(STOP_S)
        except TimeoutError:
            log.warning("nobody could be told that this gateway stops: Kafka takes no records")
        self._publisher.close()

    def _run(self) -> None:
        while not self._closing.wait(REPORT_S):
            try:
                self._report("ready")
            except FeedloomError as error:
                log.warning("presence not reported: %s", error)

    def _report(self, state: Literal["ready", "stopped"]) -> None:
        event = GatewayStatusReported(
            gateway_id=self._gateway_id,
            state=state,
            reply_partition=self._reply_partition,
            reported_at_ms=time.time_ns() // 1_000_000,
            url=self._url,
        )
        send(self._publisher, TOPIC, self._gateway_id, event, source=self._gateway_id)
