"""Prose out of technical text: paragraphs that read as English, without markup or code. Pure.

A docstring or README mixes sentences with tables, signatures and examples. A small model that is
trained for minutes learns to write sentences only if it sees little else.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import unicodedata
from collections.abc import Iterator

MINIMUM_WORDS = 6
MAXIMUM_CHARACTERS = 2_000
MINIMUM_LETTERS = 0.75
MAXIMUM_CODE_WORDS = 0.12

_DIRECTIVE = re.compile(r"^\s*\.\.(\s|$)")
_RULE = re.compile(r"^\s*([-=~^*#+_`\"'])\1{2,}\s*$")
_BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")
_HEADING = re.compile(r"^#{1,6}\s+")
_FIELD = re.compile(r"^\s*:[a-z]+[^:]*:|^\s*@[a-z]+\b")
_ARGUMENT = re.compile(r"^[`*]{0,2}[\w.*, ]+[`*]{0,2}\s*(\([^)]*\)\s*)?:\s")
_SECTION = re.compile(
    r"^(args|arguments|parameters?|params|returns?|yields?|raises?|attributes?|keyword args|"
    r"keyword arguments|other parameters|examples?|see also|references?|methods|shapes?|inputs?|"
    r"outputs?|usage|warns?)\s*:{0,2}\s*$",
    re.IGNORECASE,
)
_MARKUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL), ""),
    (re.compile(r"!\[[^\]]*\]\([^)]*\)"), ""),
    (re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    (re.compile(r"\[([^\]]+)\]\[[^\]]*\]"), r"\1"),
    (re.compile(r":[\w:+.-]+:`~?(?:[\w.]*\.)?([^`<]+?)\s*(?:<[^`]*>)?`"), r"\1"),
    (re.compile(r"`([^`<]+?)\s*<[^`]*>`_{1,2}"), r"\1"),
    (re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}"), r"\1"),
    (re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    (re.compile(r"\|(\w+)\|"), r"\1"),
    (re.compile(r"\[\d+\]_?"), ""),
)
_STRAIGHT = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00a0": " ",
    }
)
_CODE_WORD = re.compile(r"[_=<>{}\[\]|\\@#$%~^]|[a-z][A-Z]|\(\w|\w\(|\w\.\w|^-|/\w+/|::")
_SENTENCE_END = re.compile(r"[.!?][\"')]?$")
_UNWANTED = re.compile(
    r"https?://|www\.|copyright|all rights reserved|\blicen[cs]e|warranty|>>>|\bTODO\b|\bFIXME\b|"
    r"\bTODO:|%s|\{\}|\bdeprecated\b|\\[a-z]+\{",
    re.IGNORECASE,
)
_SPACES = re.compile(r"\s+")


def paragraphs(text: str) -> Iterator[str]:
    """The prose paragraphs of a docstring, README or manual page, each as one clean line."""
    cleaned = inspect.cleandoc(text.translate(_STRAIGHT))
    for block in _blocks(cleaned):
        paragraph = _SPACES.sub(" ", _unmarked(" ".join(block))).strip()
        paragraph = re.sub(r"\s+([.,;:])", r"\1", paragraph)
        if is_prose(paragraph):
            yield paragraph


def is_prose(paragraph: str) -> bool:
    """Whether one line reads as English sentences: whole, mostly letters, hardly any code."""
    if not (paragraph[:1].isupper() and _SENTENCE_END.search(paragraph)):
        return False
    if len(paragraph) > MAXIMUM_CHARACTERS or _UNWANTED.search(paragraph):
        return False
    if not paragraph.isascii():
        return False
    words = paragraph.split()
    if len(words) < MINIMUM_WORDS:
        return False
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    if letters < MINIMUM_LETTERS * len(paragraph):
        return False
    code = sum(_CODE_WORD.search(word) is not None for word in words)
    shouted = sum(len(word) > 4 and word.isupper() for word in words)
    return code + shouted <= MAXIMUM_CODE_WORDS * len(words)


def _unmarked(text: str) -> str:
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines that may be a paragraph: unindented, no list of arguments, no table."""
    block: list[str] = []
    fenced = False
    skipping_below: int | None = None
    for line in [*text.splitlines(), ""]:
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if stripped.startswith(("```", "~~~")):
            fenced = not fenced
            stripped = ""
        elif fenced:
            continue
        # What hangs below a directive, a field or an argument belongs to it.
        if skipping_below is not None and stripped and indent > skipping_below:
            continue
        skipping_below = None if stripped else skipping_below
        if _DIRECTIVE.match(line) or _FIELD.match(line):
            skipping_below, stripped = indent, ""
        if _RULE.match(line):
            block, stripped = [], ""  # the line above was a heading
        if _SECTION.match(stripped):
            skipping_below, stripped = indent, ""
        starts_item = _BULLET.match(line) is not None
        heading = _HEADING.match(stripped) is not None
        if block and (not stripped or starts_item or heading):
            yield block
            block = []
        if not stripped or heading or ">>>" in stripped or stripped.startswith(("|", "$ ", "%")):
            continue
        if not block and _ARGUMENT.match(stripped) and not starts_item and indent > 0:
            skipping_below = indent
            continue
        if not block and indent > 0 and not starts_item:
            continue  # an indented block is code or a quotation
        block.append(_BULLET.sub("", stripped))


def normalised(text: str) -> str:
    """Lower-case letters and digits only, for comparing texts."""
    folded = unicodedata.normalize("NFKC", text).lower()
    return _SPACES.sub(" ", re.sub(r"[^a-z0-9]+", " ", folded)).strip()


def shingles(text: str, size: int = 8) -> set[int]:
    """Hashes of every run of ``size`` normalised words; of the whole text when it is shorter."""
    words = normalised(text).split()
    runs = max(1, len(words) - size + 1)
    return {_hash(" ".join(words[i : i + size])) for i in range(runs)}


def _hash(text: str) -> int:
    # Not hash(): it is salted in each process, and the corpus must be the same in all.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
