"""Events to bytes and back, and the headers that travel with them.

JSON in, JSON out. Unknown fields are ignored; an unknown major version, an unknown type or a
wrong shape is a :class:`ContractError`, which means: dead-letter the record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

from infra.contracts.errors import MalformedRecord, UnknownEventType, UnsupportedSchemaVersion
from infra.contracts.events.base import SCHEMA_VERSION, Event
from infra.contracts.events.union import EVENT_TYPES, AnyEvent

Headers = Sequence[tuple[str, bytes]]
E = TypeVar("E", bound=Event)

_MAJOR = SCHEMA_VERSION.split(".")[0]
_NAMES = frozenset(kind.__name__ for kind in EVENT_TYPES)
_ENCODER = msgspec.json.Encoder()
_DECODER: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class _Envelope(msgspec.Struct):
    type: str | None = None
    schema_version: str = SCHEMA_VERSION


_ENVELOPE = msgspec.json.Decoder(_Envelope)


def encode(event: Event) -> bytes:
    """The event as UTF-8 JSON, fields in declared order, so that equal events give equal bytes."""
    return _ENCODER.encode(event)


def decode(data: bytes, expected: type[E]) -> E:
    """Read one event of the ``expected`` type.

    Raises:
        MalformedRecord: not JSON, a missing or wrongly typed field, or an event of another type.
        UnsupportedSchemaVersion: written by a newer, incompatible contract.
        UnknownEventType: the ``type`` tag is missing or names nothing in the contract.
    """
    event = decode_any(data)
    if not isinstance(event, expected):
        raise MalformedRecord(f"expected {expected.__name__}, found {type(event).__name__}")
    return event


def decode_any(data: bytes) -> AnyEvent:
    """Read an event of whichever type its tag names. Raises as :func:`decode`."""
    _check_envelope(data)
    try:
        return _DECODER.decode(data)
    except msgspec.DecodeError as error:
        raise MalformedRecord(str(error)) from error
    except UnicodeDecodeError as error:
        raise MalformedRecord(f"not UTF-8: {error}") from error


def _check_envelope(data: bytes) -> None:
    """Look at the envelope first, so that a newer major version is named as such."""
    try:
        envelope = _ENVELOPE.decode(data)
    except msgspec.DecodeError as error:
        raise MalformedRecord(f"not a JSON event: {error}") from error
    except UnicodeDecodeError as error:
        raise MalformedRecord(f"not UTF-8: {error}") from error
    if envelope.schema_version.split(".")[0] != _MAJOR:
        raise UnsupportedSchemaVersion(
            f"schema_version {envelope.schema_version!r}: this reader knows {_MAJOR}.x"
        )
    if envelope.type not in _NAMES:
        raise UnknownEventType(f"unknown event type {envelope.type!r}")


def event_headers(event: Event, *, event_id: str, source: str) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 headers, Kafka binary content mode."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event_id.encode()),
        ("ce_type", f"feedloom.{type(event).__name__}".encode()),
        ("ce_source", source.encode()),
        ("content-type", b"application/json"),
    ]


DEADLINE_HEADER = "feedloom.deadline_ms"
"""A request's deadline in its headers too, so that a relay can drop it without decoding it."""


def header(headers: Headers, name: str) -> str | None:
    """The last value of a header, as text; ``None`` if it is absent."""
    for key, value in reversed(headers):
        if key == name:
            return value.decode("utf-8", "replace")
    return None


DEAD_LETTER_PREFIX = "__streams.errors."


def dead_letter_headers(
    original: Headers,
    *,
    topic: str,
    partition: int,
    offset: int,
    error: BaseException,
) -> list[tuple[str, bytes]]:
    """The original headers plus where the record came from and why, in KIP-1034's names."""
    details: Mapping[str, str] = {
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": str(error),
    }
    kept = [pair for pair in original if not pair[0].startswith(DEAD_LETTER_PREFIX)]
    return kept + [(DEAD_LETTER_PREFIX + key, value.encode()) for key, value in details.items()]
