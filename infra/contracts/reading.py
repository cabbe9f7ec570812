"""An event out of a record, for readers that pass over what they cannot read."""

from __future__ import annotations

from logging import Logger
from typing import TypeVar

from infra.contracts import codec
from infra.contracts.bus import Record
from infra.contracts.errors import ContractError
from infra.contracts.events.base import Event

E = TypeVar("E", bound=Event)
F = TypeVar("F", bound=Event)


def readable(record: Record, expected: type[E], log: Logger) -> E | None:
    """The record's event; ``None``, with a warning in ``log``, where it is none of that type.

    One bad writer must not stop every reader.
    """
    try:
        return codec.decode(record.value or b"", expected)
    except ContractError as error:
        log.warning("unreadable record on %s: %s", record.where, error)
        return None


def either(record: Record, one: type[E], other: type[F], log: Logger) -> E | F | None:
    """As ``readable``, from a topic that holds events of two types."""
    try:
        event = codec.decode_any(record.value or b"")
    except ContractError as error:
        log.warning("unreadable record on %s: %s", record.where, error)
        return None
    if not isinstance(event, one | other):
        log.warning("%s on %s does not belong there", type(event).__name__, record.where)
        return None
    return event
