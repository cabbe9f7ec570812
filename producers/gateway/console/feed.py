"""Follows the results and the decisions on canaries from now on, for the console's figures.

Without a group: every gateway counts all results of the platform, whichever of them was asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record
from infra.contracts.errors import FeedloomError
from infra.contracts.events.generation import Timings
from infra.contracts.events.model import RolloutDecided
from infra.rollouts.arms import FAILED
from infra.rollouts.decisions import DecisionsWatcher
from producers.gateway.console.window import LiveWindow

log = logging.getLogger(__name__)

STEP_S = 5
RECENT_S = 10
RESULTS_POLL_S = 0.2
DECISIONS_POLL_S = 0.05


class _Ended(msgspec.Struct):
    """What of a result is counted. All of the platform's pass here: the texts are not decoded."""

    finish_reason: str
    output_tokens: int
    timings: Timings = Timings()


_DECODER = msgspec.json.Decoder(_Ended)


class LiveFeed:
    """A thread of its own between :meth:`start` and :meth:`close`; both block.

    ``lag`` is asked once a second.
    """

    def __init__(self, bus: Bus, *, lag: Callable[[], int]) -> None:
        self._bus = bus
        self._lag = lag
        self._window = LiveWindow()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._decisions: tuple[RolloutDecided, ...] = ()
        self.since_ms: int | None = None
        """When counting began."""
        self.fault: str | None = None
        """Why nothing is counted any more."""

    def start(self) -> None:
        """Count from now on."""
        reader = self._bus.reader([catalogue.RESULTS.name], start="latest")
        decisions = DecisionsWatcher(self._bus)
        self.since_ms = time.time_ns() // 1_000_000

        def follow() -> None:
            try:
                while not self._closing.is_set():
                    self._take(reader.poll(RESULTS_POLL_S))
                    decisions.poll(DECISIONS_POLL_S)
                    newest = decisions.recent[-1] if decisions.recent else None
                    if newest is not (self._decisions[-1] if self._decisions else None):
                        # A copy: a deque must not grow while another thread goes through it.
                        self._decisions = tuple(decisions.recent)
            except FeedloomError as error:
                log.exception("the console's figures stand still")
                self.fault = str(error)
            finally:
                reader.close()
                decisions.close()

        self._thread = threading.Thread(target=follow, name="gateway-console", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop counting."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def decisions(self, model: str) -> list[RolloutDecided]:
        """Those on a model that are kept, the newest first."""
        return [one for one in reversed(self._decisions) if one.model == model]

    def series(self, now_s: int) -> dict[str, list[Any]]:
        """See :meth:`LiveWindow.series`."""
        with self._lock:
            return self._window.series(now_s, step_s=STEP_S)

    def recent(self, now_s: int) -> tuple[float, float | None]:
        """Requests a second of late, and the share that failed; ``None`` without any."""
        with self._lock:
            requests, failed = self._window.totals(now_s, RECENT_S)
        return requests / RECENT_S, failed / requests if requests else None

    def _take(self, records: Sequence[Record]) -> None:
        now_s, lag = int(time.time()), self._lag()
        with self._lock:
            self._window.sample_lag(now_s, lag)
            for record in records:
                self._count(record, now_s)

    def _count(self, record: Record, now_s: int) -> None:
        if record.value is None:
            return
        try:
            ended = _DECODER.decode(record.value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("unreadable record on %s: %s", record.where, error)
            return
        self._window.add(
            # Writers' clocks may be ahead; the window's end is this one's.
            min(now_s, record.timestamp_ms // 1000),
            tokens=ended.output_tokens,
            failed=ended.finish_reason in FAILED,
            ttft_ms=ended.timings.ttft_ms,
        )
