"""Copies, and text of evaluation sets, over all parts: datatrove's MinHash and n-gram blocks.

Exact copies go first, by hash; the earliest stays. Near copies are found by MinHash with locality
sensitive hashing (datatrove's parameters: 5-grams, 14 buckets of 8 hashes, about 0.72 of the
n-grams in common); one of each cluster stays. Memory: 16 bytes and Python's overhead a distinct
document; signatures lie on disk.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.logging import logger
from datatrove.utils.text import ngrams, simplify_text

from trainer.pile import PileRow
from trainer.preparation.steps import WORDS

logger.disable("datatrove")  # it tells every step to standard error

DIGEST_BYTES = 16
CONFIG = MinhashConfig()


def digest(text: str) -> bytes:
    """Tells texts apart but for white space at the ends."""
    return hashlib.blake2b(text.strip().encode(), digest_size=DIGEST_BYTES).digest()


def exact_copies(parts: Iterable[bytes]) -> list[set[int]]:
    """For the digests of each part, in a row: which documents were seen before."""
    seen: set[bytes] = set()
    copies: list[set[int]] = []
    for digests in parts:
        found = set()
        for index in range(len(digests) // DIGEST_BYTES):
            one = digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
            if one in seen:
                found.add(index)
            seen.add(one)
        copies.append(found)
    return copies


def sign(rows: Iterable[PileRow], folder: Path, part: int) -> None:
    """Write the signatures of one part's documents. Parts may be signed side by side."""
    MinhashDedupSignature(str(folder), CONFIG, language=WORDS).run(
        (Document(text=row.text, id="") for row in rows), rank=part
    )


def near_copies(signatures: Path, scratch: Path, parts: int) -> list[set[int]]:
    """For each part: which of the signed documents go, as another of their cluster stays."""
    pairs, removed = scratch / "pairs", scratch / "removed"
    for bucket in range(CONFIG.num_buckets):
        MinhashDedupBuckets(str(signatures), str(pairs), config=CONFIG).run(
            rank=bucket, world_size=CONFIG.num_buckets
        )
    with redirect_stderr(io.StringIO()):  # it draws a bar of its own
        MinhashDedupCluster(str(pairs), str(removed), config=CONFIG).run()
    found = []
    for part in range(parts):
        file = removed / f"{part:06d}.remove"
        data = file.read_bytes() if file.is_file() else b""
        found.append({index for (index,) in struct.iter_unpack("<I", data)})
    return found


class Contamination:
    """Which documents hold a run of words of an evaluation set (datatrove: 12 words)."""

    def __init__(self, folder: Path, sets: dict[str, Sequence[str]]) -> None:
        config = NGramsDecontConfig()
        self._filter = NGramsDecontFilter(str(folder), config, language=WORDS)
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in sets.items():
            hashes = sorted({one for text in texts for one in self._hashes(text, config)})
            np.array(hashes, dtype=np.uint64).tofile(folder / f"{name}.index.hashes")

    def _hashes(self, text: str, config: Any) -> Iterator[int]:
        words = WORDS.word_tokenize(simplify_text(text, config.norm_config))
        for run in ngrams(words, config.n_grams):
            yield self._filter.hash_func(" ".join(run))

    def judge(self, document: Document) -> str | None:
        """The name of a set it has text of."""
        kept = self._filter.filter(document)
        return None if kept is True else str(document.metadata["contaminated_task"])
