"""Where the spans of a request are found: in files of this machine, or at a tracing backend.

A source answers three questions, each with whole spans. Adapters: ``SpanFiles``, ``SpanList``
(below) and ``infra.terminal.jaeger``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from infra.contracts.errors import ConfigurationError
from observability.spans import SpanRecord

REQUEST_ATTRIBUTE = "feedloom.request.id"


class SpanSource(Protocol):
    """Finished spans, by what is known of them. Every method raises ConfigurationError where
    nothing can be read, and may give a span twice.
    """

    @property
    def where(self) -> str:
        """The places that are looked at, for messages."""
        ...

    def of_request(self, request_id: str) -> Sequence[SpanRecord]:
        """The spans that carry the id, at least; more of their traces do no harm."""
        ...

    def of_trace(self, trace_id: str) -> Sequence[SpanRecord]:
        """Every span of a trace; empty if it is unknown."""
        ...

    def pointing_at(self, trace_id: str) -> Sequence[SpanRecord]:
        """The spans of other traces with a link to this one."""
        ...


class SpanList:
    """A source over spans in memory."""

    def __init__(self, spans: Iterable[SpanRecord], *, where: str) -> None:
        self._spans = list(spans)
        self._where = where

    @property
    def where(self) -> str:
        """As it was given."""
        return self._where

    def of_request(self, request_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        return [one for one in self._spans if carries(one, request_id)]

    def of_trace(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        return [one for one in self._spans if one.trace_id == trace_id]

    def pointing_at(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        return [one for one in self._spans if points_at(one, trace_id)]


class SpanFiles:
    """A source over folders of span files (``observability.spans``), read anew by each question.

    Only lines that mention what is asked for are decoded; a line that was cut short by a crash is
    passed over. Folders that are not there count as empty.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = list(folders)
        self._decoder = msgspec.json.Decoder(SpanRecord)

    @property
    def where(self) -> str:
        """The folders, each with how many files it holds."""
        return ", ".join(
            f"{folder} ({counted(len(_files(folder)), 'file')})"
            if folder.is_dir()
            else f"{folder} (not there)"
            for folder in self._folders
        )

    def of_request(self, request_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        # As the files have it: an id may hold what JSON escapes.
        mention = msgspec.json.encode(request_id)[1:-1]
        return [one for one in self._mentioning(mention) if carries(one, request_id)]

    def of_trace(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        return [one for one in self._mentioning(trace_id.encode()) if one.trace_id == trace_id]

    def pointing_at(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        return [one for one in self._mentioning(trace_id.encode()) if points_at(one, trace_id)]

    def _mentioning(self, mention: bytes) -> Iterator[SpanRecord]:
        for path in (path for folder in self._folders for path in _files(folder)):
            try:
                with path.open("rb") as lines:
                    for line in lines:
                        if mention in line and (span := self._decoded(line)) is not None:
                            yield span
            except FileNotFoundError:
                continue  # its process has moved it aside since
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error}") from error

    def _decoded(self, line: bytes) -> SpanRecord | None:
        try:
            return self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None


def carries(span: SpanRecord, request_id: str) -> bool:
    """Whether a span says that it is of this request."""
    return span.attributes.get(REQUEST_ATTRIBUTE) == request_id


def points_at(span: SpanRecord, trace_id: str) -> bool:
    """Whether a span of another trace has a link to this one."""
    return span.trace_id != trace_id and any(one.trace_id == trace_id for one in span.pointers)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
