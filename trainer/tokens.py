"""Token shards: packed blocks on disk, read through memory maps, and the order they train in.

A shard is raw little-endian arrays: tokens [blocks, size], then position ids [blocks, size]. The
blocks are those of ``packing.fill``. Knows nothing of where documents come from, or of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, overload

import msgspec
import numpy as np
import numpy.typing as npt

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.files import STAGING, sha256_of, sync, whole_file
from trainer.packing import IGNORED, Block
from trainer.tokenizer import encode_all

SUFFIX = ".tokens"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
FORMAT_VERSION = 1
SHARD_BLOCKS = 8192
BATCH_CHARACTERS = 2**20
BATCH_DOCUMENTS = 4096

Array: TypeAlias = npt.NDArray[Any]
Indices: TypeAlias = npt.NDArray[np.int64]
Width: TypeAlias = Literal["uint16", "uint32"]
Natural: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class UnusableShards(FeedloomError):
    """A folder's token shards cannot be read; the message says what to do."""


class UnfinishedShards(UnusableShards):
    """There is no manifest: writing has not ended. Write with the same documents to go on."""


class DamagedShards(UnusableShards):
    """A file is missing, cut short or changed. Remove the folder and write the shards again."""


class DocumentsChanged(FeedloomError):
    """The documents are not those that a folder was begun with. Write into another folder."""


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
        return blocks * self.size * (_dtype(self.tokens).itemsize + _dtype(self.positions).itemsize)


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


class TokenShards(Sequence[Block]):
    """The blocks of a folder, in the order they were written.

    Opening checks that every file is there and as long as it should be. A copy in another process
    opens the folder anew.

    Raises:
        UnfinishedShards: there is no manifest.
        DamagedShards: a shard is missing or cut short, or the manifest cannot be read.
        UnusableShards: the format is of another version.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.manifest = _load_manifest(directory)
        for shard in self.manifest.shards:
            _check_size(directory, shard, self.manifest.format)
        self._maps = [
            _open(directory / shard.name, shard.blocks, self.manifest.format)
            for shard in self.manifest.shards
        ]
        self._ends = np.cumsum([shard.blocks for shard in self.manifest.shards], dtype=np.int64)

    def __reduce__(self) -> tuple[type[TokenShards], tuple[Path]]:
        return TokenShards, (self._directory,)

    def __len__(self) -> int:
        return self.manifest.blocks

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return self._blocks(range(*index.indices(len(self))))
        (block,) = self._blocks([range(len(self))[index]])
        return block

    def batch(self, indices: Sequence[int] | Indices) -> tuple[Indices, Indices, Indices]:
        """Tokens, labels and position ids of blocks: int64, each [n, size].

        A label is its own token, or ``IGNORED`` where a piece begins. Raises IndexError outside
        0 to ``len(self) - 1``.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"blocks {wanted.min()} to {wanted.max()} of {len(self)}")
        tokens = np.empty((wanted.size, self.manifest.format.size), dtype=np.int64)
        positions = np.empty_like(tokens)
        places = np.searchsorted(self._ends, wanted, side="right")
        for place in np.unique(places):
            chosen = places == place
            rows = wanted[chosen] - (self._ends[place] - self.manifest.shards[place].blocks)
            tokens[chosen], positions[chosen] = (column[rows] for column in self._maps[place])
        return tokens, np.where(positions == 0, IGNORED, tokens), positions

    def verify(self) -> None:
        """Read every shard. Raises DamagedShards for the first whose SHA-256 is another."""
        for shard in self.manifest.shards:
            _check_content(self._directory, shard, self.manifest.format)

    def _blocks(self, indices: Sequence[int]) -> list[Block]:
        columns = (column.tolist() for column in self.batch(indices))
        return [
            Block(tokens=tuple(tokens), labels=tuple(labels), positions=tuple(positions))
            for tokens, labels, positions in zip(*columns, strict=True)
        ]


def epoch_order(count: int, *, seed: int, epoch: int) -> Indices:
    """A permutation of 0 to ``count - 1``: int64 [count], the same on every machine.

    Sorts raw PCG64 output, which NumPy keeps stable between releases, as it does not
    ``Generator.permutation`` (NEP 19).
    """
    bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64, copy=False)


class BlockSampler:
    """Which blocks each rank trains on at each step. Any step can be asked for, in any order.

    A step takes ``world_size * batch_size`` blocks of the epoch's order, the ranks' shares side by
    side; what is left of an epoch after its last whole step is passed over.
    """

    def __init__(
        self, count: int, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"batches of {batch_size} for rank {rank} of {world_size}")
        if count < batch_size * world_size:
            raise ValueError(
                f"{count} blocks do not fill one step of {world_size} times {batch_size}"
            )
        self._count = count
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._step_blocks = batch_size * world_size
        self._cached: tuple[int, Indices] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Whole steps before the order changes."""
        return self._count // self._step_blocks

    def batch(self, step: int) -> Indices:
        """Block indices of this rank at a step from 0 on: int64 [batch_size]."""
        if step < 0:
            raise ValueError(f"step {step}: steps count from 0")
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self._step_blocks + self._rank * self._batch_size
        return self._order(epoch)[start : start + self._batch_size].copy()

    def _order(self, epoch: int) -> Indices:
        cached = self._cached
        if cached is None or cached[0] != epoch:
            cached = (epoch, epoch_order(self._count, seed=self._seed, epoch=epoch))
            self._cached = cached
        return cached[1]


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
        rest = np.asarray(ids, dtype=_dtype(self._format.tokens))
        while rest.size:
            rest = self._packer.take(rest)
            if self._packer.full:
                self._save_shard()
                self._save_progress(rest)

    def _save_shard(self) -> None:
        name = _name(len(self._shards))
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
        self._tokens = np.zeros((form.shard_blocks, form.size), dtype=_dtype(form.tokens))
        # Where a document begins, its column; else 0, where every row begins a piece anyway.
        self._begins = np.zeros_like(self._tokens, dtype=_dtype(form.positions))
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


def _dtype(width: Width) -> np.dtype[Any]:
    return np.dtype(width).newbyteorder("<")


def _name(index: int) -> str:
    return f"{index:05d}{SUFFIX}"


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
            if shard.name != _name(index):
                return nothing
            _check_content(directory, shard, form)
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


def _load_manifest(directory: Path) -> TokenManifest:
    path = directory / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UnfinishedShards(
            f"{path} is not there: token shards were not written, or not to the end. Write them "
            "with the same documents, which goes on where it stopped"
        ) from error
    try:
        manifest = msgspec.json.decode(data, type=TokenManifest)
    except msgspec.DecodeError as error:
        raise DamagedShards(f"{path} is no manifest: {error}. Write the shards again") from error
    if manifest.format.version != FORMAT_VERSION:
        raise UnusableShards(
            f"{path} is of format {manifest.format.version} and {FORMAT_VERSION} is read here. "
            "Write the shards again"
        )
    names = [shard.name for shard in manifest.shards]
    named = names == [_name(index) for index in range(len(names))]
    if not named or manifest.tokens != manifest.blocks * manifest.format.size:
        raise DamagedShards(f"{path} contradicts itself. Write the shards again")
    return manifest


def _check_size(directory: Path, shard: TokenShard, form: ShardFormat) -> None:
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


def _check_content(directory: Path, shard: TokenShard, form: ShardFormat) -> None:
    _check_size(directory, shard, form)
    path = directory / shard.name
    found = sha256_of(path)
    if found != shard.sha256:
        raise DamagedShards(
            f"{path} has been changed: its SHA-256 is {found} instead of {shard.sha256}. Write the "
            "shards again"
        )


def _open(path: Path, blocks: int, form: ShardFormat) -> tuple[Array, Array]:
    """Tokens and position ids, [blocks, size] each, on one map."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    middle = blocks * form.size * _dtype(form.tokens).itemsize
    return (
        raw[:middle].view(_dtype(form.tokens)).reshape(blocks, form.size),
        raw[middle:].view(_dtype(form.positions)).reshape(blocks, form.size),
    )
