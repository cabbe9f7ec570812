"""Where model versions' files are kept, and the check they pass before anyone loads them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from infra.contracts.errors import FeedloomError
from infra.contracts.events import ArtifactFile, ModelVersionPublished
from infra.files import sha256_of, sync

HUB_SCHEME = "hf"
DIGEST_LENGTH = 16
RUNS_CODE = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".py", ".so"})
"""Pickles, and what Python or the loader would run."""


class ArtifactRejected(FeedloomError):
    """An artifact is not what its manifest says, and must not be loaded."""


class ArtifactStore:
    """Versions as folders ``root/MODEL/VERSION-DIGEST``, written once.

    The digest is of the content: a writer that dies before it publishes a version leaves a folder
    that is in nobody's way, and two writers of one version never meet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def put(
        self, directory: Path, *, model: str, version: str
    ) -> tuple[str, tuple[ArtifactFile, ...]]:
        """Copy a folder in, all or nothing. Returns its URI and manifest.

        Putting the same content again returns the same. Raises ArtifactRejected for a name that is
        none, a file that can run code, a folder that changes meanwhile, and a kept copy that has
        been tampered with.
        """
        for name in (model, version):
            # One folder a name: else "a/b" and "1" would share a place with "a" and "b/1".
            if not name or name.startswith(".") or not {"/", "\\", "\0"}.isdisjoint(name):
                raise ArtifactRejected(f"{model}/{version} is not a name for an artifact")
        manifest = manifest_of(directory)
        _refuse_code(manifest)
        target = self._root / model / f"{version}-{digest_of(manifest)[:DIGEST_LENGTH]}"
        if target.exists():
            return self._kept(target, manifest)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))
        try:
            for file in manifest:
                copy = staging / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / file.path, copy)
                sync(copy)
            if manifest_of(staging) != manifest:
                raise ArtifactRejected(f"{directory} changed while it was copied")
            staging.chmod(0o755)
            try:
                staging.rename(target)
            except OSError:
                if not target.exists():
                    raise
                # Another process put this version first.
                self._kept(target, manifest)
            sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target.as_uri(), manifest

    @staticmethod
    def _kept(
        target: Path, manifest: tuple[ArtifactFile, ...]
    ) -> tuple[str, tuple[ArtifactFile, ...]]:
        if manifest_of(target) != manifest:
            raise ArtifactRejected(f"{target} has been changed since it was written: remove it")
        return target.as_uri(), manifest

    def resolve(self, published: ModelVersionPublished) -> str:
        """The local folder of a version, every file checked; a hub id for ``hf://`` URIs.

        Raises:
            ArtifactRejected: a file is missing, changed, extra, a link, outside the folder or of a
                kind that can run code; the message names it.
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
        _refuse_code(published.manifest)
        found = {file.path: file for file in manifest_of(folder)}
        for file in published.manifest:
            if found.pop(file.path, None) != file:
                raise ArtifactRejected(f"{folder / file.path} is missing or has changed")
        if found:
            raise ArtifactRejected(f"{folder} holds a file that was not published: {min(found)}")
        return str(folder)


def _refuse_code(manifest: Sequence[ArtifactFile]) -> None:
    """Weights come as safetensors, which hold nothing but numbers."""
    for file in manifest:
        if Path(file.path).suffix in RUNS_CODE:
            raise ArtifactRejected(
                f"{file.path} could run code when it is loaded: save the weights as safetensors"
            )


def digest_of(manifest: Sequence[ArtifactFile]) -> str:
    """SHA-256 of a manifest, hex: one name for the whole content."""
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()


def manifest_of(directory: Path) -> tuple[ArtifactFile, ...]:
    """Every file below ``directory``, by path. Raises ArtifactRejected on a link or no folder."""
    if not directory.is_dir():
        raise ArtifactRejected(f"{directory} is not a folder")
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise ArtifactRejected(f"{path} is a link")
        if path.is_file():
            files.append(
                ArtifactFile(
                    path=path.relative_to(directory).as_posix(),
                    size=path.stat().st_size,
                    sha256=sha256_of(path),
                )
            )
    return tuple(files)
