"""The ids of batches, files and lines.

Those of a batch's lines and of the files that it writes follow from the batch's id: whoever runs it
asks the same requests, which a worker answers once, and writes the same files.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

from producers.gateway import identifiers
from producers.gateway.identifiers import NONCE_BYTES, Kind, RequestId

KINDS: dict[str, Kind] = {"/v1/chat/completions": "chatcmpl", "/v1/completions": "cmpl"}
"""Endpoints of batches, and the kind of their requests."""
_PREFIX = "batch_"


def new_batch_id(partition: int) -> str:
    """A new id, which nobody can guess. ``partition``: of the chunk topic, for its requests."""
    return f"{_PREFIX}{partition:04x}{secrets.token_hex(14)}"


def reply_partition(batch_id: str) -> int:
    """Of the chunk topic, as the id says."""
    return int(batch_id[len(_PREFIX) : len(_PREFIX) + 4], 16)


def new_file_id() -> str:
    """A new id, which nobody can guess."""
    return f"file-{secrets.token_hex(14)}"


def written_file_id(batch_id: str, what: str) -> str:
    """Of the file with a batch's outputs or errors."""
    return f"file-{_derived(batch_id, what, size=14).hex()}"


def line_id(batch_id: str, line: int) -> str:
    """Of a line's entry in the output or error file."""
    return f"batch_req_{_derived(batch_id, str(line), size=14).hex()}"


def request_id(
    batch_id: str, line: int, *, endpoint: str, tenant: str, model: str, created_at_ms: int
) -> RequestId:
    """Of a line's request. ``created_at_ms``: the batch's, from which on its records are sought."""
    return identifiers.mint(
        KINDS[endpoint],
        tenant=tenant,
        model=model,
        partition=reply_partition(batch_id),
        created_at_ms=created_at_ms,
        nonce=_derived(batch_id, f"request {line}", size=NONCE_BYTES),
    )


def _derived(batch_id: str, what: str, *, size: int) -> bytes:
    return blake2b(f"{batch_id} {what}".encode(), digest_size=size).digest()
