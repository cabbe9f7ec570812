"""What workers have said of themselves: the newest report of each."""

from __future__ import annotations

import logging

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, read_to_end
from infra.contracts.errors import ContractError
from infra.contracts.events import WorkerStatusReported

log = logging.getLogger(__name__)

TOPIC = catalogue.WORKERS.name
TIMEOUT_S = 30.0


def read_workers(bus: Bus) -> list[WorkerStatusReported]:
    """The newest report of each worker; one that died without a word is among them.

    A record that cannot be read is logged and passed over. Raises TimeoutError when the topic
    cannot be read.
    """
    found: dict[str, WorkerStatusReported] = {}
    for record in read_to_end(bus, TOPIC, timeout_s=TIMEOUT_S):
        if record.value is None:
            found.pop(record.key_text, None)
            continue
        try:
            report = codec.decode(record.value, WorkerStatusReported)
        except ContractError as error:
            where = f"{record.topic}/{record.partition} at {record.offset}"
            log.warning("unreadable record on %s: %s", where, error)
        else:
            found[report.worker_id] = report
    return list(found.values())
