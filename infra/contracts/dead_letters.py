"""Dead letters and what became of them. Pure: knows neither Kafka nor the terminal.

A dead-letter topic is an append-only log of two kinds of records:

- a *letter*: the record that could not be processed, untouched, plus the ``__streams.errors.*``
  headers of :func:`infra.contracts.codec.dead_letter_headers`;
- a *settlement*: what a person did with a letter. It names the letter's offset in a header and is
  written to the letter's own partition.

So the topic itself is the only state. A settlement follows its letter in one log and retention
removes the oldest first: as long as a letter is kept, so is what became of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

from infra.contracts.bus import Record, RecordPosition
from infra.contracts.catalogue import CATALOGUE, dead_letter_topic
from infra.contracts.codec import DEAD_LETTER_PREFIX, Headers, header
from infra.contracts.errors import FeedloomError
from infra.contracts.moments import utc

PREFIX = "__feedloom.dlq."
STATE = PREFIX + "state"
OFFSET = PREFIX + "offset"
BY = PREFIX + "by"
REASON = PREFIX + "reason"
REPLAYED_TO = PREFIX + "replayed_to"
REPAIRED = PREFIX + "repaired"
REPLAYED_FROM = PREFIX + "replayed_from"
"""On the replayed record in the source topic: the id of the letter that it was."""

UNKNOWN_ERROR = "unknown"

Outcome = Literal["replayed", "dropped"]
OUTCOMES: tuple[Outcome, ...] = ("replayed", "dropped")

# By source topic, in the catalogue's order.
TOPICS = {spec.name: dead_letter_topic(spec).name for spec in CATALOGUE if spec.dead_letter}
_SOURCES = {name: source for source, name in TOPICS.items()}
_ID = re.compile(r"(?P<topic>.+?)(?:/(?P<partition>[0-9]{1,9}))?/(?P<offset>[0-9]{1,18})")


class DeadLetterRefused(FeedloomError):
    """What was asked for is not there or makes no sense; the message says what to do instead."""


@dataclass(frozen=True, order=True, slots=True)
class LetterId:
    """A letter by its place: the *source* topic, partition and offset on its dead-letter topic.

    Written ``topic/offset``; ``topic/partition/offset`` beyond partition 0.
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        partition = f"{self.partition}/" if self.partition else ""
        return f"{self.topic}/{partition}{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises DeadLetterRefused: no id, or a topic without dead letters."""
        found = _ID.fullmatch(text)
        if found is None:
            raise DeadLetterRefused(
                f"{text!r} is not a letter's id: write TOPIC/OFFSET, as `feedloom dlq list` does"
            )
        topic = checked_topic(found["topic"])
        return cls(topic, int(found["partition"] or 0), int(found["offset"]))

    @classmethod
    def of(cls, record: Record) -> Self:
        """The id of a record as read from a dead-letter topic."""
        return cls(_SOURCES[record.topic], record.partition, record.offset)


@dataclass(frozen=True, kw_only=True, slots=True)
class Settlement:
    """What was done with a letter. ``offset`` is the settlement's own, ``at_ms`` its timestamp."""

    offset: int
    outcome: Outcome
    at_ms: int
    by: str
    reason: str = ""
    replayed_to: str | None = None
    repaired: bool = False

    def __str__(self) -> str:
        place = f" to {self.replayed_to}" if self.replayed_to else ""
        repaired = " with other bytes" if self.repaired else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.outcome}{place}{repaired} by {self.by} at {utc(self.at_ms)}{reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Letter:
    """All about a letter but its bytes. ``size`` in bytes; ``None`` for a record without value.

    ``source_partition`` and ``source_offset`` say where the original was; ``None`` if its headers
    do not tell. ``history`` is oldest first.
    """

    id: LetterId
    at_ms: int
    size: int | None
    source_partition: int | None
    source_offset: int | None
    exception: str
    message: str
    replayed_from: str | None = None
    history: tuple[Settlement, ...] = ()

    @property
    def state(self) -> Literal["open"] | Outcome:
        """What was done last, or ``open``."""
        return self.history[-1].outcome if self.history else "open"

    @property
    def error(self) -> str:
        """The error's class without its module."""
        return self.exception.rpartition(".")[2]


def fold(records: Iterable[Record]) -> list[Letter]:
    """The letters of some dead-letter topics, sorted by id, each with what became of it.

    Neither the order of the records nor a record read twice changes the outcome. A settlement
    whose letter is gone is passed over; of the letters' values only the sizes are kept.
    """
    letters: dict[LetterId, Letter] = {}
    settled: dict[LetterId, dict[int, Settlement]] = {}
    for record in records:
        here = LetterId.of(record)
        if not _is_settlement(record):
            letters[here] = _letter(record, here)
        elif (offset := _number(record.headers, OFFSET)) is not None:
            settlement = _settlement(record)
            # What settles a letter comes after it; anything else was not written by us.
            if settlement is not None and offset < record.offset:
                settled.setdefault(replace(here, offset=offset), {})[record.offset] = settlement
    return [
        replace(letter, history=tuple(one for _, one in sorted(settled.get(key, {}).items())))
        for key, letter in sorted(letters.items())
    ]


def replay_headers(record: Record) -> list[tuple[str, bytes]]:
    """The original's headers, and which letter it comes from. Replaces an earlier replay's mark."""
    kept = [
        (name, value)
        for name, value in record.headers
        if not name.startswith(DEAD_LETTER_PREFIX) and name != REPLAYED_FROM
    ]
    return [*kept, (REPLAYED_FROM, str(LetterId.of(record)).encode())]


def settlement_headers(
    letter: LetterId,
    outcome: Outcome,
    *,
    by: str,
    reason: str = "",
    replayed_to: RecordPosition | None = None,
    repaired: bool = False,
) -> list[tuple[str, bytes]]:
    """The headers of the record that settles ``letter``; write it to the letter's partition."""
    fields = {STATE: outcome, OFFSET: str(letter.offset), BY: by}
    if reason:
        fields[REASON] = reason
    if replayed_to is not None:
        fields[REPLAYED_TO] = f"{replayed_to.topic}/{replayed_to.partition}/{replayed_to.offset}"
    if repaired:
        fields[REPAIRED] = "true"
    # A command line may hold bytes that are no text, which Python keeps as lone surrogates.
    return [(name, value.encode("utf-8", "replace")) for name, value in fields.items()]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which letters a command is about: some ids, or all open ones (of a topic, of an error).

    Raises DeadLetterRefused when it contradicts itself or selects nothing.
    """

    ids: tuple[LetterId, ...] = ()
    everything: bool = False
    topic: str | None = None
    error: str | None = None
    again: bool = False

    def __post_init__(self) -> None:
        if not self.ids and not self.everything:
            raise DeadLetterRefused(
                "no letter is selected: give ids as `feedloom dlq list` prints them, or --all"
            )
        if self.ids and (self.everything or self.topic or self.error):
            raise DeadLetterRefused("give ids, or --all with --topic and --error, but not both")
        if self.again and not self.ids:
            raise DeadLetterRefused("--again wants the ids of the letters to replay once more")

    @property
    def topics(self) -> list[str]:
        """The source topics to look at."""
        if self.ids:
            return sorted({each.topic for each in self.ids})
        return checked_topics(self.topic)

    def pick(self, letters: Collection[Letter]) -> list[Letter]:
        """The letters selected, sorted by id. Raises DeadLetterRefused; then nothing is selected.

        An id that is not there, or whose letter is settled (unless ``again``), refuses the lot.
        """
        if self.ids:
            known = {letter.id: letter for letter in letters}
            return [self._wanted(known, each) for each in sorted(set(self.ids))]
        chosen = [
            letter
            for letter in letters
            if letter.state == "open" and self.error in (None, letter.error, letter.exception)
        ]
        if not chosen:
            raise DeadLetterRefused(self._nothing(letters))
        return chosen

    def _wanted(self, known: dict[LetterId, Letter], wanted: LetterId) -> Letter:
        letter = known.get(wanted)
        if letter is None:
            raise DeadLetterRefused(
                f"no letter {wanted}: it has expired or never was; see "
                f"`feedloom dlq list --all --topic {wanted.topic}`"
            )
        if letter.history and not self.again:
            raise DeadLetterRefused(
                f"{wanted} is settled: {letter.history[-1]}; "
                f"`feedloom dlq replay {wanted} --again` replays it all the same"
            )
        return letter

    def _nothing(self, letters: Collection[Letter]) -> str:
        where = f" of {self.topic}" if self.topic else ""
        still_open = sorted({letter.error for letter in letters if letter.state == "open"})
        if self.error is None or not still_open:
            return f"no letter{where} is open"
        return (
            f"no open letter{where} has the error {self.error}; there are {', '.join(still_open)}"
        )


def checked_topic(topic: str) -> str:
    """``topic``, if the catalogue gives it dead letters. Raises DeadLetterRefused.

    The dead-letter topic's own name is taken as its source's.
    """
    source = _SOURCES.get(topic, topic)
    if source not in TOPICS:
        raise DeadLetterRefused(f"{topic!r} has no dead letters; these have: {', '.join(TOPICS)}")
    return source


def checked_topics(topic: str | None) -> list[str]:
    """That topic alone, or every source topic. Raises DeadLetterRefused."""
    return list(TOPICS) if topic is None else [checked_topic(topic)]


def _is_settlement(record: Record) -> bool:
    # A letter keeps every header of its original, so an upstream may have put our own names there.
    # It cannot keep the error headers off, and a settlement has none.
    names = [name for name, _ in record.headers]
    return STATE in names and not any(name.startswith(DEAD_LETTER_PREFIX) for name in names)


def _letter(record: Record, here: LetterId) -> Letter:
    """Any record that settles nothing is a letter, so that no record stays out of sight."""
    return Letter(
        id=here,
        at_ms=record.timestamp_ms,
        size=None if record.value is None else len(record.value),
        source_partition=_number(record.headers, DEAD_LETTER_PREFIX + "partition"),
        source_offset=_number(record.headers, DEAD_LETTER_PREFIX + "offset"),
        exception=header(record.headers, DEAD_LETTER_PREFIX + "exception") or UNKNOWN_ERROR,
        message=header(record.headers, DEAD_LETTER_PREFIX + "message") or "",
        replayed_from=header(record.headers, REPLAYED_FROM),
    )


def _settlement(record: Record) -> Settlement | None:
    """``None`` for an outcome that a newer release may know and this one does not."""
    outcome = header(record.headers, STATE)
    if outcome not in OUTCOMES:
        return None
    return Settlement(
        offset=record.offset,
        outcome=outcome,
        at_ms=record.timestamp_ms,
        by=header(record.headers, BY) or "unknown",
        reason=header(record.headers, REASON) or "",
        replayed_to=header(record.headers, REPLAYED_TO),
        repaired=header(record.headers, REPAIRED) == "true",
    )


def _number(headers: Headers, name: str) -> int | None:
    text = header(headers, name) or ""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None
