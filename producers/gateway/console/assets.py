"""The page and what it loads, from the package. Public: there is no data in it."""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.responses import Response

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for anew each time, and not sent again unless it has changed.
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".html": "text/html",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    body: bytes
    media_type: str
    etag: str


@cache
def assets() -> dict[str, Asset]:
    """Every file by its path below ``static``: a path that is not a key is not served."""
    return dict(_found(files(__package__) / "static", ""))


def _found(folder: Traversable, path: str) -> list[tuple[str, Asset]]:
    found = []
    for child in folder.iterdir():
        name = f"{path}{child.name}"
        if child.is_dir():
            found += _found(child, f"{name}/")
        else:
            found.append((name, _asset(name, child.read_bytes())))
    return found


def _asset(name: str, body: bytes) -> Asset:
    ending = f".{name.rpartition('.')[2]}"
    media_type = _TYPES.get(ending) or mimetypes.guess_type(name)[0] or "text/plain"
    return Asset(body, media_type, f'"{blake2b(body, digest_size=12).hexdigest()}"')


def response(asset: Asset, if_none_match: str | None) -> Response:
    """The file, or 304 for whoever has it."""
    headers = {**HEADERS, "ETag": asset.etag}
    if if_none_match == asset.etag:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, media_type=asset.media_type, headers=headers)
