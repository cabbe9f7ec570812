"""What a version's files must be: listed, whole, unchanged and unable to run code. Knows no store.

The signature lies among the files but is not one of them: it covers them, and comes after them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import msgspec

from infra.contracts.events.model import ArtifactFile
from infra.files import sha256_of
from infra.registry.errors import ArtifactRejected

SIGNATURE = "model.sig"
"""A Sigstore bundle, as model-signing writes it, at the top of a version's folder."""
MARKER = ".complete"
"""Written last into a remote folder: without it an upload is half-written."""
RUNS_CODE = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".py", ".so"})
"""Pickles, and what Python or the loader would run."""

Manifest = tuple[ArtifactFile, ...]


def refuse_strays(manifest: Sequence[ArtifactFile]) -> None:
    """Raise ArtifactRejected for a path that leaves the folder or takes a name of the store's."""
    for file in manifest:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts or str(path) != file.path:
            raise ArtifactRejected(f"{file.path} is missing or has changed: it lies outside")
        if file.path in {MARKER, SIGNATURE}:
            raise ArtifactRejected(f"{file.path} is a name that the artifact store keeps to itself")


def refuse_code(manifest: Sequence[ArtifactFile]) -> None:
    """Weights come as safetensors, which hold nothing but numbers."""
    for file in manifest:
        if Path(file.path).suffix in RUNS_CODE:
            raise ArtifactRejected(
                f"{file.path} could run code when it is loaded: save the weights as safetensors"
            )


def digest_of(manifest: Sequence[ArtifactFile]) -> str:
    """SHA-256 of a manifest, hex: one name for the whole content."""
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()


def bytes_of(manifest: Sequence[ArtifactFile]) -> int:
    """Bytes that the files take."""
    return sum(file.size for file in manifest)


def manifest_of(directory: Path) -> Manifest:
    """Every file below ``directory`` but the signature, by path.

    Raises ArtifactRejected on a link or no folder.
    """
    if not directory.is_dir():
        raise ArtifactRejected(f"{directory} is not a folder")
    files = []
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise ArtifactRejected(f"{path} is a link")
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != SIGNATURE:
            files.append(ArtifactFile(path=name, size=path.stat().st_size, sha256=sha256_of(path)))
    return tuple(files)


def check(folder: Path, manifest: Sequence[ArtifactFile], *, where: str) -> None:
    """Compare a local folder with what was published. Raises ArtifactRejected naming the file.

    ``where`` is what the message calls the folder.
    """
    found = {file.path: file for file in manifest_of(folder)}
    for file in manifest:
        if found.pop(file.path, None) != file:
            raise ArtifactRejected(f"{where}/{file.path} is missing or has changed")
    if found:
        raise ArtifactRejected(f"{where} holds a file that was not published: {min(found)}")
