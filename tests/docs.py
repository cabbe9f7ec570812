"""The commands that README.md and docs/ show, read as a shell would read them.

Knows Markdown's fences, the shell's words and click's options, and nothing of Kafka. What is made
of each command is said in ``tests/docs_table.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest

from infra.cli import cli

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SHELLS = {"bash", "console", "sh", "shell"}
PROGRAMS = {
    *("curl", "docker", "export", "feedloom", "go", "helm", "kafka-configs.sh", "kubectl", "make"),
    "model_signing",
    *("openssl", "pip", "pytest", "python", "sh", "tensorboard", "torchrun", ".venv/bin/python"),
}
"""A fence without a language that begins a line with one of these is a shell's."""

FENCE = re.compile(r"^(\s*)(`{3,})\s*(\w*)[^`]*$")
ALTERNATIVES = re.compile(r"(?<=\s)[\w-]+(?:\|[\w-]+)+")
"""``show|list``: a choice in a synopsis. A pipe has blanks around it."""
PLACEHOLDERS = {"N": "1", "VERSION": "1", "REVISION": "1"}
"""What stands for a number, and must be one for click."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. ``line`` is its first inside the fence."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        if self.language:
            return self.language in SHELLS
        return any(
            line.startswith("$ ") or line.partition(" ")[0] in PROGRAMS
            for line in self.text.splitlines()
        )


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a block; ``output`` is what the page shows below it."""

    page: str
    line: int
    text: str
    output: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, from the root of the repository."""
    found = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
    return [path.relative_to(ROOT).as_posix() for path in found]


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The fenced blocks of a page, also those inside lists."""
    found: list[Block] = []
    opened: tuple[str, str, str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate((ROOT / page).read_text().splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None:
            if fence:
                opened, inside = (fence[1], fence[2], fence[3], number + 1), []
        elif fence and fence[2] >= opened[1] and not fence[3]:
            indent, _, language, start = opened
            text = "\n".join(one.removeprefix(indent) for one in inside)
            found.append(Block(page=page, line=start, language=language, text=text))
            opened = None
        else:
            inside.append(line)
    assert opened is None, f"{page}:{opened and opened[3]}: the fence is never closed"
    return tuple(found)


def commands(page: str) -> list[Command]:
    """The commands of a page's shell blocks, in order."""
    return [command for block in blocks(page) if block.is_shell for command in _commands(block)]


def _commands(block: Block) -> Iterator[Command]:
    """In a block with a prompt the lines without one are output; elsewhere all are commands."""
    session = any(line.startswith("$ ") for line in block.text.splitlines())
    lines = iter(enumerate(block.text.splitlines(), start=block.line))
    text, start, output = "", 0, list[str]()
    for number, line in lines:
        if session and not line.startswith("$ "):
            output.append(line)
            continue
        if text:
            yield Command(page=block.page, line=start, text=text, output=tuple(output))
        text, start, output = line.removeprefix("$ ").strip(), number, []
        while text.endswith("\\"):
            text = text[:-1].rstrip() + " " + next(lines)[1].strip()
        text = without_comment(text)
    if text:
        yield Command(page=block.page, line=start, text=text, output=tuple(output))


def without_comment(text: str) -> str:
    """A command without what follows a ``#`` that no quotes hold."""
    return re.sub(r"""^((?:[^#"']|(?<=\S)#|"[^"]*"|'[^']*')*?)(?:(?:^|\s+)#.*)?$""", r"\1", text)


def spelled_out(text: str) -> list[str]:
    """The commands that a synopsis stands for: each choice, with its options in brackets given."""
    plain = text.replace("[", "").replace("]", "")
    choice = ALTERNATIVES.search(plain)
    if choice is None:
        return [plain]
    head, tail = plain[: choice.start()], plain[choice.end() :]
    return [whole for word in choice[0].split("|") for whole in spelled_out(f"{head}{word}{tail}")]


def simple_commands(text: str) -> list[list[str]]:
    """The words of each command in a pipeline, list or substitution; without redirections."""
    inner = [m[1] for m in re.finditer(r"\$\(([^()]*)\)", text)]
    outer = re.sub(r"\$\([^()]*\)", "SUBSTITUTED", text)
    lexer = shlex.shlex(outer, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if word in ("|", "||", "&&", ";", "&"):
            found.append([])
        elif word in (">", ">>", "<"):
            next(words)
        else:
            found[-1].append(word)
    plain = [without_variables(one) for one in found]
    return [one for one in plain if one] + [one for text in inner for one in simple_commands(text)]


def without_variables(words: list[str]) -> list[str]:
    """A command's words after the assignments before its name."""
    rest = list(words)
    while rest and re.match(r"^[A-Za-z_]\w*=", rest[0]):
        rest.pop(0)
    return rest


def check_feedloom(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have click read the arguments of ``feedloom`` as it would, and run nothing.

    Raises click.UsageError. ``...`` stands for what is left out; a file need not be there.
    """
    # After an option it is a text of the reader's.
    before = ["", *arguments]
    kept = [w for w, b in zip(arguments, before, strict=False) if w != "..." or b.startswith("-")]
    left_out = len(kept) < len(arguments)
    given = [PLACEHOLDERS.get(word, word) for word in kept]
    with monkeypatch.context() as patched:
        patched.setattr(click.Command, "invoke", lambda self, context: None)
        patched.setattr(click.Path, "convert", lambda self, value, parameter, context: value)
        try:
            cli.main(given, prog_name="feedloom", standalone_mode=False)
        except click.MissingParameter:
            if not left_out:
                raise
        except click.exceptions.NoArgsIsHelpError:
            pass


@cache
def make_targets() -> frozenset[str]:
    """The targets of the Makefile that have a fixed name."""
    text = (ROOT / "Makefile").read_text()
    named = re.findall(r"^([\w./-]+)(?: [\w./-]+)*\s*:(?!=)", text, re.MULTILINE)
    variables = dict(re.findall(r"^(\w+) :?= (\S+)$", text, re.MULTILINE))
    made = re.findall(r"^\$\((\w+)\)\s*:(?!=)", text, re.MULTILINE)
    return frozenset({*named, *(variables[name] for name in made)})


def is_test(name: str) -> bool:
    """Whether ``tests/PATH.py::FUNCTION`` is there."""
    path, _, function = name.partition("::")
    file = ROOT / path
    return file.is_file() and bool(
        re.search(rf"^(?:async )?def {re.escape(function)}\(", file.read_text(), re.MULTILINE)
    )
