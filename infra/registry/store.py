"""Where model versions' files are kept, and the check they pass before anyone loads them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.contracts.errors import FeedloomError
from infra.contracts.events import ArtifactFile, ModelVersionPublished

HUB_SCHEME = "hf"


class ArtifactRejected(FeedloomError):
    """An artifact is not what its manifest says, and must not be loaded."""


class ArtifactStore:
    """Versions as folders ``root/MODEL/VERSION``, written once."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(
        self, directory: Path, *, model: str, version: str
    ) -> tuple[str, tuple[ArtifactFile, ...]]:
        """Copy a folder in, all or nothing. Returns its URI and manifest.

        Putting the same content again returns the same; other content under a name in use raises
        ArtifactRejected.
        """
        target = self._root / model / version
        if self._root not in target.resolve().parents:
            raise ArtifactRejected(f"{model}/{version} is not a name for an artifact")
        manifest = manifest_of(directory)
        if target.exists():
            if manifest_of(target) != manifest:
                raise ArtifactRejected(f"{target} already holds another artifact")
            return target.as_uri(), manifest
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))
        try:
            for file in manifest:
                copy = staging / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / file.path, copy)
            os.chmod(staging, 0o755)
            os.replace(staging, target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return target.as_uri(), manifest

    def resolve(self, published: ModelVersionPublished) -> str:
        """The local folder of a version, every file checked; a hub id for ``hf://`` URIs.

        Raises:
            ArtifactRejected: a file is missing, changed, extra, a link or outside the folder; the
                message names it.
        """
        uri = urlsplit(published.artifact_uri)
        if uri.scheme == HUB_SCHEME:
            if published.manifest:
                raise ArtifactRejected("a hub artifact has no manifest to be checked against")
            return f"{uri.netloc}{uri.path}"
        if uri.scheme != "file":
            raise ArtifactRejected(f"no store reads {uri.scheme or 'bare'} URIs: {uri.geturl()}")
        folder = Path(unquote(uri.path))
        if not published.manifest:
            raise ArtifactRejected(f"{folder} comes without a manifest")
        found = {file.path: file for file in manifest_of(folder)}
        for file in published.manifest:
            if found.pop(file.path, None) != file:
                raise ArtifactRejected(f"{folder / file.path} is missing or has changed")
        if found:
            raise ArtifactRejected(f"{folder} holds a file that was not published: {min(found)}")
        return str(folder)


def manifest_of(directory: Path) -> tuple[ArtifactFile, ...]:
    """Every file below ``directory``, by path. Raises ArtifactRejected on a link or no folder."""
    if not directory.is_dir():
        raise ArtifactRejected(f"{directory} is not a folder")
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise ArtifactRejected(f"{path} is a link")
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files.append(
                ArtifactFile(
                    path=path.relative_to(directory).as_posix(),
                    size=path.stat().st_size,
                    sha256=digest,
                )
            )
    return tuple(files)
