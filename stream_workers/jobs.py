"""The requests that a worker has, from record to commit, and the ways to find one. No I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from infra.contracts.bus import Record, TopicPartition
from infra.contracts.catalogue import REQUESTS_BATCH
from observability.instruments import CLASS
from stream_workers.admission import Priority, Ticket
from stream_workers.handler import Prepared, RequestKey, Resumption
from stream_workers.outcomes import Outcome

_COUNTED_AS: Mapping[Priority, Mapping[str, str]] = {
    "interactive": {CLASS: "interactive"},
    "batch": {CLASS: "batch"},
}


@dataclass(eq=False)
class Job:
    """A request from its record to its commit. ``taken_s``: of the monotonic clock.

    ``followers``: records of the same submit, which pass when this one is committed.
    """

    partition: TopicPartition
    prepared: Prepared
    started_ms: int
    taken_s: float
    ticket: Ticket[Job] | None = None
    resumption: Resumption | None = None
    task: asyncio.Task[int] | None = None
    outcome: Outcome | None = None
    followers: list[tuple[TopicPartition, Record]] = field(default_factory=list)

    @property
    def place(self) -> tuple[TopicPartition, int]:
        """Its partition and offset."""
        return self.partition, self.prepared.record.offset

    @property
    def priority(self) -> Priority:
        """The class that its topic stands for."""
        return "batch" if self.partition.topic == REQUESTS_BATCH.name else "interactive"

    @property
    def counted_as(self) -> Mapping[str, str]:
        """Its class, as an attribute of metrics."""
        return _COUNTED_AS[self.priority]

    @property
    def begun(self) -> bool:
        """Whether it runs, or has run; else it waits."""
        return self.task is not None or self.outcome is not None

    def release(self) -> None:
        """Let go of what points back here: its memory is then free at once, whatever the load."""
        self.ticket = self.task = self.outcome = None


class Jobs:
    """Those that are not committed, by place, by request and submit id, and by request id."""

    def __init__(self) -> None:
        self._by_place: dict[tuple[TopicPartition, int], Job] = {}
        self._by_key: dict[RequestKey, Job] = {}
        self._by_id: dict[str, set[Job]] = {}

    def __iter__(self) -> Iterator[Job]:
        """All, as they are now: they may be forgotten meanwhile."""
        return iter(list(self._by_place.values()))

    def __contains__(self, job: Job) -> bool:
        return self._by_place.get(job.place) is job

    def at(self, partition: TopicPartition, offset: int) -> Job | None:
        """The one of this record."""
        return self._by_place.get((partition, offset))

    def same(self, key: RequestKey) -> Job | None:
        """The one of this very submit."""
        return self._by_key.get(key)

    def of(self, request_id: str) -> list[Job]:
        """All submits of a request id."""
        return list(self._by_id.get(request_id, ()))

    def add(self, job: Job) -> None:
        """One whose place and submit are not here yet."""
        self._by_place[job.place] = job
        key = job.prepared.key
        if key is not None:
            self._by_key[key] = job
            self._by_id.setdefault(key[0], set()).add(job)

    def forget(self, job: Job) -> None:
        """It is committed, or somebody else's."""
        self._by_place.pop(job.place, None)
        key = job.prepared.key
        if key is None:
            return
        self._by_key.pop(key, None)
        same = self._by_id.get(key[0])
        if same is not None:
            same.discard(job)
            if not same:
                del self._by_id[key[0]]
