"""Which files and batches there are, as a fold of their two topics. Pure.

The order of a batch's records decides between replicas that write at the same moment: of two
records of one revision the first stands. Whoever runs a batch signs its records as a runner, so
that the log also says whose the batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from infra.contracts.events.gateway import BatchChanged, BatchStatus, FileChanged

T = TypeVar("T")

FINISHED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})
RUNNER_MARK = "#"
"""In a record's source: what follows names one runner. Sources without it are of API calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """A batch as it stands. ``owner``: the runner that has it, ``None`` before any had."""

    event: BatchChanged
    offset: int
    owner: str | None

    @property
    def finished(self) -> bool:
        """Whether nothing more will become of it."""
        return self.event.status in FINISHED


class UnknownCursor(ValueError):
    """The object after which a page was to begin is not in the list."""


class FilesAndBatches:
    """What the topics say so far. Deleted files are forgotten."""

    def __init__(self) -> None:
        self._files: dict[str, FileChanged] = {}
        self._batches: dict[str, Standing] = {}

    def apply_file(self, event: FileChanged) -> None:
        """Take in a record of the files' topic."""
        if event.deleted_at_ms is None:
            self._files[event.file_id] = event
        else:
            self._files.pop(event.file_id, None)

    def apply_batch(self, event: BatchChanged, *, offset: int, source: str) -> bool:
        """Take in a record of the batches' topic; whether it stands now."""
        before = self._batches.get(event.batch_id)
        if before is not None and event.revision <= before.event.revision:
            return False
        owner = source if RUNNER_MARK in source else before.owner if before else None
        self._batches[event.batch_id] = Standing(event=event, offset=offset, owner=owner)
        return True

    def forget(self, key: str) -> None:
        """A tombstone was written for a file or a batch."""
        self._files.pop(key, None)
        self._batches.pop(key, None)

    def file(self, file_id: str, tenant: str) -> FileChanged | None:
        """A tenant's file; ``None`` also for another tenant's."""
        found = self._files.get(file_id)
        return found if found is not None and found.tenant == tenant else None

    def batch(self, batch_id: str) -> Standing | None:
        """A batch, whosever it is."""
        return self._batches.get(batch_id)

    def uses(self, file_id: str) -> BatchChanged | None:
        """A batch that is not finished and reads this file."""
        return next(
            (
                one.event
                for one in self._batches.values()
                if one.event.input_file_id == file_id and not one.finished
            ),
            None,
        )

    def files(
        self, tenant: str, *, purpose: str | None, newest_first: bool, after: str | None, limit: int
    ) -> tuple[list[FileChanged], bool]:
        """A page of a tenant's files, and whether more follow. Raises UnknownCursor."""
        mine = [
            one
            for one in self._files.values()
            if one.tenant == tenant and purpose in (None, one.purpose)
        ]
        return _page(
            mine,
            lambda one: (one.created_at_ms, one.file_id),
            newest_first=newest_first,
            after=after,
            limit=limit,
        )

    def batches(
        self, tenant: str, *, after: str | None, limit: int
    ) -> tuple[list[BatchChanged], bool]:
        """A page of a tenant's batches, newest first. Raises UnknownCursor."""
        mine = [one.event for one in self._batches.values() if one.event.tenant == tenant]
        return _page(
            mine,
            lambda one: (one.created_at_ms, one.batch_id),
            newest_first=True,
            after=after,
            limit=limit,
        )


def _page(
    every: Iterable[T],
    key: Callable[[T], tuple[int, str]],
    *,
    newest_first: bool,
    after: str | None,
    limit: int,
) -> tuple[list[T], bool]:
    ordered = sorted(every, key=key, reverse=newest_first)
    start = 0
    if after is not None:
        start = next((at + 1 for at, one in enumerate(ordered) if key(one)[1] == after), -1)
        if start < 0:
            raise UnknownCursor(after)
    return ordered[start : start + limit], len(ordered) > start + limit
