"""Shards in the format of the Pile: zstandard-compressed JSON lines, one document a line.

A row is ``{"text": ..., "meta": {"pile_set_name": ...}}`` (Gao et al. 2020, arXiv 2101.00027), so
real Pile shards can stand where ours do. Knows nothing of where documents come from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zstandard

from infra.contracts.errors import FeedloomError
from infra.files import whole_file
from trainer import origins

SUFFIX = ".jsonl.zst"
LEVEL = 9
SHARD_BYTES = 32 * 1024 * 1024


class CorruptShard(FeedloomError):
    """A shard cannot be decompressed: it is cut short or is no zstandard file. Build it again."""


class PileMeta(msgspec.Struct, frozen=True):
    """Where a document belongs. Other keys of real shards are ignored."""

    pile_set_name: str = "unknown"


class PileRow(msgspec.Struct, frozen=True):
    """One document."""

    text: str
    meta: PileMeta = PileMeta()


@dataclass
class ReadCounts:
    """What a reader saw. ``bad_lines`` were passed over: no JSON, no text, or not UTF-8."""

    rows: int = 0
    bad_lines: int = 0
    shards: list[str] = field(default_factory=list)


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(PileRow)


def write_shards(
    directory: Path, rows: Iterable[PileRow], *, shard_bytes: int = SHARD_BYTES
) -> list[Path]:
    """Write rows as ``00000.jsonl.zst``, ... and remove older shards beyond the last.

    A shard takes rows until it holds ``shard_bytes`` of text. Equal rows give equal bytes; each
    file appears whole or not at all. The current trace is noted beside them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for index, batch in enumerate(_batches(rows, shard_bytes)):
        path = directory / f"{index:05d}{SUFFIX}"
        _write_shard(path, batch)
        written.append(path)
    for stale in shard_paths(directory):
        if stale not in written:
            stale.unlink()
    origins.note(directory)
    return written


def shard_paths(directory: Path) -> list[Path]:
    """The shards of a folder, in order; empty if there is no such folder."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def read_shards(paths: Sequence[Path], counts: ReadCounts | None = None) -> Iterator[PileRow]:
    """Every readable row, in order; what was passed over is counted in ``counts``.

    Raises:
        CorruptShard: a file is not whole; the message names it.
    """
    seen = counts if counts is not None else ReadCounts()
    for path in paths:
        seen.shards.append(path.name)
        for line in decompressed_lines(path):
            try:
                row = _DECODER.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                seen.bad_lines += bool(line.strip())
                continue
            seen.rows += 1
            yield row


WriteRow = Callable[[PileRow], object]


@contextmanager
def shard_writer(path: Path) -> Iterator[WriteRow]:
    """Write one shard of any length, a row at a time.

    The file appears whole when the context ends, or not at all if it ends with an error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with whole_file(path) as stream:
        compressed = compressor.stream_writer(stream, closefd=False)
        yield lambda row: compressed.write(_ENCODER.encode(row) + b"\n")
        compressed.close()  # type: ignore[no-untyped-call]


def _batches(rows: Iterable[PileRow], shard_bytes: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for row in rows:
        line = _ENCODER.encode(row) + b"\n"
        if batch and size + len(line) > shard_bytes:
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield batch


def _write_shard(path: Path, lines: Sequence[bytes]) -> None:
    data = b"".join(lines)
    # One thread: with more, the bytes depend on where the input happened to be cut.
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    with whole_file(path) as stream:
        stream.write(compressor.compress(data))


def decompressed_lines(path: Path) -> Iterator[bytes]:
    """Lines of a zstandard file, without their ends. Raises CorruptShard."""
    # A reader ends silently where a file is cut short; only the decompressor knows whether the
    # last frame was complete, hence the loop by hand.
    with path.open("rb") as stream:
        tail = b""
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        started = False
        try:
            while chunk := stream.read(io.DEFAULT_BUFFER_SIZE * 16):
                while chunk:
                    if decompressor.eof:
                        decompressor = zstandard.ZstdDecompressor().decompressobj()
                    started = True
                    *whole, tail = (tail + decompressor.decompress(chunk)).split(b"\n")
                    yield from whole
                    chunk = decompressor.unused_data
        except zstandard.ZstdError as error:
            raise CorruptShard(f"{path} cannot be read: {error}") from error
        if not started or not decompressor.eof:
            raise CorruptShard(f"{path} is cut short: its last frame does not end")
        if tail:
            yield tail
