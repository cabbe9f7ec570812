"""Runs one batch from wherever it stands to its end.

All that it knows is on topics and in the file store: killed at any point, another runner finds the
same lines, the same ids and what was answered, and goes on.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from infra.contracts.bus import Bus
from infra.contracts.events.gateway import BatchChanged, BatchError, FileChanged
from infra.contracts.events.generation import GenerationResult
from infra.settings import GatewaySettings
from producers.gateway.batches import identity, outcomes
from producers.gateway.batches.errors import FileMissing
from producers.gateway.batches.exchange import Exchange
from producers.gateway.batches.lines import Line, Plan, ask, read_plan
from producers.gateway.batches.log import BatchLog
from producers.gateway.batches.outcomes import Outcomes
from producers.gateway.batches.store import FileStore, fetch
from producers.gateway.batches.tenure import Tenure
from producers.gateway.errors import ApiError, unknown_model

log = logging.getLogger(__name__)

IN_FLIGHT = 256
"""Requests of one batch that are asked and not answered."""
PROGRESS_S = 1.0
WIND_DOWN_S = 10.0
"""How long workers have to answer that they stopped a request, when a batch is over."""
LATE_MS = 10_000
"""A request that ran out of time so shortly before its batch did so because of it: two clocks."""


class BatchRun:
    """One attempt. ``known``: whether there is a model of a name. ``stop`` leaves it as it is."""

    def __init__(
        self,
        bus: Bus,
        batches: BatchLog,
        store: FileStore,
        settings: GatewaySettings,
        tenure: Tenure,
        *,
        source: str,
        known: Callable[[str], bool],
        now_ms: Callable[[], int],
        stop: threading.Event,
    ) -> None:
        self._bus = bus
        self._batches = batches
        self._store = store
        self._settings = settings
        self._tenure = tenure
        self._source = source
        self._known = known
        self._now_ms = now_ms
        self._stop = stop

    def run(self, before: str | None) -> None:
        """Take the batch from the runner ``before`` and bring it to its end, unless told to stop.

        Raises:
            BatchTaken: somebody else has it.
            FileStoreFailed, RetryableError, FatalError: another attempt goes on from here.
        """
        batch = self._tenure.claim(before)
        with tempfile.TemporaryDirectory(prefix="feedloom-batch-") as name:
            folder = Path(name)
            plan = self._plan(batch, folder)
            if plan.errors:
                log.info("%s failed: %s", batch.batch_id, plan.errors[0].message)
                self._tenure.fail(plan.errors)
                return
            # Nothing is asked before the batch is in progress.
            fresh = batch.in_progress_at_ms is None
            if fresh:
                self._tenure.begin(len(plan.lines))
            with Outcomes(folder) as kept, (folder / "input").open("rb") as file:
                self._answer(batch, plan, kept, file, fresh=fresh)

    def _plan(self, batch: BatchChanged, folder: Path) -> Plan:
        try:
            fetch(self._store, batch.input_file_id, folder / "input")
        except FileMissing:
            message = f"the input file {batch.input_file_id} is not there any more"
            return Plan(lines=(), errors=(BatchError(code="file_not_found", message=message),))
        return read_plan(folder / "input", batch, self._settings)

    def _answer(
        self, batch: BatchChanged, plan: Plan, kept: Outcomes, file: BinaryIO, *, fresh: bool
    ) -> None:
        by_id = {line.request_id: line for line in plan.lines if line.request_id is not None}
        with closing(Exchange(self._bus, batch, by_id, source=self._source)) as exchange:
            work = _Work(batch, by_id, kept, exchange, cancelling=batch.status == "cancelling")
            if not fresh:
                self._catch_up(work)
            ending = self._fill(work, plan, file)
            if ending is None:
                return
            if ending != "completed":
                self._wind_down(work)
        if self._stop.is_set():
            return
        for line in plan.lines:
            if line.number not in kept:
                kept.add(line, outcomes.not_run(batch.batch_id, line, expired=ending == "expired"))
        self._finish(batch, kept, ending)

    def _catch_up(self, work: _Work) -> None:
        """Learn what earlier owners asked, and what of it is answered."""
        asked = work.exchange.past_requests(self._stop.is_set)
        for result in work.exchange.past_results(self._stop.is_set):
            work.take(result)
        work.in_flight |= {
            request_id for request_id in asked if work.by_id[request_id].number not in work.kept
        }
        log.info(
            "%s is taken over: %d of its requests are answered, %d asked",
            work.batch.batch_id,
            work.kept.completed + work.kept.failed,
            len(work.in_flight),
        )

    def _fill(self, work: _Work, plan: Plan, file: BinaryIO) -> str | None:
        """Ask and read until nothing is left. How the batch ends; ``None``: told to stop."""
        asked = frozenset(work.in_flight)
        waiting = iter(
            line
            for line in plan.lines
            if line.number not in work.kept and line.request_id not in asked
        )
        told, told_at = (0, 0), time.monotonic()
        exhausted = False
        while not self._stop.is_set():
            current = self._tenure.current()
            if current.status == "cancelling":
                work.cancelling = True
                return "cancelled"
            if self._now_ms() >= current.expires_at_ms:
                return "expired"
            for _ in range(IN_FLIGHT - len(work.in_flight)):
                line = next(waiting, None)
                if line is None:
                    exhausted = True
                    break
                self._ask(work, line, file)
            if exhausted and not work.in_flight:
                work.exchange.check_written()
                return "completed"
            for result in work.exchange.results():
                work.take(result)
            work.exchange.check_written()
            done = work.kept.completed, work.kept.failed
            if done != told and time.monotonic() - told_at >= PROGRESS_S:
                self._tenure.progress(completed=done[0], failed=done[1])
                told, told_at = done, time.monotonic()
        return None

    def _ask(self, work: _Work, line: Line, file: BinaryIO) -> None:
        try:
            question = ask(file, line, work.batch, self._settings)
            if not self._known(question.model):
                raise unknown_model(question.model)
        except ApiError as problem:
            work.kept.add(line, outcomes.refused(work.batch.batch_id, line, problem))
            return
        assert line.request_id is not None, "a body without a model is refused"
        work.exchange.submit(line.request_id, question, now_ms=self._now_ms())
        work.in_flight.add(line.request_id)

    def _wind_down(self, work: _Work) -> None:
        """Stop what runs, and take the answers that come all the same."""
        for request_id in work.in_flight:
            work.exchange.cancel(request_id, "its batch is over")
        deadline = time.monotonic() + WIND_DOWN_S
        while work.in_flight and time.monotonic() < deadline and not self._stop.is_set():
            for result in work.exchange.results():
                work.take(result)
            self._tenure.current()

    def _finish(self, batch: BatchChanged, kept: Outcomes, ending: str) -> None:
        if ending == "completed" and self._tenure.finalize().status == "cancelling":
            ending = "cancelled"
        output, errors = (self._keep(batch, kept, failed=failed) for failed in (False, True))
        self._tenure.end(
            ending, output=output, errors=errors, completed=kept.completed, failed=kept.failed
        )
        log.info("%s is %s: %d, %d failed", batch.batch_id, ending, kept.completed, kept.failed)

    def _keep(self, batch: BatchChanged, kept: Outcomes, *, failed: bool) -> str | None:
        """Store one of the files. Its id, if there is anything in it."""
        path = kept.write(failed=failed)
        if path is None:
            return None
        what = "errors" if failed else "output"
        file_id = identity.written_file_id(batch.batch_id, what)
        # Another runner that has the batch by now writes the file of the same name.
        self._tenure.current()
        with path.open("rb") as content:
            self._store.put(file_id, content)
        self._batches.put_file(
            FileChanged(
                file_id=file_id,
                tenant=batch.tenant,
                filename=f"{batch.batch_id}_{what}.jsonl",
                purpose="batch_output",
                size=path.stat().st_size,
                created_at_ms=self._now_ms(),
            )
        )
        return file_id


class _Work:
    """What is asked and what is answered."""

    def __init__(
        self,
        batch: BatchChanged,
        by_id: dict[str, Line],
        kept: Outcomes,
        exchange: Exchange,
        *,
        cancelling: bool,
    ) -> None:
        self.batch = batch
        self.by_id = by_id
        self.kept = kept
        self.exchange = exchange
        self.cancelling = cancelling
        self.in_flight: set[str] = set()

    def take(self, result: GenerationResult) -> None:
        """A request has its result."""
        line = self.by_id[result.request_id]
        self.in_flight.discard(result.request_id)
        if self.cancelling and result.finish_reason == "cancelled":
            return
        late = result.finished_at_ms >= self.batch.expires_at_ms - LATE_MS
        if late and result.finish_reason in ("deadline_exceeded", "cancelled"):
            outcome = outcomes.not_run(self.batch.batch_id, line, expired=True)
        else:
            outcome = outcomes.answered(self.batch.batch_id, line, result)
        self.kept.add(line, outcome)
