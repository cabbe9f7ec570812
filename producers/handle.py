"""One submitted request: its chunks as they come, and its final result. Safe across threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import RecordPosition
from infra.contracts.events.generation import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
)
from producers.errors import ResultTimeout
from producers.inference import Inference

LATE_CHUNKS_S = 5.0
COMPLETE: frozenset[FinishReason] = frozenset({"stop", "length"})
"""How an answer ends that is whole."""


class GenerationHandle:
    """Made by a client's ``submit``; fed by the client's reading threads.

    ``arrivals`` holds (monotonic seconds, tokens) of each chunk that carried tokens.
    """

    def __init__(
        self,
        request: GenerationRequest,
        *,
        inference: Inference,
        cancel: Callable[[str | None], object],
    ) -> None:
        self.request = request
        self.inference = inference
        self.trace_id = inference.trace_id
        self.submitted_at = time.monotonic()
        self.arrivals: list[tuple[float, int]] = []
        self.route: tuple[str, int] | None = None
        """Topic and partition, while a router counts this request as outstanding there."""
        self.written: Future[RecordPosition] = Future()
        """Ends when the broker has the request."""
        self._cancel = cancel
        self._changed = threading.Condition()
        self._assembler = ChunkAssembler()
        self._unread: deque[GenerationChunk] = deque()
        self._result: GenerationResult | None = None
        self._result_at = 0.0
        self._error: BaseException | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        """Whether the final result, or a failure to get one, is there."""
        with self._changed:
            return self._result is not None or self._error is not None

    @property
    def chunks_finished(self) -> bool:
        """Whether the last chunk is there."""
        with self._changed:
            return self._assembler.finished

    @property
    def text(self) -> str:
        """The answer as far as it has come."""
        with self._changed:
            return self._result.text if self._result is not None else self._assembler.text

    def cancel(self, reason: str | None = None) -> None:
        """Ask the workers to stop; the result then says ``cancelled``, unless it came first."""
        self._cancel(reason)

    def stream(self, timeout_s: float = 120.0) -> Iterator[GenerationChunk]:
        """Chunks in order until the last one; one reader a handle.

        A chunk with a higher ``attempt`` than the one before replaces the text from its
        ``first_token`` on. Should the result overtake its last chunks for more than five seconds,
        the stream ends there: the result holds the whole text.

        Raises:
            ResultTimeout: nothing came for ``timeout_s``.
            FeedloomError: the request could not be published, or the client was closed.
        """
        while True:
            with self._changed:
                deadline = time.monotonic() + timeout_s
                while not self._unread and not self._ended():
                    self._wait(deadline, timeout_s)
                chunks = self._take()
                ended = self._ended()
            yield from chunks
            if ended:
                return

    def result(self, timeout_s: float = 120.0) -> GenerationResult:
        """The final result; an answer that failed has its ``error`` set.

        Raises as :meth:`stream`.
        """
        with self._changed:
            deadline = time.monotonic() + timeout_s
            while self._result is None:
                if self._error is not None:
                    raise self._error
                self._wait(deadline, timeout_s)
            return self._result

    # Called by the client.

    def accept_chunk(self, chunk: GenerationChunk) -> None:
        """Take in a chunk from the topic. Whoever waits is told by :meth:`notify`."""
        with self._changed:
            ready = self._assembler.add(chunk)
            now = time.monotonic()
            self.arrivals.extend((now, len(c.token_ids)) for c in ready if c.token_ids)
            self._unread.extend(ready)
        self.inference.first_chunk()

    def accept_result(self, result: GenerationResult) -> None:
        """Take in the final result; a second one is ignored. See :meth:`notify`."""
        with self._changed:
            if self._result is None:
                self._result, self._result_at = result, time.monotonic()
        self.inference.end(result)

    def fail(self, error: BaseException) -> None:
        """Nothing more will come."""
        with self._changed:
            if self._result is None and self._error is None:
                self._error = error
        self.inference.end(error=error)
        self.notify()

    def notify(self) -> None:
        """Tell whoever waits that something came."""
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on every change, from the client's threads."""
        with self._changed:
            self._listeners.append(listener)

    def take(self) -> tuple[list[GenerationChunk], bool]:
        """Unread chunks, and whether the stream has ended; for asynchronous readers."""
        with self._changed:
            return self._take(), self._ended()

    def outcome(self) -> GenerationResult | None:
        """The result if it is there. Raises the failure if there was one."""
        with self._changed:
            if self._result is None and self._error is not None:
                raise self._error
            return self._result

    def _take(self) -> list[GenerationChunk]:
        chunks = list(self._unread)
        self._unread.clear()
        return chunks

    def _ended(self) -> bool:
        if self._error is not None:
            raise self._error
        if self._assembler.finished:
            return True
        return self._result is not None and time.monotonic() > self._result_at + LATE_CHUNKS_S

    def _wait(self, deadline: float, timeout_s: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ResultTimeout(
                f"no answer to {self.request.request_id} within {timeout_s:g} s: is a worker "
                f"serving {self.request.model!r}? (`feedloom doctor`)"
            )
        self._changed.wait(min(left, 1.0))
