"""What became of each line, kept on this machine's disk until the files are written.

In memory there is a line's place on the disk only. The files have the input's order, so that two
runners which know the same answers write the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from infra.contracts.events.generation import GenerationResult
from producers.gateway import answers, identifiers
from producers.gateway.batches import identity
from producers.gateway.batches.lines import Line
from producers.gateway.errors import ApiError

Json = dict[str, Any]


class Outcome(NamedTuple):
    """A line of the output file or, ``failed``, of the error file."""

    failed: bool
    document: Json


def answered(batch_id: str, line: Line, result: GenerationResult) -> Outcome:
    """A worker answered, with a completion or an error."""
    problem = answers.failure(result)
    if problem is not None:
        return refused(batch_id, line, problem, asked=True)
    request = identifiers.parse(result.request_id)
    assert request is not None, "a line's id is one that a gateway makes"
    response = _response(200, line.request_id, answers.whole(result, request))
    return Outcome(False, _entry(batch_id, line, response, None))


def refused(batch_id: str, line: Line, problem: ApiError, *, asked: bool = False) -> Outcome:
    """The request failed, or, unless it was ``asked``, cannot be made."""
    response = _response(problem.status, line.request_id if asked else None, problem.body)
    return Outcome(True, _entry(batch_id, line, response, None))


def not_run(batch_id: str, line: Line, *, expired: bool) -> Outcome:
    """The batch ended before the request did."""
    error = (
        {
            "code": "batch_expired",
            "message": "the request was not answered before the completion window was over",
        }
        if expired
        else {"code": "batch_cancelled", "message": "the batch was cancelled before the answer"}
    )
    return Outcome(True, _entry(batch_id, line, None, error))


def _entry(batch_id: str, line: Line, response: Json | None, error: Json | None) -> Json:
    return {
        "id": identity.line_id(batch_id, line.number),
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }


def _response(status: int, request_id: str | None, body: Json) -> Json:
    return {"status_code": status, "request_id": request_id, "body": body}


class _Place(NamedTuple):
    failed: bool
    offset: int
    size: int


class Outcomes:
    """Of one batch; the first of a line counts. ``folder`` must be there, for this alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool = (folder / "outcomes").open("w+b")
        self._places: dict[int, _Place] = {}
        self._end = 0
        self.completed = 0
        self.failed = 0

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def add(self, line: Line, outcome: Outcome) -> None:
        """Keep it, unless the line has one."""
        if line.number in self._places:
            return
        data = msgspec.json.encode(outcome.document) + b"\n"
        self._spool.write(data)
        self._places[line.number] = _Place(outcome.failed, self._end, len(data))
        self._end += len(data)
        if outcome.failed:
            self.failed += 1
        else:
            self.completed += 1

    def write(self, *, failed: bool) -> Path | None:
        """The output file or, ``failed``, the error file; ``None`` if it would be empty."""
        if not (self.failed if failed else self.completed):
            return None
        path = self._folder / ("errors" if failed else "output")
        with path.open("wb") as file:
            for _, place in sorted(self._places.items()):
                if place.failed == failed:
                    self._spool.seek(place.offset)
                    file.write(self._spool.read(place.size))
        self._spool.seek(self._end)
        return path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()
