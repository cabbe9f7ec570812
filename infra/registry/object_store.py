"""The object stores that files may lie in, through fsspec: S3-compatible, Google's, memory."""

from __future__ import annotations

from typing import Any

from infra.contracts.errors import ConfigurationError

EXTRAS = {"s3": "s3", "gs": "gcs", "memory": "artifacts"}
"""Scheme of an address to the extra that brings its client."""


def filesystem(scheme: str, *, setting: str, endpoint_url: str | None = None) -> Any:
    """The store of an address that begins so. ``setting``: where the address was given.

    Raises ConfigurationError: there is no such store, or its extra is not installed.
    """
    import fsspec

    if scheme not in EXTRAS:
        raise ConfigurationError(
            f"{setting}: no store has the scheme {scheme!r}; there are a folder's path, file, "
            f"{', '.join(EXTRAS)}"
        )
    options = {"endpoint_url": endpoint_url} if endpoint_url else {}
    try:
        # A cached listing would hide what other writers do.
        return fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except ImportError as error:
        raise ConfigurationError(
            f"{scheme}:// needs an extra that is not installed: "
            f"pip install 'feedloom[{EXTRAS[scheme]}]' ({error})"
        ) from error


def failures(scheme: str) -> tuple[type[Exception], ...]:
    """What a store's library raises when it cannot do as told."""
    if scheme == "s3":
        from botocore.exceptions import BotoCoreError, ClientError

        return OSError, BotoCoreError, ClientError
    if scheme == "gs":
        from aiohttp import ClientError as HttpClientError
        from google.auth.exceptions import GoogleAuthError

        return OSError, HttpClientError, GoogleAuthError
    return (OSError,)
