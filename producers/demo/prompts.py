"""The demo's prompts: documentation questions kept with the code, and openings of real documents.

The openings were cut from held-back documents when the default model was built; each comes with
the words that truly follow. ``feedback`` and ``heldout`` openings come from different documents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from infra.contracts.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class DemoPrompt:
    """One prompt; ``continuation`` is ``None`` when no truth is known."""

    prompt: str
    continuation: str | None


def questions() -> list[DemoPrompt]:
    """Documentation questions, phrased as openings, since the model completes text."""
    lines = files("producers.demo").joinpath("questions.txt").read_text("utf-8").splitlines()
    return [DemoPrompt(prompt=line, continuation=None) for line in lines if line.strip()]


def openings(path: Path, split: str, limit: int) -> list[DemoPrompt]:
    """The first ``limit`` openings of a split.

    Raises:
        ConfigurationError: the file is missing or has fewer.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing: run `feedloom models bootstrap --force`")
    rows = (json.loads(line) for line in path.read_bytes().splitlines())
    chosen = [
        DemoPrompt(prompt=row["prompt"], continuation=row["continuation"])
        for row in rows
        if row["split"] == split
    ][:limit]
    if len(chosen) < limit:
        raise ConfigurationError(f"{path} has {len(chosen)} {split} prompts, {limit} are needed")
    return chosen
