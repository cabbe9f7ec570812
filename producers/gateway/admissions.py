"""Asks the admission log, and waits for what its order decides (``producers.gateway.ledger``)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record, RecordPosition, catch_up
from infra.contracts.errors import FeedloomError
from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded
from infra.contracts.reading import either
from infra.registry.client import send
from producers.gateway.errors import unavailable
from producers.gateway.ledger import KEYS_MS, AdmissionLedger, Decision

log = logging.getLogger(__name__)

TOPIC = catalogue.ADMISSIONS.name
POLL_S = 0.2
ANSWER_S = 5.0
SWEEP_S = 60.0
SWEEP_MARGIN_MS = 60_000
"""Clocks differ: what the log's own times have not forgotten must not be forgotten here."""


class Admissions:
    """One replica's view of the log. Only requests that a limit or a key concerns go through it."""

    def __init__(self, bus: Bus, *, source: str) -> None:
        self._source = source
        self._ledger = AdmissionLedger()
        self._waiting: dict[str, Future[Decision]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._publisher = bus.publisher(client_id=source)
        self._reader = bus.reader([TOPIC])
        self._reader.seek_since(time.time_ns() // 1_000_000 - KEYS_MS)
        catch_up(bus, self._reader, [TOPIC], self._poll, what=TOPIC, timeout_s=60.0)
        self._thread = threading.Thread(target=self._read, name=f"{source}-admissions", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the log is still read."""
        return self._thread.is_alive()

    async def ask(self, event: AdmissionAsked) -> Decision:
        """What the log decides. Raises ApiError 503 when that cannot be learnt in time."""
        answer: Future[Decision] = Future()
        with self._lock:
            self._waiting[event.request_id] = answer
        try:
            written = self._publish(event)
            written.add_done_callback(lambda done: _failed(done, answer))
            return await asyncio.wait_for(asyncio.wrap_future(answer), ANSWER_S)
        except (TimeoutError, FeedloomError) as error:
            raise unavailable("Kafka decides no admissions", code="broker_gone") from error
        finally:
            with self._lock:
                self._waiting.pop(event.request_id, None)

    def end(self, tenant: str, request_id: str, tokens: int | None) -> None:
        """An admitted request is over, having used so many tokens; ``None``: those reserved."""
        self._publish(AdmissionEnded(tenant=tenant, request_id=request_id, tokens=tokens))

    def close(self) -> None:
        """Write what is left, and stop."""
        self._closing.set()
        self._thread.join()
        self._publisher.close()

    def _publish(self, event: AdmissionAsked | AdmissionEnded) -> Future[RecordPosition]:
        return send(self._publisher, TOPIC, event.tenant, event, source=self._source)

    def _read(self) -> None:
        swept = time.monotonic()
        try:
            while not self._closing.is_set():
                self._poll(POLL_S)
                if time.monotonic() - swept > SWEEP_S:
                    swept = time.monotonic()
                    with self._lock:
                        self._ledger.sweep(time.time_ns() // 1_000_000 - SWEEP_MARGIN_MS)
        except FeedloomError:
            log.exception("the admission log can no longer be read: this gateway is not ready")
        finally:
            self._reader.close()

    def _poll(self, timeout_s: float) -> None:
        for record in self._reader.poll(timeout_s):
            self._apply(record)

    def _apply(self, record: Record) -> None:
        if record.value is None:
            return
        event = either(record, AdmissionAsked, AdmissionEnded, log)
        if event is None:
            return
        with self._lock:
            decision = self._ledger.apply(event, record.timestamp_ms)
            answer = self._waiting.get(event.request_id)
        if decision is not None and answer is not None:
            with suppress(InvalidStateError):
                answer.set_result(decision)


def _failed(written: Future[RecordPosition], answer: Future[Decision]) -> None:
    error = written.exception()
    if error is not None and not answer.done():
        with suppress(InvalidStateError):
            answer.set_exception(error)
