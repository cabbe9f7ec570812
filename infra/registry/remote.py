"""Versions in an object store, through fsspec: S3-compatible, Google Cloud Storage, memory.

A folder's files come first and its marker last, by a put that fails where there is one already
(S3: ``If-None-Match: *``; GCS: ``ifGenerationMatch=0``). Folders bear their content's digest, so on
a store that ignores the condition two writers write the same bytes. What a dead writer left has no
marker: nobody reads it, and the next put of the same content completes it.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import msgspec

from infra.files import free_bytes, sync
from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
from infra.registry.manifest import (
    MARKER,
    SIGNATURE,
    Manifest,
    bytes_of,
    digest_of,
    manifest_of,
)
from infra.registry.object_store import failures, filesystem

log = logging.getLogger(__name__)


class RemoteStore:
    """Versions below one URL, and a local cache of them by content.

    Credentials are found as the store's own library finds them. Raises ConfigurationError for
    another scheme, or a library that is not installed.
    """

    def __init__(self, url: str, *, cache: Path, endpoint_url: str | None = None) -> None:
        self.scheme, self._root = _split(url)
        self._cache = cache.resolve()
        self._fs = filesystem(
            self.scheme, setting="FEEDLOOM_ARTIFACT_STORE__URL", endpoint_url=endpoint_url
        )
        self._failures = failures(self.scheme)

    def put(
        self, directory: Path, manifest: Manifest, name: str, *, signature: Path | None = None
    ) -> str:
        """Upload a folder under ``name``, marker last. Returns its URI.

        Content that is there already is not uploaded again; its names and sizes are compared, and
        its signature is replaced if one is given.

        Raises:
            ArtifactRejected: the folder changed meanwhile, or what is there is something else.
            ArtifactStoreFailed: the store refused or could not be reached; there is no marker.
        """
        folder = f"{self._root}/{name}"
        uri = f"{self.scheme}://{quote(folder)}"
        with self._explained(f"{uri} could not take {bytes_of(manifest):,} bytes of {directory}"):
            whole = MARKER in self._listed(folder)
            if not whole:
                for file in manifest:
                    self._fs.put_file(str(directory / file.path), f"{folder}/{file.path}")
                if manifest_of(directory) != manifest:
                    raise ArtifactRejected(f"{directory} changed while it was copied")
            _compare(self._listed(folder), manifest, uri)
            if signature is not None:
                self._fs.put_file(str(signature), f"{folder}/{SIGNATURE}")
            if not whole:
                self._mark(folder, manifest)
        return uri

    def fetch(self, uri: str, manifest: Manifest, accept: Callable[[Path], None]) -> Path:
        """The local copy of a version, downloaded unless an acceptable one is there.

        ``accept`` raises ArtifactRejected for a copy that must not be loaded.

        Raises:
            ArtifactRejected: half-written, a file missing, changed or extra, or not accepted.
            ArtifactStoreFailed: the store could not be read, or the cache not written.
        """
        target = self._cache / digest_of(manifest)
        if target.is_dir():
            try:
                accept(target)
            except ArtifactRejected as error:
                log.warning("%s is downloaded again: %s", uri, error)
            else:
                return target
        needed = bytes_of(manifest)
        with self._explained(f"{uri} could not be fetched to {self._cache} ({needed:,} bytes)"):
            self._cache.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".", dir=self._cache))
            try:
                self._download(uri, manifest, staging)
                accept(staging)
                _move(staging, target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return target

    def _download(self, uri: str, manifest: Manifest, staging: Path) -> None:
        _, folder = _split(uri)
        listed = self._listed(folder)
        if MARKER not in listed:
            raise ArtifactRejected(
                f"{uri} has no {MARKER}: it is not there, or its upload was never finished"
            )
        _compare(listed, manifest, uri)
        wanted = [file.path for file in manifest] + [SIGNATURE] * (SIGNATURE in listed)
        for path in wanted:
            copy = staging / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(f"{folder}/{path}", str(copy))
            sync(copy)

    def _listed(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of the objects below ``folder``, by their path in it."""
        found = self._fs.find(folder, detail=True)
        prefix = f"{folder}/"
        return {
            name.strip("/").removeprefix(prefix): entry["size"] for name, entry in found.items()
        }

    def _mark(self, folder: str, manifest: Manifest) -> None:
        content = msgspec.json.encode(manifest)
        try:
            self._fs.pipe_file(f"{folder}/{MARKER}", content, mode="create")
        except FileExistsError:
            log.info("another process completed %s first", folder)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise ArtifactStoreFailed(
                f"{what}; {free_bytes(self._cache):,} bytes are free on this machine's disk: "
                f"{type(error).__name__}: {error}"
            ) from error


def _split(url: str) -> tuple[str, str]:
    """Scheme, and path from the bucket on, without slashes around it."""
    parts = urlsplit(url)
    return parts.scheme, unquote(f"{parts.netloc}{parts.path}").strip("/")


def _compare(listed: Mapping[str, int], manifest: Manifest, uri: str) -> None:
    """Names and sizes. Raises ArtifactRejected naming the first that is wrong."""
    rest = {path: size for path, size in listed.items() if path not in {MARKER, SIGNATURE}}
    for file in manifest:
        if rest.pop(file.path, None) != file.size:
            raise ArtifactRejected(f"{uri}/{file.path} is missing or has changed")
    if rest:
        raise ArtifactRejected(f"{uri} holds a file that was not published: {min(rest)}")


def _move(staging: Path, target: Path) -> None:
    """Put a checked copy in place of a bad one or none."""
    staging.chmod(0o755)
    shutil.rmtree(target, ignore_errors=True)
    try:
        staging.rename(target)
    except OSError:
        # Another process has fetched and checked the same content meanwhile.
        if not target.is_dir():
            raise
    sync(target.parent)
