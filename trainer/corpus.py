"""Gathers the bootstrap corpus from text already on this machine, and splits it.

Sources, prose first: the language's help topics, descriptions of installed packages, then the
docstrings of the standard library and of every installed package. Sources are parsed, never
imported. Knows nothing of tokens or models; :func:`assemble` and below are pure.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import distributions
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from trainer.pile import PileMeta, PileRow
from trainer.prose import normalised, paragraphs, shingles

Split = Literal["train", "heldout", "demo"]
SPLITS: tuple[Split, ...] = ("train", "heldout", "demo")
HELDOUT_SHARE = 0.03
DEMO_SHARE = 0.13
MINIMUM_CHARACTERS = 120
MAXIMUM_CHARACTERS = 12_000
MAXIMUM_FAMILIARITY = 0.3
MAXIMUM_FILE_BYTES = 1_000_000
SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "vendor"}
    | {"vendored", "__pycache__", "examples", "thirdparty", "third_party"}
)
OWN_DISTRIBUTION = "feedloom"
MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Source:
    """One text before the split. ``group`` is its Pile set name."""

    name: str
    group: str
    paragraphs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A clean document: paragraphs of prose, a blank line between them."""

    text: str
    source: str
    group: str

    @property
    def digest(self) -> str:
        """SHA-256 of the normalised text, in hex."""
        return hashlib.sha256(normalised(self.text).encode()).hexdigest()

    def row(self) -> PileRow:
        """As a line of a shard."""
        return PileRow(text=self.text, meta=PileMeta(pile_set_name=self.group))


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The documents of each split. No run of eight words of the last two is in ``train``."""

    train: list[Document] = field(default_factory=list)
    heldout: list[Document] = field(default_factory=list)
    demo: list[Document] = field(default_factory=list)

    def split(self, name: Split) -> list[Document]:
        """One split by name."""
        return {"train": self.train, "heldout": self.heldout, "demo": self.demo}[name]


def collect(
    limit_mb: float, *, workers: int, progress: Callable[[int, int], None] | None = None
) -> Iterator[Source]:
    """Texts of this machine, best first, until ``limit_mb`` million characters of prose.

    ``progress`` is told files done and files in all. The order depends on names alone.
    """
    characters = 0.0
    yield from _gather(_help_topics())
    yield from _gather(_descriptions())
    files = _python_files()
    done = 0
    # Spawned: the calling process may already run threads, which a fork would copy half-alive.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for source in pool.map(_docstrings, files, chunksize=64):
            done += 1
            if progress is not None and done % 100 == 0:
                progress(done, len(files))
            if source is None:
                continue
            characters += sum(map(len, source.paragraphs))
            yield source
            if characters > limit_mb * MEGABYTE:
                pool.shutdown(cancel_futures=True)
                return


def assemble(sources: Iterable[Source]) -> Corpus:
    """Deduplicate, split by document hash, and keep evaluation text out of training text. Pure.

    A paragraph of which more than 0.3 of the 8-word shingles were seen before is dropped, which
    also removes near copies. What remains of a source is one document, cut at 12,000 characters.
    """
    seen: set[int] = set()
    splits: dict[Split, list[Document]] = {name: [] for name in SPLITS}
    for source in sources:
        kept = []
        for paragraph in source.paragraphs:
            mine = shingles(paragraph)
            if len(mine & seen) <= MAXIMUM_FAMILIARITY * len(mine):
                kept.append(paragraph)
            seen |= mine
        for text in _cut(kept):
            document = Document(text=text, source=source.name, group=source.group)
            splits[split_of(document.digest)].append(document)
    guarded = marks((*splits["heldout"], *splits["demo"]))
    train = [clean for item in splits["train"] if (clean := decontaminate(item, guarded))]
    return Corpus(train=train, heldout=splits["heldout"], demo=splits["demo"])


def split_of(digest: str) -> Split:
    """The split of a document, from its hash alone, so that it never moves between runs."""
    position = int(digest[:8], 16) / 0x1_0000_0000
    if position < HELDOUT_SHARE:
        return "heldout"
    return "demo" if position < HELDOUT_SHARE + DEMO_SHARE else "train"


def decontaminate(document: Document, guarded: set[int]) -> Document | None:
    """The document without paragraphs that share a shingle with ``guarded``; None if too short."""
    kept = [text for text in document.text.split("\n\n") if shingles(text).isdisjoint(guarded)]
    text = "\n\n".join(kept)
    if len(text) < MINIMUM_CHARACTERS:
        return None
    return Document(text=text, source=document.source, group=document.group)


def marks(documents: Iterable[Document]) -> set[int]:
    """Every run of eight words of these documents."""
    return {
        mark
        for document in documents
        for paragraph in document.text.split("\n\n")
        for mark in shingles(paragraph)
    }


def _cut(kept: Sequence[str]) -> Iterator[str]:
    """Paragraphs joined into documents of bounded length; a short remainder is dropped."""
    batch: list[str] = []
    size = 0
    for paragraph in kept:
        if batch and size + len(paragraph) > MAXIMUM_CHARACTERS:
            yield "\n\n".join(batch)
            batch, size = [], 0
        batch.append(paragraph)
        size += len(paragraph) + 2
    if size >= MINIMUM_CHARACTERS:
        yield "\n\n".join(batch)


def _gather(texts: Iterable[tuple[str, str, str]]) -> Iterator[Source]:
    for name, group, text in texts:
        found = tuple(paragraphs(text))
        if found:
            yield Source(name=name, group=group, paragraphs=found)


def _help_topics() -> Iterator[tuple[str, str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topics/{name}", "Python help topics", topics[name]


def _descriptions() -> Iterator[tuple[str, str, str]]:
    found = {item.metadata["Name"]: item for item in distributions()}
    for name in sorted(found):
        metadata = found[name].metadata
        text = metadata.json.get("description")  # the header or, since metadata 2.1, the body
        if isinstance(text, str) and name != OWN_DISTRIBUTION:
            yield f"metadata/{name}", "Package descriptions", text


def _python_files() -> list[tuple[Path, str, str]]:
    """(path, name, group) of each source file: the standard library, then packages by name."""
    paths = sysconfig.get_paths()
    library, packages = Path(paths["stdlib"]), Path(paths["purelib"])
    return [
        *((path, f"stdlib/{name}", "Python docstrings") for path, name in _walk(library)),
        *((path, f"packages/{name}", "Package docstrings") for path, name in _walk(packages)),
    ]


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")
        )
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(".py") and path.stat().st_size <= MAXIMUM_FILE_BYTES:
                yield path, path.relative_to(root).as_posix()


def _docstrings(file: tuple[Path, str, str]) -> Source | None:
    """All docstrings of one file, top to bottom; None where there is no prose or no syntax."""
    import warnings

    path, name, group = file
    data = path.read_bytes()
    if b'"""' not in data and b"'''" not in data:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # stray escapes in others' sources
            warnings.simplefilter("ignore", DeprecationWarning)
            tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError):
        return None  # a template, or written for another Python
    found: dict[str, None] = {}
    for text in _docstrings_below(tree):
        found.update(dict.fromkeys(paragraphs(text)))
    return Source(name=name, group=group, paragraphs=tuple(found)) if found else None


def _docstrings_below(node: ast.Module | ast.ClassDef | ast.AST) -> Iterator[str]:
    """Docstrings of a module, its classes and functions; not of functions within functions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
    if isinstance(node, ast.Module | ast.ClassDef | ast.If | ast.Try):
        for child in node.body:
            yield from _docstrings_below(child)
