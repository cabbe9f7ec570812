"""Where a backup lies: a folder, or below a URL of an object store, through fsspec.

A file appears whole or not at all. Files in a folder are for their owner alone. Knows nothing of
what the files are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from infra.files import STAGING, free_bytes, whole_file
from infra.recovery.errors import BackupRejected, BackupStoreFailed
from infra.registry.object_store import failures, filesystem

BLOCK_BYTES = 1 << 20
FOLDER_MODE, FILE_MODE = 0o700, 0o600


class Place(Protocol):
    """Files by flat names. Raises BackupStoreFailed."""

    @property
    def where(self) -> str:
        """For messages."""
        ...

    def names(self) -> set[str]:
        """What is there; nothing where there is no such place yet."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Copy a file there, in place of what was there."""
        ...

    def get(self, name: str, target: Path) -> None:
        """Copy a file from there. Raises BackupRejected when it is not there."""
        ...


def place(url: str, *, endpoint_url: str | None = None) -> Place:
    """The place of a path or a URL. ``endpoint_url``: of an S3-compatible store not Amazon's.

    Raises ConfigurationError: no store has the scheme, or its library is not installed.
    """
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme == "file":
        return Folder(Path(unquote(urlsplit(url).path)) if "://" in url else Path(url))
    return Objects(url, endpoint_url=endpoint_url)


class Folder:
    """A folder on this machine, or one that is mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    @property
    def where(self) -> str:
        """See :class:`Place`."""
        return str(self._folder)

    def names(self) -> set[str]:
        """See :class:`Place`."""
        try:
            found = {one.name for one in self._folder.iterdir() if one.is_file()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise BackupStoreFailed(f"{self._folder} cannot be listed: {error}") from error
        # What a writer that died was about to rename is not there yet.
        return {name for name in found if not name.endswith(STAGING)}

    def put(self, source: Path, name: str) -> None:
        """See :class:`Place`."""
        try:
            self._folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
            with source.open("rb") as content, whole_file(self._folder / name) as stream:
                os.fchmod(stream.fileno(), FILE_MODE)
                shutil.copyfileobj(content, stream, BLOCK_BYTES)
        except OSError as error:
            raise BackupStoreFailed(
                f"{self._folder} could not take {name}; {free_bytes(self._folder):,} bytes are "
                f"free: {error}"
            ) from error

    def get(self, name: str, target: Path) -> None:
        """See :class:`Place`."""
        try:
            shutil.copyfile(self._folder / name, target)
        except FileNotFoundError as error:
            raise BackupRejected(f"{self._folder / name} is not there") from error
        except OSError as error:
            raise BackupStoreFailed(f"{self._folder / name} cannot be read: {error}") from error


class Objects:
    """In an object store. Credentials are found as the store's own library finds them."""

    def __init__(self, url: str, *, endpoint_url: str | None = None) -> None:
        parts = urlsplit(url)
        self._root = unquote(f"{parts.netloc}{parts.path}").strip("/")
        self._url = url.rstrip("/")
        self._fs = filesystem(parts.scheme, setting="the backup", endpoint_url=endpoint_url)
        self._failures = failures(parts.scheme)

    @property
    def where(self) -> str:
        """See :class:`Place`."""
        return self._url

    def names(self) -> set[str]:
        """See :class:`Place`."""
        with self._explained("cannot be listed"):
            found = self._fs.find(self._root)
        return {name.strip("/").removeprefix(f"{self._root}/") for name in found}

    def put(self, source: Path, name: str) -> None:
        """See :class:`Place`."""
        with self._explained(f"could not take {name}"):
            self._fs.put_file(str(source), f"{self._root}/{name}")

    def get(self, name: str, target: Path) -> None:
        """See :class:`Place`."""
        try:
            with self._explained(f"could not give {name}"):
                self._fs.get_file(f"{self._root}/{name}", str(target))
        except FileNotFoundError as error:
            raise BackupRejected(f"{self._url}/{name} is not there") from error

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except self._failures as error:
            raise BackupStoreFailed(
                f"{self._url} {what}: {type(error).__name__}: {error}"
            ) from error
