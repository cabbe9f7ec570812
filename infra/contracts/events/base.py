"""What every event has: a tag, and the version of the contract that it was written by.

A tag in the field ``type`` names the event on the wire. ``schema_version`` is ``MAJOR.MINOR``: a
new field comes with a default and raises MINOR; anything a reader could trip over raises MAJOR.
Times ending in ``_ms`` that name a moment are Unix epoch milliseconds; durations say so.

Validation of events is of shape and range only. Whether a model exists or a prompt fits its context
is known by the worker, which answers with an error result.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

SCHEMA_VERSION = "1.8"

Identifier = Annotated[str, Meta(min_length=1, max_length=256)]
EpochMs = Annotated[int, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all events; carries the contract's version."""

    schema_version: str = SCHEMA_VERSION
