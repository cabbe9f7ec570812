"""Signatures over a version's files, with an elliptic-curve key and model-signing.

A signature says that the owner of the key signed these files under these paths, all of them. It
does not say which model or version they are: the registry's event does.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from infra.contracts.errors import ConfigurationError
from infra.contracts.events.model import ArtifactFile
from infra.registry.errors import ArtifactRejected
from infra.registry.manifest import SIGNATURE

if TYPE_CHECKING:
    from model_signing import hashing

PUBLIC_KEY_SETTING = "FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY"
SIGNING_KEY_SETTING = "FEEDLOOM_ARTIFACT_STORE__SIGNING_KEY"
T = TypeVar("T")


class Signer:
    """Signs folders. Raises ConfigurationError for a key that cannot be used."""

    def __init__(self, private_key: Path) -> None:
        from model_signing import signing

        self._config = _with_key(
            SIGNING_KEY_SETTING,
            private_key,
            lambda: signing.Config().use_elliptic_key_signer(private_key=private_key),
        )

    def sign(self, folder: Path, signature: Path) -> None:
        """Write a signature of every file in ``folder`` to the path ``signature``."""
        self._config.set_hashing_config(_every_file()).sign(folder, signature)


class Verifier:
    """Checks folders' signatures. Raises ConfigurationError for a key that cannot be used."""

    def __init__(self, public_key: Path) -> None:
        from model_signing import verifying

        self._public_key = public_key
        self._config = _with_key(
            PUBLIC_KEY_SETTING,
            public_key,
            lambda: verifying.Config().use_elliptic_key_verifier(public_key=public_key),
        )

    def verify(self, folder: Path, manifest: Sequence[ArtifactFile], *, where: str) -> None:
        """Check that the key's owner signed exactly these files; ``where`` names them in errors.

        Raises ArtifactRejected.
        """
        from cryptography.exceptions import InvalidSignature

        signature = folder / SIGNATURE
        if not signature.is_file():
            raise ArtifactRejected(f"{where} is not signed, and {PUBLIC_KEY_SETTING} asks for it")
        try:
            # A new one each time: what a signature asks to ignore is added to it.
            self._config.set_hashing_config(_every_file()).verify(folder, signature)
            signed = _signed_files(signature)
        # model-signing and the lines above read a stranger's JSON without a schema.
        except (
            AttributeError,
            InvalidSignature,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ArtifactRejected(
                f"the signature {where}/{SIGNATURE} is not one of these files by the key that "
                f"belongs to {self._public_key} ({type(error).__name__}: {error})"
            ) from error
        for file in manifest:
            if signed.pop(file.path, None) != file.sha256:
                raise ArtifactRejected(f"the signature of {where} does not cover {file.path}")


def _with_key(setting: str, path: Path, build: Callable[[], T]) -> T:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return build()
    # AttributeError: a key of another kind, such as RSA. TypeError: one with a password.
    except (AttributeError, OSError, TypeError, UnsupportedAlgorithm, ValueError) as error:
        raise ConfigurationError(
            f"{setting} names {path}, which is not a PEM key without password on the curve P-256, "
            f"P-384 or P-521: {error}"
        ) from error


def _every_file() -> hashing.Config:
    from model_signing import hashing

    # Files of git's names are signed too: they are part of the manifest.
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _signed_files(signature: Path) -> dict[str, str]:
    """SHA-256 by path, out of a signature that was verified.

    A signature may leave files out (``model_signing sign --ignore-paths``), and verifies for all
    that.
    """
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {file["name"]: file["digest"] for file in statement["predicate"]["resources"]}
