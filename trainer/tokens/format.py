"""What token shards are on disk: the files' form, the manifest, and how damage is noticed.

A shard is raw little-endian arrays: tokens [blocks, size], then position ids [blocks, size]. The
blocks are those of ``packing.fill``. Knows neither documents nor models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from infra.contracts.errors import FeedloomError
from infra.files import sha256_of

SUFFIX = ".tokens"
MANIFEST = "manifest.json"
FORMAT_VERSION = 1

Array: TypeAlias = npt.NDArray[Any]
Width: TypeAlias = Literal["uint16", "uint32"]
Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class UnusableShards(FeedloomError):
    """A folder's token shards cannot be read; the message says what to do."""


class UnfinishedShards(UnusableShards):
    """There is no manifest: writing has not ended. Write with the same documents to go on."""


class DamagedShards(UnusableShards):
    """A file is missing, cut short or changed. Remove the folder and write the shards again."""


class ShardFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the bytes of shards, apart from the documents.

    ``size``: tokens a block. ``vocabulary``: token ids, added ones included. ``end``: the id that
    ends each document.
    """

    size: Annotated[int, msgspec.Meta(ge=2)]
    shard_blocks: Positive
    tokens: Width
    positions: Width
    vocabulary: Positive
    end: Natural
    tokenizer_sha256: str
    version: int = FORMAT_VERSION

    def shard_bytes(self, blocks: int) -> int:
        """Bytes of a shard."""
        return blocks * self.size * (dtype(self.tokens).itemsize + dtype(self.positions).itemsize)


class TokenShard(msgspec.Struct, frozen=True, kw_only=True):
    """One file."""

    name: str
    blocks: Positive
    sha256: str


class TokenManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A complete set of shards.

    ``tokens`` are in the blocks, ``dropped`` in the incomplete block after them; the two count one
    end token a document. ``text_bytes``: UTF-8, of all documents, so bits per byte are
    ``loss / ln 2 * (tokens + dropped) / text_bytes``, for a loss in nats a token.
    """

    format: ShardFormat
    shards: tuple[TokenShard, ...]
    documents: Natural
    documents_sha256: str
    tokens: Natural
    dropped: Natural
    text_bytes: Natural

    @property
    def blocks(self) -> int:
        """Blocks of all shards."""
        return sum(shard.blocks for shard in self.shards)


def dtype(width: Width) -> np.dtype[Any]:
    """Of the arrays in a file, whatever machine reads it."""
    return np.dtype(width).newbyteorder("<")


def shard_name(index: int) -> str:
    """Of a folder's files, from 0 on."""
    return f"{index:05d}{SUFFIX}"


def check_size(directory: Path, shard: TokenShard, form: ShardFormat) -> None:
    """Raises DamagedShards for a file that is missing or not as long as it should be."""
    path = directory / shard.name
    expected = form.shard_bytes(shard.blocks)
    try:
        found = path.stat().st_size
    except FileNotFoundError as error:
        raise DamagedShards(f"{path} is missing. Write the shards again") from error
    if found != expected:
        raise DamagedShards(
            f"{path} has {found} bytes instead of {expected}. Write the shards again"
        )


def check_content(directory: Path, shard: TokenShard, form: ShardFormat) -> None:
    """Reads the whole file. Raises DamagedShards also for one whose SHA-256 is another."""
    check_size(directory, shard, form)
    path = directory / shard.name
    found = sha256_of(path)
    if found != shard.sha256:
        raise DamagedShards(
            f"{path} has been changed: its SHA-256 is {found} instead of {shard.sha256}. Write the "
            "shards again"
        )
