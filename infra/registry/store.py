"""Where model versions' files are kept, and the check they pass before anyone loads them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra.contracts.events.model import ModelVersionPublished
from infra.files import free_bytes, sync
from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
from infra.registry.manifest import (
    SIGNATURE,
    Manifest,
    bytes_of,
    check,
    digest_of,
    manifest_of,
    refuse_code,
    refuse_strays,
)
from infra.registry.remote import RemoteStore
from infra.registry.signing import PUBLIC_KEY_SETTING, Signer, Verifier
from infra.settings import ArtifactStoreSettings

HUB_SCHEME = "hf"
DIGEST_LENGTH = 16


class ArtifactStore:
    """Versions as folders ``ROOT/MODEL/VERSION-DIGEST``, written once, here or in an object store.

    The digest is of the content: a writer that dies before it publishes a version leaves a folder
    that is in nobody's way, and two writers of one version never meet. With a signing key every
    version is signed; with a public key only versions signed with its pair are resolved.

    Raises ConfigurationError for a key or a URL that cannot be used.
    """

    def __init__(self, where: Path | ArtifactStoreSettings) -> None:
        """``where`` may be just a folder: no keys."""
        if isinstance(where, Path):
            where = ArtifactStoreSettings(url=str(where), cache=where / ".cache")
        self._url = where.url
        self._signer = Signer(where.signing_key) if where.signing_key else None
        self._verifier = Verifier(where.public_key) if where.public_key else None
        self._remote: RemoteStore | None = None
        if "://" in where.url and urlsplit(where.url).scheme != "file":
            self._remote = RemoteStore(
                where.url, cache=where.cache, endpoint_url=where.endpoint_url
            )

    def put(self, directory: Path, *, model: str, version: str) -> tuple[str, Manifest]:
        """Copy a folder in, all or nothing. Returns its URI and manifest.

        Putting the same content again returns the same, signed anew.

        Raises:
            ArtifactRejected: a name that is none, a file that can run code, a folder that changes
                meanwhile, or a kept copy that has been tampered with.
            ArtifactStoreFailed: the disk is full, or the store could not be reached.
        """
        for name in (model, version):
            # One folder a name: else "a/b" and "1" would share a place with "a" and "b/1".
            if not name or name.startswith(".") or not {"/", "\\", "\0"}.isdisjoint(name):
                raise ArtifactRejected(f"{model}/{version} is not a name for an artifact")
        manifest = manifest_of(directory)
        refuse_strays(manifest)
        refuse_code(manifest)
        name = f"{model}/{version}-{digest_of(manifest)[:DIGEST_LENGTH]}"
        if self._remote is not None:
            return self._upload(self._remote, directory, manifest, name), manifest
        target = _local(self._url).resolve() / name
        with _explained(target.parent, directory, manifest):
            self._copy(directory, manifest, target)
        return target.as_uri(), manifest

    def resolve(self, published: ModelVersionPublished) -> str:
        """The local folder of a version, every file checked; a hub id for ``hf://`` URIs.

        A version in an object store is downloaded once, into the cache.

        Raises:
            ArtifactRejected: a file is missing, changed, extra, a link, outside the folder or of a
                kind that can run code, an upload is half-written, or the signature is not the
                configured key's; the message names it.
            ArtifactStoreFailed: the store could not be read, or the cache not written.
        """
        uri = urlsplit(published.artifact_uri)
        if uri.scheme == HUB_SCHEME:
            self._accept_hub(published)
            return f"{uri.netloc}{uri.path}"
        remote = self._remote
        if uri.scheme != "file" and (remote is None or uri.scheme != remote.scheme):
            raise ArtifactRejected(
                f"the store {self._url} reads no {uri.scheme or 'bare'} URIs: {uri.geturl()}"
            )
        manifest = published.manifest
        if not manifest:
            raise ArtifactRejected(f"{published.artifact_uri} comes without a manifest")
        refuse_strays(manifest)
        refuse_code(manifest)
        if remote is None or uri.scheme == "file":
            folder = Path(unquote(uri.path))
            self._accept(folder, manifest, str(folder))
            return str(folder)
        name = published.artifact_uri
        return str(remote.fetch(name, manifest, lambda copy: self._accept(copy, manifest, name)))

    def signature_of(self, folder: str) -> str:
        """What there is to say of the signature of a folder that ``resolve`` gave."""
        if self._verifier is not None:
            return "signature verified"
        if Path(folder, SIGNATURE).is_file():
            return f"signature not verified ({PUBLIC_KEY_SETTING} is not set)"
        return "not signed"

    def _accept_hub(self, published: ModelVersionPublished) -> None:
        if published.manifest:
            raise ArtifactRejected("a hub artifact has no manifest to be checked against")
        if self._verifier is not None:
            raise ArtifactRejected(
                f"{published.artifact_uri} is a hub artifact, which nobody signed, and "
                f"{PUBLIC_KEY_SETTING} asks for a signature"
            )

    def _accept(self, folder: Path, manifest: Manifest, where: str) -> None:
        check(folder, manifest, where=where)
        if self._verifier is not None:
            self._verifier.verify(folder, manifest, where=where)

    def _upload(self, remote: RemoteStore, directory: Path, manifest: Manifest, name: str) -> str:
        if self._signer is None:
            return remote.put(directory, manifest, name)
        with tempfile.TemporaryDirectory(prefix="feedloom-") as folder:
            signature = Path(folder, SIGNATURE)
            self._signer.sign(directory, signature)
            return remote.put(directory, manifest, name, signature=signature)

    def _copy(self, directory: Path, manifest: Manifest, target: Path) -> None:
        if target.exists():
            self._keep(target, manifest)
            return
        with _staging(target) as staging:
            for file in manifest:
                copy = staging / file.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(directory / file.path, copy)
                sync(copy)
            if manifest_of(staging) != manifest:
                raise ArtifactRejected(f"{directory} changed while it was copied")
            if self._signer is not None:
                self._signer.sign(staging, staging / SIGNATURE)
                sync(staging / SIGNATURE)
            staging.chmod(0o755)
            try:
                staging.rename(target)
            except OSError:
                if not target.exists():
                    raise
                # Another process put this version first.
                self._keep(target, manifest)
            sync(target.parent)

    def _keep(self, target: Path, manifest: Manifest) -> None:
        """Check what is there already, and sign it with the key of today."""
        if manifest_of(target) != manifest:
            raise ArtifactRejected(f"{target} has been changed since it was written: remove it")
        if self._signer is None:
            return
        # Not written in place: a reader would find a file that was not published.
        with _staging(target) as staging:
            self._signer.sign(target, staging / SIGNATURE)
            sync(staging / SIGNATURE)
            os.replace(staging / SIGNATURE, target / SIGNATURE)
            sync(target)


def _local(url: str) -> Path:
    return Path(unquote(urlsplit(url).path)) if url.startswith("file://") else Path(url)


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that is gone, or renamed, in the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _explained(store: Path, directory: Path, manifest: Manifest) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactStoreFailed(
            f"{store} could not take {directory}: it needs {bytes_of(manifest):,} bytes, "
            f"{free_bytes(store):,} are free: {error}"
        ) from error
