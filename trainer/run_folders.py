"""One folder a training run, by model: its report and what TensorBoard reads.

Folders are named by their time, so that the newest sort last.
"""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

STAMP = "%Y%m%dT%H%M%S.%fZ"
NAMED = re.compile(r"\d{8}T\d{6}\.\d{6}Z-.+")
"""What this module has made. Nothing else is ever removed."""


def new_run(root: Path, *, model: str, version: str, now: datetime) -> Path:
    """An empty folder below ``root`` for a run that makes this version."""
    stamp = now.astimezone(UTC).strftime(STAMP)
    folder = _below(root, model) / f"{stamp}-{quote(version, safe='')}"
    folder.mkdir(parents=True)
    return folder


def runs_of(root: Path, model: str) -> list[Path]:
    """A model's run folders, oldest first."""
    parent = _below(root, model)
    if not parent.is_dir():
        return []
    return sorted(path for path in parent.iterdir() if NAMED.fullmatch(path.name) and path.is_dir())


def prune(root: Path, model: str, *, keep: int) -> list[Path]:
    """Remove all but the newest ``keep`` runs of a model (0: none); returns what is gone."""
    gone = runs_of(root, model)[:-keep] if keep else []
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def _below(root: Path, model: str) -> Path:
    # No model may be named out of the root.
    return root / quote(model, safe="").replace(".", "%2E")
