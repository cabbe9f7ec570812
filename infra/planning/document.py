"""Keeps the outputs in docs/scaling.md true: ``python -m infra.planning.document`` writes them.

An output stands in a fenced block whose first lines are ``$ feedloom plan ...``, the lines that go
on ending with a backslash.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

DOCUMENT = Path("docs/scaling.md")
_BLOCK = re.compile(
    r"^```console\n(\$ feedloom plan(?:[^\n]*\\\n)*[^\n]*\n)(.*?)^```$", re.M | re.S
)

Run = Callable[[Sequence[str]], str]
"""Takes the words after ``feedloom plan``; returns what it prints."""


def commands(text: str) -> list[list[str]]:
    """The words after ``feedloom plan`` of each block."""
    return [_words(shown) for shown, _ in _BLOCK.findall(text)]


def rewritten(text: str, run: Run) -> str:
    """The document with every output as it is now."""
    return _BLOCK.sub(lambda found: f"```console\n{found[1]}{run(_words(found[1]))}```", text)


def _words(shown: str) -> list[str]:
    return shlex.split(shown.removeprefix("$ ").replace("\\\n", " "))[2:]


def main() -> None:
    """Write it anew, from the project's root."""
    from click.testing import CliRunner

    from infra.planning.commands import plan

    def run(words: Sequence[str]) -> str:
        return CliRunner().invoke(plan, list(words), catch_exceptions=False).output

    DOCUMENT.write_text(rewritten(DOCUMENT.read_text("utf-8"), run), "utf-8")


if __name__ == "__main__":
    main()
