"""What of a partition was delivered and what is finished, as it can be stored and restored. Pure.

A group's committed offset is the lowest unfinished one: nothing is ever committed past a request
that still runs. Requests end in any order, so what is finished beyond that offset is kept beside
it, in the commit's metadata; a new owner then knows exactly what is left to do. (Faust 0.15.3
counts acks that arrive out of order wrongly, faust-streaming 606; what was delivered is ordered
here, so gaps from transaction markers and compaction stall nothing.)
"""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

import msgspec

METADATA_LIMIT = 4096
"""Bytes of metadata that a broker takes with an offset (``offset.metadata.max.bytes``)."""

WINDOW = 2048
"""Offsets between the lowest unfinished and the last delivered one, at most.

The worst case, every other one finished, takes two bytes a pair, and a third more in base64.
"""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a group stands in a partition.

    Offsets below ``base`` are finished, and so are those in ``finished``: ascending, disjoint,
    non-empty ranges ``(first, after_last)`` above it. ``since_ms`` is a moment (epoch) before
    which nothing that is unfinished had been started; 0 if unknown.
    """

    base: int
    finished: tuple[tuple[int, int], ...] = ()
    since_ms: int = 0

    @property
    def finished_end(self) -> int:
        """The offset after the last finished one."""
        return self.finished[-1][1] if self.finished else self.base

    def is_finished(self, offset: int) -> bool:
        """Whether nothing is left to do for this offset."""
        if offset < self.base:
            return True
        index = bisect_right(self.finished, offset, key=lambda span: span[0]) - 1
        return index >= 0 and offset < self.finished[index][1]


class _Stored(msgspec.Struct, forbid_unknown_fields=False):
    """The metadata's JSON. ``finished``: base64 of alternating run lengths as LEB128."""

    since_ms: int = 0
    finished: str = ""


_DECODER = msgspec.json.Decoder(_Stored)
_ENCODER = msgspec.json.Encoder()


def encode_metadata(position: Position) -> str:
    """All of a position but its base, as text for an offset commit."""
    data = bytearray()
    end = position.base
    for first, after in position.finished:
        for length in (first - end, after - first):
            while length > 0x7F:
                data.append(0x80 | length & 0x7F)
                length >>= 7
            data.append(length)
        end = after
    stored = _Stored(position.since_ms, base64.b64encode(data).decode("ascii"))
    return _ENCODER.encode(stored).decode("ascii")


def decode_position(base: int, metadata: str) -> Position:
    """The position that was stored. Metadata of another writer counts as none."""
    try:
        stored = _DECODER.decode(metadata)
        lengths = _lengths(base64.b64decode(stored.finished, validate=True))
    except (msgspec.DecodeError, ValueError):
        return Position(base)
    spans: list[tuple[int, int]] = []
    end = base
    for skipped, length in zip(lengths[::2], lengths[1::2], strict=True):
        spans.append((end + skipped, end + skipped + length))
        end = spans[-1][1]
    return Position(base, tuple(spans), stored.since_ms)


def _lengths(data: bytes) -> list[int]:
    lengths, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            lengths.append(value)
            value = shift = 0
    if shift or len(lengths) % 2:
        raise ValueError("cut short")
    return lengths


class OffsetTracker:
    """One partition, from the moment it was assigned."""

    def __init__(self, position: Position | None = None) -> None:
        self._restored = position
        self._order: deque[int] = deque()
        self._unfinished: dict[int, int] = {}
        self._last: int | None = None
        self._base = position.base if position is not None else None

    @property
    def base(self) -> int | None:
        """The offset to commit: the lowest unfinished one, or the one after the last delivered.

        ``None`` before anything is known.
        """
        return self._base

    @property
    def window(self) -> int:
        """How many delivered offsets cannot be committed past yet, finished or not."""
        return len(self._order)

    @property
    def unfinished(self) -> int:
        """How many delivered offsets are not finished."""
        return len(self._unfinished)

    def is_open(self, offset: int) -> bool:
        """Whether it was delivered and is not finished."""
        return offset in self._unfinished

    @property
    def oldest_ms(self) -> int | None:
        """The moment given to ``deliver`` with the lowest unfinished offset."""
        return next(iter(self._unfinished.values()), None)

    def deliver(self, offset: int, started_ms: int = 0) -> bool:
        """Take note of a record; whether it has to be worked on.

        ``started_ms``: no work on it began before, here or at an earlier owner. ``False`` for a
        record that was delivered before, or was finished by an earlier owner.
        """
        if self._last is not None and offset <= self._last:
            return False
        self._last = offset
        if self._restored is not None and self._restored.is_finished(offset):
            if self._order:
                self._order.append(offset)
            else:
                self._base = max(offset + 1, self._base or 0)
            return False
        if not self._order:
            self._base = offset
        self._order.append(offset)
        self._unfinished[offset] = started_ms
        return True

    def finish(self, offset: int) -> bool:
        """Mark as finished; ``False`` if the offset is unknown or was finished before."""
        if self._unfinished.pop(offset, None) is None:
            return False
        while self._order and self._order[0] not in self._unfinished:
            done = self._order.popleft()
            self._base = self._order[0] if self._order else done + 1
        return True

    def position(self, now_ms: int = 0) -> Position | None:
        """What to store now; ``None`` before anything is known.

        ``now_ms`` stands for ``since_ms`` when nothing is unfinished. Offsets that were never
        delivered (markers, compacted records) between two finished ones count as finished.
        """
        if self._base is None:
            return None
        spans: list[tuple[int, int]] = []
        first: int | None = None
        after = 0
        for offset in self._order:
            if offset in self._unfinished:
                if first is not None:
                    spans.append((first, after))
                    first = None
            else:
                first = offset if first is None else first
                after = offset + 1
        if first is not None:
            spans.append((first, after))
        # What an earlier owner finished and is still to be delivered here.
        if self._restored is not None:
            seen = self._last if self._last is not None else self._base - 1
            spans += [
                (max(start, seen + 1), end)
                for start, end in self._restored.finished
                if end > seen + 1
            ]
        return Position(self._base, tuple(spans), min(self._unfinished.values(), default=now_ms))
