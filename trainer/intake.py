"""Reads feedback examples. The durable position is the lineage of published versions.

Each version says which offsets it was trained on, so the position moves exactly when a version is
published: a crash before that reads the same examples again, one after it does not. Feedback counts
as used by the stable version, a candidate, one about to be rolled out, and their ancestors: what a
rejected version or one that was rolled back had learnt is learnt again by the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.trace import Link

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Publisher, Record, TopicPartition, catch_up
from infra.contracts.errors import ContractError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import ModelVersionPublished, OffsetRange
from infra.registry.state import RegistryState
from observability.messaging import LINK, links_to
from trainer.curation import givers_of, target_of
from trainer.shares import one_too_many
from trainer.triggers import LiveWinRate

log = logging.getLogger(__name__)

TOPIC = catalogue.EXAMPLES.name
DEAD_LETTER_TIMEOUT_S = 60.0
CATCH_UP_S = 600.0
KEPT_FOR_MEASURING = 512


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples to train on, the newest of each request, with the offsets they span.

    ``measuring``: examples that are never trained on, of this and of earlier batches.
    """

    examples: tuple[FeedbackExample, ...]
    ranges: tuple[OffsetRange, ...]
    measuring: tuple[FeedbackExample, ...] = ()
    links: tuple[Link, ...] = ()


Offsets = dict[TopicPartition, int]


def next_offsets(versions: Iterable[ModelVersionPublished]) -> Offsets:
    """Where to read on, by the lineage of some versions."""
    offsets: Offsets = {}
    for version in versions:
        for span in version.lineage.feedback:
            position = TopicPartition(span.topic, span.partition)
            offsets[position] = max(offsets.get(position, 0), span.end)
    return offsets


def in_use(state: RegistryState, model: str) -> list[ModelVersionPublished]:
    """Versions whose feedback need not be learnt again, newest first."""
    current = state.rollout(model)
    if current is None:
        return []
    pending = awaiting_rollout(state, model)
    names = [pending.version if pending else None, current.candidate, current.stable]
    found: dict[str, ModelVersionPublished] = {}
    while names:
        name = names.pop()
        version = state.version(model, name) if name is not None else None
        if version is not None and version.version not in found:
            found[version.version] = version
            names.append(version.lineage.parent)
    return list(found.values())


def awaiting_rollout(state: RegistryState, model: str) -> ModelVersionPublished | None:
    """The newest child of the stable version that passed its gate since the last rollout.

    A trainer that died between publishing it and rolling it out left it so. One that is older than
    the last rollout was passed over, or rolled back, by somebody. Of a pinned model none awaits,
    and none while another is being tried: what came meanwhile is learnt again by the next round.
    """
    current = state.rollout(model)
    if current is None or current.pinned or current.candidate is not None:
        return None
    passed = [
        version
        for version in state.versions(model)
        if version.lineage.parent == current.stable
        and version.gate is not None
        and version.gate.passed
        and version.created_at_ms > current.changed_at_ms
    ]
    return passed[-1] if passed else None


class FeedbackIntake:
    """Collects examples of one model until they are taken as a batch.

    ``used``: examples below these offsets are trained on. ``tried``: those below these were in a
    round, whatever became of it; a new round waits for newer ones. ``measures`` says of an example
    whether it is kept for evaluation; the newest ``keep`` of these are, from the topic's beginning,
    but nobody's make others' go: beyond ``keep`` the oldest of whoever has most goes.
    ``rate`` is told of every example that is new, and of what is forgotten.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        model: str,
        used: Mapping[TopicPartition, int] | None = None,
        tried: Mapping[TopicPartition, int] | None = None,
        measures: Callable[[FeedbackExample], bool] = lambda example: False,
        keep: int = KEPT_FOR_MEASURING,
        rate: LiveWinRate | None = None,
    ) -> None:
        self._bus = bus
        self._model = model
        self._measures = measures
        self._keep = keep
        self._rate = rate or LiveWinRate()
        positions = bus.end_offsets(TOPIC)
        self._used = {position: (used or {}).get(position, 0) for position in positions}
        self._tried = {
            position: max((tried or {}).get(position, 0), self._used[position])
            for position in positions
        }
        self._next = dict(self._used)
        self._reader = bus.reader([TOPIC])
        self._publisher: Publisher = bus.publisher(client_id="feedloom-trainer")
        self._examples: dict[str, FeedbackExample] = {}
        self._measuring: dict[str, FeedbackExample] = {}
        self._links: dict[str, Link] = {}
        self._new: set[str] = set()
        self._forgotten: set[str] = set()
        self._oldest_s: float | None = None

    @property
    def waiting(self) -> int:
        """Requests with feedback that was in no round yet."""
        return len(self._new)

    @property
    def teaching(self) -> int:
        """Of those that wait, how many say what the answer should have been.

        Feedback on one answer comes in pieces: a thumb down first, the edit a moment later. A
        round that counted the thumb would train without the edit.
        """
        known = (self._examples.get(name) or self._measuring.get(name) for name in self._new)
        return sum(one is not None and target_of(one) is not None for one in known)

    @property
    def waited_s(self) -> float:
        """How long ago the first of them was read, seconds."""
        return 0.0 if self._oldest_s is None else time.monotonic() - self._oldest_s

    def poll(self, timeout_s: float) -> int:
        """Read on; returns how many records came. Unreadable ones go to the dead-letter topic."""
        records = self._reader.poll(timeout_s)
        for record in records:
            self._take_in(record)
            position = TopicPartition(record.topic, record.partition)
            self._next[position] = max(self._next.get(position, 0), record.offset + 1)
        return len(records)

    def catch_up(self, timeout_s: float = CATCH_UP_S) -> None:
        """Read up to the end that the topic has now. Raises FatalError after ``timeout_s``."""
        catch_up(self._bus, self._reader, [TOPIC], self.poll, what=TOPIC, timeout_s=timeout_s)

    def batch(self) -> Batch:
        """Everything that is not in use; it stays until :meth:`settle`."""
        return Batch(
            examples=tuple(self._examples.values()),
            measuring=tuple(self._measuring.values()),
            ranges=tuple(
                OffsetRange(
                    topic=position.topic,
                    partition=position.partition,
                    start=self._used.get(position, 0),
                    end=end,
                )
                for position, end in sorted(self._next.items())
                if end > self._used.get(position, 0)
            ),
            links=tuple(self._links.values()),
        )

    def take_forgotten(self) -> set[str]:
        """Requests that were to be forgotten, by what was read since the last call."""
        found, self._forgotten = self._forgotten, set()
        return found

    def settle(self, *, learnt: bool) -> None:
        """A round is over. Unless its version serves, the examples wait for the next one too."""
        self._tried = dict(self._next)
        self._new.clear()
        self._oldest_s = None
        self._rate.reset()
        if learnt:
            self._used = dict(self._next)
            for request_id in self._examples:
                self._links.pop(request_id, None)
            self._examples.clear()

    def follow(self, used: Mapping[TopicPartition, int]) -> None:
        """What versions in use have learnt from lies below these offsets now.

        What lies above is read again, up to the topic's end, and is in the next batch; what lies
        below is in none. A round starts by what is newer than the last, as before. Raises
        FatalError when the topic cannot be read.
        """
        following = {position: used.get(position, 0) for position in self._used}
        if following == self._used:
            return
        self._used = following
        for request_id in self._examples:
            self._links.pop(request_id, None)
        self._examples.clear()
        for position, offset in following.items():
            # What was not read yet may be for evaluation.
            self._reader.seek(position, min(offset, self._next.get(position, 0)))
        self.catch_up()

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()
        self._publisher.close()

    def _take_in(self, record: Record) -> None:
        if record.value is None:
            request_id = record.key_text
            self._forget(request_id)
            self._rate.forget(request_id)
            self._forgotten.add(request_id)
            return
        position = TopicPartition(record.topic, record.partition)
        try:
            example = codec.decode(record.value, FeedbackExample)
        except ContractError as error:
            # One that an earlier round passed over, or that is read again, is there already.
            if record.offset >= max(self._tried.get(position, 0), self._next.get(position, 0)):
                self._dead_letter(record, error)
            return
        if example.model != self._model:
            return
        # The newest record of a request holds the merged whole.
        self._forget(example.request_id)
        if self._measures(example):
            self._measuring[example.request_id] = example
            self._link(record, example, "heldout")
            if len(self._measuring) > self._keep:
                held = {name: givers_of(one) for name, one in self._measuring.items()}
                goes = one_too_many(held)
                del self._measuring[goes]
                self._links.pop(goes, None)
        elif record.offset >= self._used.get(position, 0):
            self._examples[example.request_id] = example
            self._link(record, example, "feedback")
        if record.offset >= self._tried.get(position, 0):
            self._new.add(example.request_id)
            self._rate.add(example)
            if self._oldest_s is None:
                self._oldest_s = time.monotonic()

    def _link(self, record: Record, example: FeedbackExample, kind: str) -> None:
        for link in links_to(record.headers, **{LINK: kind}):
            self._links[example.request_id] = link

    def _forget(self, request_id: str) -> None:
        """Whoever asked for it: the example is in no later round."""
        for known in (self._examples, self._measuring, self._links):
            known.pop(request_id, None)
        self._new.discard(request_id)
        if not self._new:
            self._oldest_s = None

    def _dead_letter(self, record: Record, error: ContractError) -> None:
        log.warning("unreadable example on %s: %s", record.where, error)
        self._publisher.publish(
            f"{record.topic}.dlq",
            key=record.key,
            value=record.value,
            headers=codec.dead_letter_headers(
                record.headers,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=error,
            ),
        ).result(DEAD_LETTER_TIMEOUT_S)
