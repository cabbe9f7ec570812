"""Prompts from JSON lines to results, a bounded number in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from infra.contracts.errors import FeedloomError
from infra.contracts.events.generation import ChatMessage, SamplingParameters
from producers.client import GenerationClient
from producers.handle import GenerationHandle


class PromptLine(msgspec.Struct, forbid_unknown_fields=True):
    """One line of a prompts file; a misspelt field is an error, not a default."""

    prompt: str = ""
    messages: tuple[ChatMessage, ...] = ()
    batch: bool = False
    request_id: str | None = None
    model: str = "default"
    affinity_key: str | None = None
    sampling: SamplingParameters = SamplingParameters()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one line: the row for the results file, and what went wrong."""

    line: int
    row: dict[str, Any]
    error: str | None = None


def publish_lines(
    client: GenerationClient,
    lines: Iterable[bytes],
    *,
    rate_per_s: float | None,
    max_in_flight: int,
    timeout_s: float,
) -> Iterator[Outcome]:
    """Submit each line and yield the outcomes in the order of the lines. Blank lines are passed."""
    waiting: deque[tuple[int, GenerationHandle | str]] = deque()
    start = time.monotonic()
    sent = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if rate_per_s is not None:
            time.sleep(max(0.0, start + sent / rate_per_s - time.monotonic()))
        sent += 1
        waiting.append((number, _submit(client, line)))
        while len(waiting) >= max_in_flight or (waiting and _is_done(waiting[0][1])):
            yield _outcome(*waiting.popleft(), timeout_s)
    while waiting:
        yield _outcome(*waiting.popleft(), timeout_s)


def _submit(client: GenerationClient, line: bytes) -> GenerationHandle | str:
    try:
        parsed = msgspec.json.decode(line, type=PromptLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    if bool(parsed.prompt) == bool(parsed.messages):
        return "give either a prompt or messages"
    try:
        return client.submit(
            parsed.prompt,
            messages=parsed.messages,
            batch=parsed.batch,
            model=parsed.model,
            sampling=parsed.sampling,
            affinity_key=parsed.affinity_key,
            request_id=parsed.request_id,
        )
    except ValueError as error:
        return str(error)


def _is_done(submitted: GenerationHandle | str) -> bool:
    return isinstance(submitted, str) or submitted.done


def _outcome(number: int, submitted: GenerationHandle | str, timeout_s: float) -> Outcome:
    if isinstance(submitted, str):
        return Outcome(line=number, row={"line": number, "error": submitted}, error=submitted)
    try:
        result = submitted.result(timeout_s)
    except FeedloomError as error:
        row = {"line": number, "request_id": submitted.request.request_id, "error": str(error)}
        return Outcome(line=number, row=row, error=str(error))
    row = {"line": number, **msgspec.to_builtins(result)}
    return Outcome(line=number, row=row, error=result.error.message if result.error else None)
