"""Where documents come from: files in the Pile's format, a hub's data sets, this machine.

Everything a source cannot read as a document is told to ``bad`` with its file and line, and is
passed over.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from infra.contracts.errors import ConfigurationError
from trainer.pile import CorruptShard, PileMeta, PileRow, decompressed_lines

EXCERPT = 200
HUB = "hub:"
MACHINE = "machine"
PART_DOCUMENTS = 50_000
"""A stream of unknown length is prepared in parts of so many documents."""

Format = Literal["jsonl", "jsonl.zst", "jsonl.gz", "parquet", "hub", "machine"]
_SUFFIXES: tuple[tuple[str, Format], ...] = (
    (".jsonl", "jsonl"),
    (".json", "jsonl"),
    (".jsonl.zst", "jsonl.zst"),
    (".json.zst", "jsonl.zst"),
    (".jsonl.gz", "jsonl.gz"),
    (".json.gz", "jsonl.gz"),
    (".parquet", "parquet"),
)
_DECODER = msgspec.json.Decoder(PileRow)


class Malformed(msgspec.Struct, frozen=True, kw_only=True):
    """What was no document. ``line`` counts from 1: lines of a text file, rows otherwise."""

    file: str
    line: int
    reason: str
    excerpt: str


Bad = Callable[[Malformed], None]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file, one hub data set (``location``: name, or name and split), or this machine."""

    format: Format
    location: str

    @property
    def is_file(self) -> bool:
        """Else it is a stream, which is read from its beginning."""
        return self.format not in ("hub", "machine")

    @property
    def identity(self) -> list[Any]:
        """Changes when a file does."""
        if not self.is_file:
            return [self.format, self.location]
        status = Path(self.location).stat()
        return [self.format, self.location, status.st_size, status.st_mtime_ns]


def sources_of(names: Iterable[str]) -> list[Source]:
    """Files, folders (their files, by name), ``hub:NAME[:SPLIT]``, ``machine``.

    Raises:
        ConfigurationError: nothing there, or of a format that is not read.
    """
    found: list[Source] = []
    for name in names:
        if name == MACHINE:
            found.append(Source(format="machine", location=name))
        elif name.startswith(HUB):
            found.append(Source(format="hub", location=name.removeprefix(HUB)))
        elif Path(name).is_dir():
            files = [path for path in sorted(Path(name).rglob("*")) if _format_of(path)]
            if not files:
                raise ConfigurationError(f"{name} holds no file that ends in {_endings()}")
            found += [_file(path) for path in files]
        else:
            found.append(_file(Path(name)))
    if not found:
        raise ConfigurationError("no source was named")
    return found


def _file(path: Path) -> Source:
    if not path.is_file():
        raise ConfigurationError(
            f"{path} does not exist; sources are files, folders, {HUB}NAME or {MACHINE}"
        )
    found = _format_of(path)
    if found is None:
        raise ConfigurationError(f"{path} is not read: its name does not end in {_endings()}")
    return Source(format=found, location=str(path))


def _format_of(path: Path) -> Format | None:
    if path.name.startswith(".") or not path.is_file():
        return None
    return next((form for suffix, form in _SUFFIXES if path.name.endswith(suffix)), None)


def _endings() -> str:
    return ", ".join(suffix for suffix, _ in _SUFFIXES)


def read_source(source: Source, bad: Bad, *, skip: int = 0) -> Iterator[PileRow]:
    """The documents of one source. ``skip`` rows of a hub data set were read before.

    Raises:
        CorruptShard: a compressed file is cut short or damaged.
        ConfigurationError: a Parquet file or data set without a column ``text``.
    """
    if source.format == "machine":
        return _machine_rows()
    if source.format == "hub":
        return _hub_rows(source.location, bad, skip)
    path = Path(source.location)
    if source.format == "parquet":
        return _parquet_rows(path, bad)
    if source.format == "jsonl.zst":
        lines = decompressed_lines(path)
    elif source.format == "jsonl.gz":
        lines = _gzip_lines(path)
    else:
        lines = _plain_lines(path)
    return _json_rows(str(path), lines, bad)


def _plain_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from stream


def _gzip_lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as stream:
            yield from stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptShard(f"{path} cannot be read: {error}") from error


def _json_rows(file: str, lines: Iterable[bytes], bad: Bad) -> Iterator[PileRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _DECODER.decode(line)
        except msgspec.DecodeError as error:
            reason = str(error)
        except UnicodeDecodeError:
            reason = "not UTF-8"
        else:
            if row.text.strip():
                yield row
                continue
            reason = "the text is empty"
        excerpt = line[: 4 * EXCERPT].decode("utf-8", "replace")[:EXCERPT]
        bad(Malformed(file=file, line=number, reason=reason, excerpt=excerpt))


def _parquet_rows(path: Path, bad: Bad) -> Iterator[PileRow]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ConfigurationError(f"{path} is no Parquet file: {error}") from error
    with table:
        names = table.schema_arrow.names
        _check_columns(str(path), names)
        columns = [name for name in ("text", "meta", "pile_set_name") if name in names]
        rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
        yield from _mapped_rows(str(path), rows, bad, start=1)


def _hub_rows(name: str, bad: Bad, skip: int) -> Iterator[PileRow]:
    from datasets import load_dataset

    name, _, split = name.partition(":")
    # Rows are read as text; no code of a data set is run.
    stream = load_dataset(  # nosec B615
        name, split=split or "train", streaming=True
    )
    if stream.column_names is not None:
        _check_columns(name, stream.column_names)
    yield from _mapped_rows(HUB + name, iter(stream.skip(skip)), bad, start=skip + 1)


def _check_columns(where: str, names: Iterable[str]) -> None:
    if "text" not in names:
        raise ConfigurationError(f"{where} has no column 'text' but {', '.join(names)}")


def _mapped_rows(file: str, rows: Iterable[Any], bad: Bad, *, start: int) -> Iterator[PileRow]:
    for number, row in enumerate(rows, start=start):
        text, meta = row.get("text"), row.get("meta")
        if not isinstance(text, str) or not text.strip():
            reason = "the text is empty" if isinstance(text, str) else "there is no text"
            bad(Malformed(file=file, line=number, reason=reason, excerpt=str(row)[:EXCERPT]))
            continue
        name = row.get("pile_set_name")
        if name is None and isinstance(meta, dict):
            name = meta.get("pile_set_name")
        yield PileRow(text=text, meta=PileMeta(pile_set_name=name) if name else PileMeta())


def _machine_rows() -> Iterator[PileRow]:
    from infra.cores import available
    from infra.settings import load_settings
    from trainer.corpus import assemble, collect

    limit_mb = load_settings().bootstrap.corpus_mb
    corpus = assemble(collect(limit_mb, workers=len(available())))
    for document in corpus.train:
        yield document.row()


def parts_of(rows: Iterable[PileRow], size: int = PART_DOCUMENTS) -> Iterator[Iterator[PileRow]]:
    """A stream in pieces; each must be used up before the next is asked for."""
    rows = iter(rows)
    for first in rows:

        def piece(first: PileRow = first) -> Iterator[PileRow]:
            yield first
            yield from islice(rows, size - 1)

        yield piece()
