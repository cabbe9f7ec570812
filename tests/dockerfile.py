"""Reads a Dockerfile and its .dockerignore as far as the tests of the images need it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction, its continuation lines joined."""

    word: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What follows one FROM. ``base`` is an image, another stage's name or ``${ARGUMENT}``."""

    name: str
    base: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, kw_only=True)
class Dockerfile:
    """Arguments before the first FROM by name, and the stages by name, in order."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def lineage(self, name: str) -> Iterator[Stage]:
        """The stages that the named one is made of, the first made first."""
        stage = self.stages[name]
        if stage.base in self.stages:
            yield from self.lineage(stage.base)
        yield stage

    def instructions(self, name: str, word: str) -> list[str]:
        """Values of one kind of instruction in force for the named stage, the last one last."""
        return [
            each.value
            for stage in self.lineage(name)
            for each in stage.instructions
            if each.word == word
        ]

    def environment(self, name: str) -> dict[str, str]:
        """What ENV sets."""
        found: dict[str, str] = {}
        for value in self.instructions(name, "ENV"):
            found |= dict(word.split("=", 1) for word in shlex.split(value))
        return found


def parse(text: str) -> Dockerfile:
    """Raises ValueError for a FROM without a name."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [
        Instruction(word=word.upper(), value=value.strip())
        for word, _, value in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]
    starts = [index for index, each in enumerate(found) if each.word == "FROM"]
    stages = {}
    for start, end in zip(starts, [*starts[1:], len(found)], strict=True):
        match = re.fullmatch(r"(\S+) AS (\S+)", found[start].value)
        if match is None:
            raise ValueError(f"FROM {found[start].value}: give the stage a name")
        stages[match[2]] = Stage(
            name=match[2], base=match[1], instructions=tuple(found[start + 1 : end])
        )
    arguments = dict(each.value.split("=", 1) for each in found[: starts[0]] if each.word == "ARG")
    return Dockerfile(arguments=arguments, stages=stages)


def exec_form(value: str) -> list[str]:
    """The words of ``CMD ["...", "..."]``. Raises ValueError for a line that a shell would read."""
    words = json.loads(value)
    if not isinstance(words, list):
        raise ValueError(f"{value} is not in exec form")
    return [str(word) for word in words]


def copied(stage: Stage) -> Iterator[str]:
    """What a stage copies from the folder that is built from."""
    for each in stage.instructions:
        if each.word == "COPY" and not each.value.startswith("--from="):
            yield from shlex.split(each.value)[:-1]


def sent(path: str, patterns: Sequence[str]) -> bool:
    """Whether a build sees a file: the last pattern that matches it, or a folder of it, decides."""
    answer = True
    for pattern in patterns:
        kept = pattern.startswith("!")
        if any(_matches(part, pattern.removeprefix("!")) for part in _with_parents(path)):
            answer = kept
    return answer


def _with_parents(path: str) -> list[str]:
    return [str(one) for one in (Path(path), *Path(path).parents) if str(one) != "."]


def _matches(path: str, pattern: str) -> bool:
    expression = "".join(
        {"**/": "(?:.*/)?", "/**": "/.*", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part)
        or re.escape(part)
        for part in re.split(r"(\*\*/|/\*\*|\*\*|\*|\?)", pattern)
    )
    return re.fullmatch(expression, path) is not None
