"""Where the bytes of files are kept: a folder, or an object store through fsspec.

A file appears whole or not at all: in a folder under a temporary name that is then renamed; an
object store shows an object only when its upload is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from infra.files import free_bytes, sync, whole_file
from infra.registry.object_store import failures, filesystem
from producers.gateway.batches.errors import FileMissing, FileStoreFailed

BLOCK_BYTES = 1 << 20


class FileStore(Protocol):
    """Files by name. Names are ids that the gateway made. Raises FileStoreFailed."""

    def put(self, name: str, content: BinaryIO) -> None:
        """Keep the rest of a stream under a name, in place of what was there."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Read a file from its beginning. Raises FileMissing."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


def file_store(url: str) -> FileStore:
    """The store at a folder's path or a URL.

    Raises ConfigurationError: no store has the scheme, or its library is not installed.
    """
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme == "file":
        return FolderFiles(Path(unquote(urlsplit(url).path)) if "://" in url else Path(url))
    return ObjectFiles(url)


def fetch(store: FileStore, name: str, target: Path) -> None:
    """Copy a file to this machine's disk. Raises FileMissing, FileStoreFailed."""
    try:
        with store.open(name) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, BLOCK_BYTES)
    except OSError as error:
        raise FileStoreFailed(f"{name} could not be copied to {target.parent}: {error}") from error


class FolderFiles:
    """On one disk, or on one that the replicas share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def put(self, name: str, content: BinaryIO) -> None:
        """See :class:`FileStore`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self._folder / name) as stream:
                shutil.copyfileobj(content, stream, BLOCK_BYTES)
        except OSError as error:
            raise FileStoreFailed(
                f"{self._folder} could not take {name}; {free_bytes(self._folder):,} bytes are "
                f"free: {error}"
            ) from error

    def open(self, name: str) -> BinaryIO:
        """See :class:`FileStore`."""
        try:
            return (self._folder / name).open("rb")
        except FileNotFoundError as error:
            raise FileMissing(f"{name} is not in {self._folder}") from error
        except OSError as error:
            raise FileStoreFailed(f"{self._folder / name} cannot be read: {error}") from error

    def delete(self, name: str) -> None:
        """See :class:`FileStore`."""
        try:
            (self._folder / name).unlink(missing_ok=True)
            if self._folder.is_dir():
                sync(self._folder)
        except OSError as error:
            raise FileStoreFailed(f"{self._folder / name} stays: {error}") from error


class ObjectFiles:
    """In an object store. Credentials are found as the store's own library finds them."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._root = unquote(f"{parts.netloc}{parts.path}").strip("/")
        self._url = url
        self._fs = filesystem(parts.scheme, setting="FEEDLOOM_GATEWAY__FILES_URL")
        self._failures = failures(parts.scheme)

    def put(self, name: str, content: BinaryIO) -> None:
        """See :class:`FileStore`."""
        with (
            self._explained(f"could not take {name}"),
            # fsspec completes the upload of a stream that is left by an error: a file does not end.
            tempfile.NamedTemporaryFile(prefix="feedloom-") as copy,
        ):
            shutil.copyfileobj(content, copy, BLOCK_BYTES)
            copy.flush()
            self._fs.put_file(copy.name, f"{self._root}/{name}")

    def open(self, name: str) -> BinaryIO:
        """See :class:`FileStore`."""
        with self._explained(f"could not give {name}"):
            return cast(BinaryIO, self._fs.open(f"{self._root}/{name}", "rb"))

    def delete(self, name: str) -> None:
        """See :class:`FileStore`."""
        with self._explained(f"keeps {name}"):
            if self._fs.exists(f"{self._root}/{name}"):
                self._fs.rm_file(f"{self._root}/{name}")

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise FileMissing(f"{self._url} {what}: it is not there") from error
        except self._failures as error:
            raise FileStoreFailed(f"{self._url} {what}: {type(error).__name__}: {error}") from error
