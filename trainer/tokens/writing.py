"""Documents into token shards, in steps that a killed run goes on from.

Knows nothing of where documents come from, or of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.files import STAGING, sync, whole_file
from trainer.tokenizer import encode_all
from trainer.tokens.format import (
    MANIFEST,
    SUFFIX,
    Array,
    DamagedShards,
    Natural,
    ShardFormat,
    TokenManifest,
    TokenShard,
    Width,
    check_content,
    dtype,
    shard_name,
)

PROGRESS = "progress.json"
SHARD_BLOCKS = 8192
BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 4096


class DocumentsChanged(FeedloomError):
    """The documents are not those that a folder was begun with. Write into another folder."""


class _Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Where writing stands after a whole shard: ``carried`` is the rest of the last document."""

    format: ShardFormat
    shards: tuple[TokenShard, ...] = ()
    documents: Natural = 0
    documents_sha256: str = ""
    carried: tuple[Natural, ...] = ()


def tokenizer_sha256(tokenizer: Any) -> str:
    """Of the serialised form, without padding and truncation, which are set anew by each call."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    form.update(padding=None, truncation=None)
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def write_token_shards(
    directory: Path,
    documents: Iterable[str],
    tokenizer: Any,
    *,
    size: int,
    shard_blocks: int = SHARD_BLOCKS,
    progress: Callable[[int, int], None] | None = None,
) -> TokenManifest:
    """Tokenise documents into ``00000.tokens``, ..., of ``shard_blocks`` blocks each.

    The end token follows each document. Files appear whole or not at all, the manifest last. A run
    that was killed, or whose documents have grown at the end, goes on from its last full shard, to
    the bytes of one run over all; for another tokenizer, ``size`` or ``shard_blocks`` the folder is
    begun anew. One writer a folder.

    ``progress`` gets the documents and tokens so far, after each batch of documents.

    Raises:
        ValueError: ``size`` is below two or ``shard_blocks`` below one.
        ConfigurationError: the tokenizer has no end token.
        DocumentsChanged: the full shards hold other documents; nothing was touched.
    """
    form = _format_of(tokenizer, size, shard_blocks)
    directory.mkdir(parents=True, exist_ok=True)
    begun = _begun(directory, form)
    writer = _Writer(directory, begun)
    texts = iter(documents)
    writer.skip(texts)
    _clear(directory, {shard.name for shard in begun.shards})
    writer.carry_on()
    for batch in _batches(texts):
        for text, ids in zip(batch, encode_all(tokenizer, batch), strict=True):
            writer.add(text, ids)
        if progress is not None:
            progress(writer.documents, writer.tokens)
    return writer.finish()


class _Writer:
    """Documents in, shards out. ``tokens`` counts those taken so far, ``documents`` likewise."""

    def __init__(self, directory: Path, begun: _Progress) -> None:
        self._directory = directory
        self._begun = begun
        self._format = begun.format
        self._shards = list(begun.shards)
        self._packer = _Packer(begun.format)
        self._digest = hashlib.sha256()
        self._text_bytes = 0
        self.documents = 0

    @property
    def tokens(self) -> int:
        return self._packed + self._packer.filled

    @property
    def _packed(self) -> int:
        return sum(shard.blocks for shard in self._shards) * self._format.size

    def skip(self, texts: Iterator[str]) -> None:
        """Pass over the documents that the full shards hold. Raises DocumentsChanged."""
        for text in islice(texts, self._begun.documents):
            self._count(text)
        seen = (self.documents, self._digest.hexdigest())
        if self._begun.shards and seen != (self._begun.documents, self._begun.documents_sha256):
            raise DocumentsChanged(
                f"{self._directory} was begun with other documents: its shards hold "
                f"{self._begun.documents} that differ from the first ones given now. Give the same "
                "documents to go on, or remove the folder"
            )

    def carry_on(self) -> None:
        """Take the rest of the last document that was passed over."""
        self._pack(self._begun.carried)

    def add(self, text: str, ids: Sequence[int]) -> None:
        self._count(text)
        self._pack([*ids, self._format.end])

    def finish(self) -> TokenManifest:
        dropped = self._packer.filled % self._format.size
        if self._packer.filled >= self._format.size:
            self._save_shard()
        manifest = TokenManifest(
            format=self._format,
            shards=tuple(self._shards),
            documents=self.documents,
            documents_sha256=self._digest.hexdigest(),
            tokens=self._packed,
            dropped=dropped,
            text_bytes=self._text_bytes,
        )
        _save(self._directory / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
        return manifest

    def _count(self, text: str) -> None:
        data = text.encode()
        # The length keeps "ab", "c" apart from "a", "bc".
        self._digest.update(len(data).to_bytes(8, "little") + data)
        self._text_bytes += len(data)
        self.documents += 1

    def _pack(self, ids: Sequence[int]) -> None:
        rest = np.asarray(ids, dtype=dtype(self._format.tokens))
        while rest.size:
            rest = self._packer.take(rest)
            if self._packer.full:
                self._save_shard()
                self._save_progress(rest)

    def _save_shard(self) -> None:
        name = shard_name(len(self._shards))
        tokens, positions = self._packer.cut()
        digest = _save(self._directory / name, tokens.tobytes(), positions.tobytes())
        self._shards.append(TokenShard(name=name, blocks=len(tokens), sha256=digest))

    def _save_progress(self, rest: Array) -> None:
        reached = _Progress(
            format=self._format,
            shards=tuple(self._shards),
            documents=self.documents,
            documents_sha256=self._digest.hexdigest(),
            carried=tuple(rest.tolist()),
        )
        _save(self._directory / PROGRESS, msgspec.json.encode(reached))


class _Packer:
    """``packing.fill`` on arrays, a shard at a time."""

    def __init__(self, form: ShardFormat) -> None:
        self._size = form.size
        self._tokens = np.zeros((form.shard_blocks, form.size), dtype=dtype(form.tokens))
        # Where a document begins, its column; else 0, where every row begins a piece anyway.
        self._begins = np.zeros_like(self._tokens, dtype=dtype(form.positions))
        self.filled = 0

    @property
    def full(self) -> bool:
        return self.filled == self._tokens.size

    def take(self, ids: Array) -> Array:
        """Take a document as far as there is room; returns the rest of it."""
        end = min(self.filled + ids.size, self._tokens.size)
        taken = end - self.filled
        self._tokens.reshape(-1)[self.filled : end] = ids[:taken]
        self._begins.reshape(-1)[self.filled] = self.filled % self._size
        self.filled = end
        return ids[taken:]

    def cut(self) -> tuple[Array, Array]:
        """Tokens and position ids of the whole blocks, [blocks, size] each; begins anew."""
        blocks = self.filled // self._size
        columns = np.arange(self._size, dtype=self._begins.dtype)
        positions = columns - np.maximum.accumulate(self._begins[:blocks], axis=1)
        tokens = self._tokens[:blocks].copy()
        self._begins[:] = 0
        self.filled = 0
        return tokens, positions.astype(self._begins.dtype, copy=False)


def _format_of(tokenizer: Any, size: int, shard_blocks: int) -> ShardFormat:
    if size < 2:
        raise ValueError("a block holds at least two tokens: one to see, one to predict")
    if shard_blocks < 1:
        raise ValueError("a shard holds at least one block")
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "the tokenizer has no end token, which keeps documents apart; set its eos_token"
        )
    return ShardFormat(
        size=size,
        shard_blocks=shard_blocks,
        tokens=_width(len(tokenizer)),
        positions=_width(size),
        vocabulary=len(tokenizer),
        end=tokenizer.eos_token_id,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
    )


def _width(values: int) -> Width:
    return "uint16" if values <= 2**16 else "uint32"


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _begun(directory: Path, form: ShardFormat) -> _Progress:
    """What an earlier run left to go on from; nothing, if it was another or its files are not."""
    nothing = _Progress(format=form)
    try:
        found = msgspec.json.decode((directory / PROGRESS).read_bytes(), type=_Progress)
        if found.format != form:
            return nothing
        for index, shard in enumerate(found.shards):
            if shard.name != shard_name(index):
                return nothing
            check_content(directory, shard, form)
    except (FileNotFoundError, msgspec.DecodeError, DamagedShards):
        return nothing
    return found


def _clear(directory: Path, kept: set[str]) -> None:
    """Leave the shards to go on from. The manifest goes first: it says that all is whole."""
    (directory / MANIFEST).unlink(missing_ok=True)
    sync(directory)
    if not kept:
        (directory / PROGRESS).unlink(missing_ok=True)
    for path in [*directory.glob(f"*{SUFFIX}"), *directory.glob(f".*{STAGING}")]:
        if path.name not in kept:
            path.unlink()


def _save(path: Path, *parts: bytes) -> str:
    """Write a file. Returns its SHA-256."""
    digest = hashlib.sha256()
    with whole_file(path) as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
    return digest.hexdigest()
