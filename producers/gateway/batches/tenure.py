"""A runner's hold on one batch: it ends when the log says that another runner has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from infra.contracts.events.gateway import BatchChanged, BatchError
from producers.gateway.batches.errors import BatchTaken
from producers.gateway.batches.log import BatchLog
from producers.gateway.batches.state import Standing


class Tenure:
    """``runner``: the source that signs its records. Every method raises BatchTaken.

    They raise as :meth:`BatchLog.change` besides.
    """

    def __init__(
        self, batches: BatchLog, batch_id: str, *, runner: str, now_ms: Callable[[], int]
    ) -> None:
        self.batch_id = batch_id
        self._batches = batches
        self._runner = runner
        self._now_ms = now_ms

    def claim(self, before: str | None) -> BatchChanged:
        """Take the batch from the runner ``before``, or from nobody. Others find out at once."""

        def make(now: Standing | None) -> BatchChanged:
            if now is None or now.finished or now.owner not in (before, self._runner):
                raise BatchTaken(f"{self.batch_id} is not there to be taken")
            return _next(now)

        return self._batches.change(self.batch_id, make, source=self._runner).event

    def current(self) -> BatchChanged:
        """The batch as it stands, which somebody may be cancelling."""
        return self._mine(self._batches.batch(self.batch_id)).event

    def progress(self, *, completed: int, failed: int) -> None:
        """Tell how many lines are done."""
        self._change(lambda now: {"completed": completed, "failed": failed})

    def begin(self, total: int) -> None:
        """The input is good; a batch that is being cancelled stays so."""
        self._change(
            lambda now: {
                "total": total,
                "in_progress_at_ms": self._now_ms(),
                "status": "cancelling" if now.status == "cancelling" else "in_progress",
            }
        )

    def finalize(self) -> BatchChanged:
        """All lines are answered, and the files are written next; too late to cancel it.

        A batch that is being cancelled stays so.
        """
        return self._change(
            lambda now: (
                {}
                if now.status == "cancelling"
                else {"status": "finalizing", "finalizing_at_ms": self._now_ms()}
            )
        )

    def fail(self, errors: tuple[BatchError, ...]) -> None:
        """The input is unusable."""
        self._change(
            lambda now: {"status": "failed", "failed_at_ms": self._now_ms(), "errors": errors}
        )

    def end(
        self, status: str, *, output: str | None, errors: str | None, completed: int, failed: int
    ) -> None:
        """``completed``, ``expired`` or ``cancelled``, with the ids of the files written."""
        self._change(
            lambda now: {
                "status": status,
                f"{status}_at_ms": self._now_ms(),
                "output_file_id": output,
                "error_file_id": errors,
                "completed": completed,
                "failed": failed,
            }
        )

    def _change(self, fields: Callable[[BatchChanged], dict[str, Any]]) -> BatchChanged:
        def make(now: Standing | None) -> BatchChanged:
            mine = self._mine(now)
            return _next(mine, **fields(mine.event))

        return self._batches.change(self.batch_id, make, source=self._runner).event

    def _mine(self, now: Standing | None) -> Standing:
        if now is None or now.finished or now.owner != self._runner:
            owner = None if now is None else now.owner
            raise BatchTaken(f"{self.batch_id} is now the batch of {owner}")
        return now


def _next(now: Standing, **fields: Any) -> BatchChanged:
    return msgspec.structs.replace(now.event, revision=now.event.revision + 1, **fields)
