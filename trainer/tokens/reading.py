"""Token shards read through memory maps, and the order that blocks train in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, overload

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.packing import IGNORED, Block
from trainer.tokens.format import (
    FORMAT_VERSION,
    MANIFEST,
    Array,
    DamagedShards,
    ShardFormat,
    TokenManifest,
    UnfinishedShards,
    UnusableShards,
    check_content,
    check_size,
    dtype,
    shard_name,
)

Indices: TypeAlias = npt.NDArray[np.int64]


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
            check_size(directory, shard, self.manifest.format)
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
            check_content(self._directory, shard, self.manifest.format)

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
    named = names == [shard_name(index) for index in range(len(names))]
    if not named or manifest.tokens != manifest.blocks * manifest.format.size:
        raise DamagedShards(f"{path} contradicts itself. Write the shards again")
    return manifest


def _open(path: Path, blocks: int, form: ShardFormat) -> tuple[Array, Array]:
    """Tokens and position ids, [blocks, size] each, on one map."""
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    middle = blocks * form.size * dtype(form.tokens).itemsize
    return (
        raw[:middle].view(dtype(form.tokens)).reshape(blocks, form.size),
        raw[middle:].view(dtype(form.positions)).reshape(blocks, form.size),
    )
