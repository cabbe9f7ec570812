"""Files and batches of tenants: what a call about them does. Every method may block.

Knows nothing of HTTP but the errors that a caller is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

import msgspec

from infra.contracts import catalogue
from infra.contracts.bus import Bus
from infra.contracts.events.gateway import BatchChanged, FileChanged
from infra.identity.principal import Principal
from infra.settings import GatewaySettings
from producers.gateway.batches import identity
from producers.gateway.batches.errors import FileMissing
from producers.gateway.batches.log import BatchLog
from producers.gateway.batches.runner import BatchRunner
from producers.gateway.batches.shapes import WINDOW_MS
from producers.gateway.batches.state import FilesAndBatches, Standing, UnknownCursor
from producers.gateway.batches.store import BLOCK_BYTES, file_store
from producers.gateway.errors import ApiError, invalid, not_found
from producers.gateway.service import GatewayService

INPUT = "batch"
"""The one purpose of files that are uploaded."""


def open_batches(
    bus: Bus, service: GatewayService, settings: GatewaySettings, *, source: str
) -> BatchService | None:
    """A replica's batches; ``None`` where no file store is set."""
    if not settings.files_url:
        return None
    return BatchService(
        bus,
        settings,
        source=source,
        known=lambda model: service.views.registry.rollout(model) is not None,
    )


class BatchService:
    """One replica's. Made in a thread (it connects); safe across threads.

    ``known``: whether there is a model of a name. Raises ConfigurationError for a store that cannot
    be used.
    """

    def __init__(
        self, bus: Bus, settings: GatewaySettings, *, source: str, known: Callable[[str], bool]
    ) -> None:
        self._store = file_store(settings.files_url)
        self._chunk_partitions = len(bus.end_offsets(catalogue.CHUNKS.name))
        self._log = BatchLog(bus, source=source)
        self._runner = BatchRunner(
            bus, self._log, self._store, settings, source=source, known=known
        )

    def fault(self) -> str | None:
        """Why no batches are run or shown here; ``None`` when they are."""
        return self._log.fault or self._runner.fault

    def upload(self, caller: Principal, filename: str, content: BinaryIO, size: int) -> FileChanged:
        """Keep a file for a batch; it is in the store before anybody is told of it."""
        event = FileChanged(
            file_id=identity.new_file_id(),
            tenant=caller.tenant,
            filename=filename,
            purpose=INPUT,
            size=size,
            created_at_ms=_now_ms(),
        )
        self._store.put(event.file_id, content)
        self._log.put_file(event)
        return event

    def file(self, caller: Principal, file_id: str) -> FileChanged:
        """A file of the caller's tenant. Raises ApiError 404, also for another tenant's."""
        found = self._log.look(lambda state: state.file(file_id, caller.tenant))
        if found is None:
            raise not_found(f"there is no file {file_id!r}")
        return found

    def files(
        self,
        caller: Principal,
        *,
        purpose: str | None,
        newest_first: bool,
        after: str | None,
        limit: int,
    ) -> tuple[list[FileChanged], bool]:
        """A page, and whether more follow. Raises ApiError 400 for an unknown ``after``."""
        try:
            return self._log.look(
                lambda state: state.files(
                    caller.tenant,
                    purpose=purpose,
                    newest_first=newest_first,
                    after=after,
                    limit=limit,
                )
            )
        except UnknownCursor:
            raise _unknown_cursor(after) from None

    def content(self, caller: Principal, file_id: str) -> Iterator[bytes]:
        """A file's bytes, in blocks. Raises ApiError 404."""
        event = self.file(caller, file_id)
        try:
            stream = self._store.open(event.file_id)
        except FileMissing:
            raise not_found(f"there is no file {file_id!r}") from None
        return _blocks(stream)

    def delete(self, caller: Principal, file_id: str) -> FileChanged:
        """Remove a file for good. Raises ApiError 404, and 409 while a batch reads it."""
        event = self.file(caller, file_id)
        user = self._log.look(lambda state: state.uses(event.file_id))
        if user is not None:
            raise ApiError(
                409,
                f"the batch {user.batch_id} reads it: cancel that first, or wait for its end",
                code="file_in_use",
            )
        # First the bytes: what is not told can be told again, what is not listed is never found.
        self._store.delete(event.file_id)
        self._log.put_file(msgspec.structs.replace(event, deleted_at_ms=_now_ms()))
        return event

    def create(
        self, caller: Principal, *, input_file_id: str, endpoint: str, metadata: dict[str, str]
    ) -> BatchChanged:
        """A new batch of a file; some replica takes it soon. Raises ApiError."""
        given = self.file(caller, input_file_id)
        if given.purpose != INPUT:
            raise invalid(
                f"the file {input_file_id!r} has the purpose {given.purpose!r}; a batch reads "
                f"files of purpose {INPUT!r}",
                param="input_file_id",
            )
        now = _now_ms()
        # All chunk partitions take their share of batches.
        batch_id = identity.new_batch_id(now % self._chunk_partitions)
        event = BatchChanged(
            batch_id=batch_id,
            tenant=caller.tenant,
            revision=0,
            status="validating",
            endpoint=endpoint,
            input_file_id=given.file_id,
            created_at_ms=now,
            expires_at_ms=now + WINDOW_MS,
            subject=caller.subject,
            models=tuple(sorted(caller.models)),
            metadata=metadata,
        )
        self._log.change(batch_id, lambda before: event if before is None else None)
        return event

    def batch(self, caller: Principal, batch_id: str) -> BatchChanged:
        """A batch of the caller's tenant. Raises ApiError 404, also for another tenant's."""
        return _mine(caller, batch_id, self._log.batch(batch_id)).event

    def batches(
        self, caller: Principal, *, after: str | None, limit: int
    ) -> tuple[list[BatchChanged], bool]:
        """A page, newest first, and whether more follow. Raises ApiError 400."""

        def question(state: FilesAndBatches) -> tuple[list[BatchChanged], bool]:
            return state.batches(caller.tenant, after=after, limit=limit)

        try:
            return self._log.look(question)
        except UnknownCursor:
            raise _unknown_cursor(after) from None

    def cancel(self, caller: Principal, batch_id: str) -> BatchChanged:
        """Have what is left of a batch stopped. Raises ApiError 404, and 409 if nothing is left."""

        def make(now: Standing | None) -> BatchChanged | None:
            event = _mine(caller, batch_id, now).event
            if event.status in ("cancelling", "cancelled"):
                return None
            if event.status not in ("validating", "in_progress"):
                raise ApiError(
                    409,
                    f"the batch is {event.status} and cannot be cancelled",
                    code="batch_not_cancellable",
                )
            return msgspec.structs.replace(
                event,
                revision=event.revision + 1,
                status="cancelling",
                cancelling_at_ms=_now_ms(),
            )

        return self._log.change(batch_id, make).event

    def close(self) -> None:
        """Leave what runs to other replicas, and disconnect."""
        self._runner.close()
        self._log.close()


def _mine(caller: Principal, batch_id: str, found: Standing | None) -> Standing:
    if found is None or found.event.tenant != caller.tenant:
        raise not_found(f"there is no batch {batch_id!r}")
    return found


def _unknown_cursor(after: str | None) -> ApiError:
    return invalid(f"after: there is no {after!r} in the list", param="after")


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    with stream:
        while block := stream.read(BLOCK_BYTES):
            yield block


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
