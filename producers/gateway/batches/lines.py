"""A batch's input: which lines there are, and what each asks. Knows nothing of Kafka.

A line that is no request makes the whole file unusable, as with OpenAI; a request that the API
would refuse is refused alone, when its turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from infra.contracts.events.gateway import BatchChanged, BatchError
from infra.settings import GatewaySettings
from producers.gateway import bodies, limits
from producers.gateway.batches import identity
from producers.gateway.bodies import ChatBody, CompletionBody
from producers.gateway.errors import ApiError, invalid
from producers.gateway.questions import Question, question

MAX_LINES = 50_000
MAX_ERRORS = 100
"""Are told; the rest will be found when these are mended."""
MAX_CUSTOM_ID = 512
ENVELOPE_BYTES = 4_096
"""What a line may have around its body."""
_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_BODIES: dict[str, type[ChatBody] | type[CompletionBody]] = {
    "/v1/chat/completions": ChatBody,
    "/v1/completions": CompletionBody,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One request of the input. ``number`` from 1; ``offset`` in the file, in bytes.

    ``request_id``: ``None`` where the body names no model, and so cannot be asked.
    """

    number: int
    offset: int
    custom_id: str
    request_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All of an input; with ``errors`` it is unusable."""

    lines: tuple[Line, ...]
    errors: tuple[BatchError, ...]


class _Fault(Exception):
    """What is wrong with a line."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def read_plan(path: Path, batch: BatchChanged, settings: GatewaySettings) -> Plan:
    """The lines of a file on this machine. Blank ones are passed over, and count as lines."""
    found: list[Line] = []
    errors: list[BatchError] = []
    custom_ids: set[bytes] = set()
    with path.open("rb") as file:
        number = end = 0
        while len(errors) < MAX_ERRORS:
            offset = end
            raw = file.readline(settings.max_body_bytes + ENVELOPE_BYTES + 1)
            if not raw:
                break
            end += len(raw)
            number += 1
            if not raw.strip():
                continue
            if len(found) >= MAX_LINES:
                errors.append(_too_many(number))
                break
            try:
                document = _envelope(raw, batch.endpoint, settings)
                custom_id = document["custom_id"]
                digest = blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16)
                if digest.digest() in custom_ids:
                    raise _Fault(
                        "duplicate_custom_id",
                        f"custom_id {custom_id!r} was used",
                        "custom_id",
                    )
            except _Fault as fault:
                errors.append(
                    BatchError(
                        code=fault.code, message=fault.message, line=number, param=fault.param
                    )
                )
                if fault.code == "line_too_long":
                    # Nothing of an unusable file is asked: where its lines lie does not matter.
                    _skip_line(file, raw)
                continue
            custom_ids.add(digest.digest())
            found.append(
                Line(
                    number=number,
                    offset=offset,
                    custom_id=custom_id,
                    request_id=_request_id(batch, number, document["body"].get("model")),
                )
            )
    if not found and not errors:
        errors.append(BatchError(code="empty_file", message="the input file has no requests"))
    return Plan(lines=tuple(found), errors=tuple(errors))


def ask(file: BinaryIO, line: Line, batch: BatchChanged, settings: GatewaySettings) -> Question:
    """What a line of the plan asks. Raises ApiError as the endpoint would."""
    file.seek(line.offset)
    raw = file.readline(settings.max_body_bytes + ENVELOPE_BYTES)
    document = limits.parse_json(raw, max_depth=settings.max_json_depth + 1)["body"]
    body = bodies.parse(_BODIES[batch.endpoint], document)
    asked = question(body)
    for name in ("stream", "background"):
        if getattr(asked, name):
            raise invalid(
                f"{name} is not for requests of a batch", param=name, code="unsupported_parameter"
            )
    if batch.models and asked.model not in batch.models:
        raise ApiError(
            403,
            f"the credential is not for model {asked.model!r}",
            code="insufficient_permissions",
        )
    asked.check_length(settings.max_prompt_characters)
    return asked


def _envelope(raw: bytes, endpoint: str, settings: GatewaySettings) -> dict[str, Any]:
    """A line's document, checked around its body. Raises _Fault."""
    most = settings.max_body_bytes + ENVELOPE_BYTES
    if len(raw) > most:
        raise _Fault("line_too_long", f"the line is longer than {most} bytes")
    try:
        document = limits.parse_json(raw, max_depth=settings.max_json_depth + 1)
    except ApiError as error:
        message = error.message.replace("the body", "the line")
        raise _Fault("invalid_json_line", message) from None
    if not isinstance(document, dict):
        raise _Fault("invalid_json_line", "the line must be a JSON object")
    for name in sorted(_FIELDS - set(document)):
        raise _Fault("missing_required_parameter", f"{name} is missing", name)
    for name in sorted(set(document) - _FIELDS):
        raise _Fault("unsupported_parameter", f"unsupported parameter: {name[:100]}", name[:100])
    custom_id = document["custom_id"]
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        raise _Fault(
            "invalid_custom_id",
            f"custom_id must be text of 1 to {MAX_CUSTOM_ID} characters",
            "custom_id",
        )
    if document["method"] != "POST":
        raise _Fault("invalid_method", "method must be POST", "method")
    if document["url"] != endpoint:
        raise _Fault("invalid_url", f"url must be the batch's endpoint, {endpoint}", "url")
    if not isinstance(document["body"], dict):
        raise _Fault("invalid_request", "body must be a JSON object", "body")
    return document


def _request_id(batch: BatchChanged, number: int, model: object) -> str | None:
    if not isinstance(model, str) or not model:
        return None
    return identity.request_id(
        batch.batch_id,
        number,
        endpoint=batch.endpoint,
        tenant=batch.tenant,
        model=model,
        created_at_ms=batch.created_at_ms,
    ).text


def _too_many(number: int) -> BatchError:
    return BatchError(
        code="too_many_tasks",
        message=f"a batch may have {MAX_LINES} requests: split the file",
        line=number,
    )


def _skip_line(file: BinaryIO, raw: bytes) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(1 << 16)
