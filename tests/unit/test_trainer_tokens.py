"""Token shards: packing, resuming, damage, and the order of training."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from tests.models import small_llama
from trainer.packing import IGNORED, document, fill
from trainer.tokenizer import load_tokenizer, train_tokenizer
from trainer.tokens import writing
from trainer.tokens.format import (
    MANIFEST,
    DamagedShards,
    TokenManifest,
    UnfinishedShards,
    UnusableShards,
)
from trainer.tokens.reading import TokenShards, epoch_order
from trainer.tokens.writing import (
    PROGRESS,
    DocumentsChanged,
    tokenizer_sha256,
    write_token_shards,
)

END = 0
TEXTS = [f"document {number} " * (number % 5) + "é" for number in range(40)]
DOCUMENTS = st.lists(st.text("abcé", max_size=30), max_size=20)


class Letters:
    """A tokenizer whose ids are code points; keeps what it was given."""

    eos_token_id: int | None = END

    def __init__(self, *, vocabulary: int = 256, form: str = "{}") -> None:
        self._vocabulary = vocabulary
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: form)
        self.seen: list[str] = []

    def __len__(self) -> int:
        return self._vocabulary

    def __call__(self, batch: list[str], **_: object) -> dict[str, list[list[int]]]:
        self.seen += batch
        return {"input_ids": [list(map(ord, text)) for text in batch]}


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


def write(
    directory: Path,
    texts: Sequence[str] = TEXTS,
    tokenizer: Letters | None = None,
    *,
    size: int = 16,
    shard_blocks: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> TokenManifest:
    return write_token_shards(
        directory,
        iter(texts),
        tokenizer or Letters(),
        size=size,
        shard_blocks=shard_blocks,
        progress=progress,
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def expected_blocks(texts: Sequence[str], size: int) -> list[Any]:
    return list(fill((document([*map(ord, text), END]) for text in texts), size))


@pytest.fixture
def small_batches() -> Iterator[None]:
    with mock.patch.object(writing, "BATCH_DOCUMENTS", 3):
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    with mock.patch.object(os, "fsync"):
        yield


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.integers(2, 20), st.integers(1, 5), st.integers(1, 8))
def test_shards_hold_what_filling_gives(
    texts: list[str], size: int, shard_blocks: int, batch: int
) -> None:
    expected = expected_blocks(texts, size)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(writing, "BATCH_DOCUMENTS", batch),
    ):
        manifest = write(Path(folder), texts, size=size, shard_blocks=shard_blocks)
        shards = TokenShards(Path(folder))
        shards.verify()
        assert list(shards) == expected
        assert shards.manifest == manifest
    assert [shard.blocks for shard in manifest.shards[:-1]] == [shard_blocks] * (
        len(manifest.shards) - 1
    )
    assert manifest.documents == len(texts)
    assert manifest.tokens == len(expected) * size
    assert manifest.tokens + manifest.dropped == sum(len(text) + 1 for text in texts)
    assert manifest.dropped < size
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)


def test_a_shard_is_little_endian_tokens_then_positions(tmp_path: Path) -> None:
    manifest = write(tmp_path, ["abc", "d", "ef"], size=4, shard_blocks=9)
    assert (manifest.format.tokens, manifest.format.positions) == ("uint16", "uint16")
    assert (manifest.tokens, manifest.dropped) == (8, 1)
    assert (tmp_path / "00000.tokens").read_bytes() == b"".join(
        value.to_bytes(2, "little")
        for value in [97, 98, 99, 0, 100, 0, 101, 102, 0, 1, 2, 3, 0, 1, 0, 1]
    )


def test_wide_vocabularies_and_long_blocks_take_four_bytes(tmp_path: Path) -> None:
    size = 2**16 + 1
    text = "\U0001f40d" * (size + 7)
    manifest = write(tmp_path, [text], Letters(vocabulary=2**17), size=size)
    assert (manifest.format.tokens, manifest.format.positions) == ("uint32", "uint32")
    assert (tmp_path / "00000.tokens").stat().st_size == size * 8
    ids, _, positions = TokenShards(tmp_path).batch([0])
    assert (ids == 0x1F40D).all()
    assert positions[0, -1] == 2**16


@pytest.mark.usefixtures("small_batches")
def test_a_run_stopped_at_any_file_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    full = sum(shard.blocks == 4 for shard in TokenShards(tmp_path / "whole").manifest.shards)
    assert full >= 5
    replace = os.replace
    for late in (False, True):
        for allowed in itertools.count():
            directory = tmp_path / f"{late}-{allowed}"
            left = iter(range(allowed))

            def dying(source: Path, target: Path, late: bool = late, left: Any = left) -> None:
                stop = next(left, None) is None
                if late or not stop:
                    replace(source, target)
                if stop:
                    raise Killed

            with mock.patch.object(os, "replace", dying):
                try:
                    write(directory)
                    break
                except Killed:
                    pass
            if (directory / MANIFEST).exists():
                assert late
            else:
                with pytest.raises(UnfinishedShards, match="goes on where it stopped"):
                    TokenShards(directory)
            write(directory)
            assert contents(directory) == expected
        # Each full shard, its progress, the last shard and the manifest.
        assert allowed == 2 * full + 2


@settings(max_examples=30, deadline=None)
@given(DOCUMENTS, st.integers(2, 9), st.integers(1, 3), st.lists(st.integers(0, 5), max_size=4))
def test_stopping_again_and_again_changes_nothing(
    texts: list[str], size: int, shard_blocks: int, stops: list[int]
) -> None:
    replace = os.replace
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        write(Path(one), texts, size=size, shard_blocks=shard_blocks)
        for allowed in stops:
            dying = mock.Mock(side_effect=[mock.DEFAULT] * allowed + [Killed], wraps=replace)
            with mock.patch.object(os, "replace", dying):
                try:
                    write(Path(other), texts, size=size, shard_blocks=shard_blocks)
                except Killed:
                    continue
        write(Path(other), texts, size=size, shard_blocks=shard_blocks)
        assert contents(Path(other)) == contents(Path(one))


def die_while_writing(directory: str, syncs: int) -> None:
    """Run in a child: kills itself in the middle of writing a file."""
    left = iter(range(syncs))

    def dying(_: int) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = dying
    write(Path(directory))


def test_a_killed_process_leaves_shards_to_go_on_from(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    # Each save syncs the file and then the folder, and a beginning syncs the folder.
    outcome = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {Path(__file__).stem} as t; t.die_while_writing({str(tmp_path / 'cut')!r}, 9)",
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=Path(__file__).parents[2],
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert outcome.returncode == -signal.SIGKILL, outcome.stderr.decode()
    names = [path.name for path in sorted((tmp_path / "cut").iterdir())]
    assert names[0].startswith(".00002.tokens.")
    assert names[1:] == ["00000.tokens", "00001.tokens", PROGRESS]
    tokenizer = Letters()
    write(tmp_path / "cut", tokenizer=tokenizer)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert 0 < len(tokenizer.seen) < len(TEXTS)
    assert tokenizer.seen == TEXTS[-len(tokenizer.seen) :]


def test_documents_added_at_the_end_extend_the_shards(tmp_path: Path) -> None:
    write(tmp_path / "one", TEXTS[:30])
    tokenizer = Letters()
    write(tmp_path / "one", TEXTS, tokenizer)
    write(tmp_path / "other", TEXTS)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    assert len(tokenizer.seen) < len(TEXTS)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 8},
        {"shard_blocks": 2},
        {"tokenizer": Letters(form='{"merges": []}')},
        {"tokenizer": Letters(vocabulary=257)},
    ],
    ids=["size", "shard_blocks", "merges", "vocabulary"],
)
def test_another_format_begins_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "one")
    write(tmp_path / "one", **change)
    write(tmp_path / "other", **change)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_shards_that_are_no_longer_whole_are_not_gone_on_from(tmp_path: Path) -> None:
    write(tmp_path)
    expected = contents(tmp_path)
    for damage in (flip_a_bit, Path.unlink, lambda path: path.write_bytes(b"")):
        damage(tmp_path / "00001.tokens")
        write(tmp_path)
        assert contents(tmp_path) == expected
    (tmp_path / PROGRESS).write_bytes(b"{")
    write(tmp_path)
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("texts", [["another", *TEXTS[1:]], TEXTS[:3], []], ids=len)
def test_other_documents_are_refused_and_touch_nothing(tmp_path: Path, texts: list[str]) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(DocumentsChanged, match=r"other documents.*or remove the folder"):
        write(tmp_path, texts)
    assert contents(tmp_path) == before


def test_a_stop_from_the_progress_call_can_be_gone_on_from(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def follow(seen: int, taken: int) -> None:
        calls.append((seen, taken))
        if seen > 20:
            raise KeyboardInterrupt

    with mock.patch.object(writing, "BATCH_DOCUMENTS", 7):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, progress=follow)
        write(tmp_path, progress=lambda *now: calls.append(now))
    assert calls[0] == (7, sum(len(text) + 1 for text in TEXTS[:7]))
    assert calls[-1] == (len(TEXTS), sum(len(text) + 1 for text in TEXTS))


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path: Path) -> None:
    endless = Letters()
    endless.eos_token_id = None
    with pytest.raises(ConfigurationError, match="set its eos_token"):
        write(tmp_path / "new", tokenizer=endless)
    with pytest.raises(ValueError, match="two tokens"):
        write(tmp_path / "new", size=1)
    with pytest.raises(ValueError, match="one block"):
        write(tmp_path / "new", shard_blocks=0)
    assert not (tmp_path / "new").exists()


def test_blocks_are_read_singly_in_slices_and_in_batches(tmp_path: Path) -> None:
    write(tmp_path)
    shards = TokenShards(tmp_path)
    expected = expected_blocks(TEXTS, 16)
    assert shards[-1] == expected[-1]
    assert shards[2:9:3] == expected[2:9:3]
    chosen = [9, 0, 9, len(shards) - 1]
    tokens, labels, positions = shards.batch(np.array(chosen))
    assert tokens.shape == labels.shape == positions.shape == (4, 16)
    assert tokens.dtype == labels.dtype == positions.dtype == np.int64
    assert tokens.tolist() == [list(expected[index].tokens) for index in chosen]
    assert labels.tolist() == [list(expected[index].labels) for index in chosen]
    assert positions.tolist() == [list(expected[index].positions) for index in chosen]
    assert shards.batch([])[0].shape == (0, 16)
    for outside in ([len(shards)], [-1]):
        with pytest.raises(IndexError, match=f"of {len(shards)}"):
            shards.batch(outside)
    with pytest.raises(IndexError):
        shards[len(shards)]
    data = pickle.dumps(shards)
    assert len(data) < 1000
    assert pickle.loads(data)[3] == expected[3]


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [(cut_short, r"00001\.tokens has 255 bytes instead of 256"), (Path.unlink, "is missing")],
)
def test_missing_and_short_shards_are_noticed_at_once(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write(tmp_path)
    damage(tmp_path / "00001.tokens")
    with pytest.raises(DamagedShards, match=message):
        TokenShards(tmp_path)


def test_changed_bytes_are_noticed_by_verifying(tmp_path: Path) -> None:
    write(tmp_path)
    flip_a_bit(tmp_path / "00002.tokens")
    shards = TokenShards(tmp_path)
    with pytest.raises(DamagedShards, match=r"00002\.tokens has been changed.*Write the shards"):
        shards.verify()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda manifest: manifest["format"].update(version=2), UnusableShards, "of format 2"),
        (lambda manifest: manifest["format"].update(size=8), DamagedShards, "contradicts itself"),
        (lambda manifest: manifest["format"].update(size=-1), DamagedShards, "no manifest"),
        (lambda manifest: manifest["shards"].pop(), DamagedShards, "contradicts itself"),
        (lambda manifest: manifest["shards"].reverse(), DamagedShards, "contradicts itself"),
        (
            lambda manifest: manifest["shards"][0].update(name="../00000.tokens"),
            DamagedShards,
            "contradicts itself",
        ),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    tmp_path: Path, change: Callable[[Any], None], error: type[Exception], message: str
) -> None:
    write(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    change(manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(error, match=message):
        TokenShards(tmp_path)


def test_a_folder_without_shards_is_unfinished(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(UnfinishedShards, match="is not there"):
            TokenShards(directory)


def test_the_order_is_fixed_and_is_another_each_epoch_and_seed() -> None:
    assert epoch_order(8, seed=1, epoch=0).tolist() == [4, 6, 1, 3, 2, 0, 5, 7]
    orders = [epoch_order(500, seed=seed, epoch=epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    for order in orders:
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(500))
    assert epoch_order(0, seed=1, epoch=0).size == 0


def real_tokenizer() -> Any:
    return train_tokenizer(TEXTS, vocab_size=300, context=64)


def test_a_tokenizer_is_known_by_what_it_does(tmp_path: Path) -> None:
    tokenizer = real_tokenizer()
    digest = tokenizer_sha256(tokenizer)
    tokenizer(["short", "and longer"], padding=True, truncation=True, max_length=4)
    assert tokenizer_sha256(tokenizer) == digest
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    assert tokenizer_sha256(load_tokenizer(tmp_path / "tokenizer")) == digest
    assert tokenizer_sha256(train_tokenizer(TEXTS, vocab_size=280, context=64)) != digest


def test_the_loss_of_packed_blocks_is_that_of_their_pieces(tmp_path: Path) -> None:
    import torch

    tokenizer = real_tokenizer()
    write_token_shards(tmp_path, TEXTS, tokenizer, size=32, shard_blocks=3)
    shards = TokenShards(tmp_path)
    model = small_llama(len(tokenizer), seed=0, initializer_range=0.3).eval()
    tokens, labels, positions = map(torch.from_numpy, shards.batch(range(len(shards))))
    pieces = [
        torch.tensor([piece])
        for block in shards
        for piece in split(block.tokens, block.positions)
        if len(piece) > 1
    ]
    with torch.inference_mode():
        # With a cache, transformers does not look for boundaries in the position ids.
        options = {"labels": labels, "use_cache": False}
        packed = model(input_ids=tokens, position_ids=positions, **options).loss.item()
        crossing = model(input_ids=tokens, **options).loss.item()
        alone = [model(input_ids=piece, labels=piece).loss.item() for piece in pieces]
    counted = [piece.numel() - 1 for piece in pieces]
    assert sum(counted) == (labels != IGNORED).sum()
    expected = sum(loss * count for loss, count in zip(alone, counted, strict=True)) / sum(counted)
    assert packed == pytest.approx(expected, abs=1e-5)
    assert crossing != pytest.approx(expected, abs=1e-2)


def split(tokens: Sequence[int], positions: Sequence[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    for token, position in zip(tokens, positions, strict=True):
        if position == 0:
            pieces.append([])
        pieces[-1].append(token)
    return pieces


def test_a_conversation_is_its_turns_one_after_the_other(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, vocab_size=280, context=64).save_pretrained(tmp_path)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The csv module"},
    ]
    text = load_tokenizer(tmp_path).apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert text == "Be brief.\n\nThe csv module"
