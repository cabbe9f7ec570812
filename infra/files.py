"""Files that appear whole or not at all, and what tells one file from another."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

STAGING = ".staging"
"""Ends the name of a file that is not whole yet, which begins with a dot."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content is at ``path``, on the disk, once the context ends without an error.

    Until then, and after an error, what was at ``path`` before is there.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}{STAGING}")
    try:
        with staging.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Ask for a file or a folder's entries to be on the disk, for the case of a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Of a file's content, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Of the disk that holds ``path``, or would."""
    return shutil.disk_usage(next(one for one in (path, *path.parents) if one.exists())).free
