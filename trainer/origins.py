"""Which trace made a folder of shards: noted beside them, for what trains on them to link to it."""

from __future__ import annotations

from pathlib import Path

import msgspec
from opentelemetry.trace import Link

from infra.files import whole_file
from observability.messaging import LINK, links_to
from observability.propagation import trace_headers

FILE = "trace.json"


def note(directory: Path) -> None:
    """The current trace made these shards; outside of any, an older note is not true any more."""
    path = directory / FILE
    headers = trace_headers()
    if headers is None:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as stream:
        stream.write(msgspec.json.encode(headers))


def links(data: Path) -> list[Link]:
    """To what made the shards in ``train`` and ``heldout`` below a folder, each trace once.

    Nothing where no note is, or none that is one.
    """
    found: dict[int, Link] = {}
    for name in ("train", "heldout"):
        try:
            headers = msgspec.json.decode((data / name / FILE).read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            continue
        carried = [(name, value.encode()) for name, value in headers.items()]
        for link in links_to(carried, **{LINK: "shards"}):
            found[link.context.span_id] = link
    return list(found.values())
