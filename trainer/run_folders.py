"""One folder a training run, by model: its report and what TensorBoard reads.

Folders are named by their time, so that the newest sort last.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from infra.files import whole_file
from trainer.report import REPORT

STAMP = "%Y%m%dT%H%M%S.%fZ"
SHOWN = "shown.json"
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


def note_shown(folder: Path, request_ids: Iterable[str]) -> None:
    """Remember whose prompts a run's report shows."""
    with whole_file(folder / SHOWN) as stream:
        stream.write(json.dumps(sorted(request_ids)).encode())


def forget(root: Path, model: str, request_ids: AbstractSet[str]) -> list[Path]:
    """Remove the reports of a model's runs that show one of these; returns what is gone.

    Curves and numbers stay in TensorBoard's files, and in the report that the version has.
    """
    gone: list[Path] = []
    if not request_ids:
        return gone
    for folder in runs_of(root, model):
        shown = folder / SHOWN
        if shown.is_file() and not request_ids.isdisjoint(json.loads(shown.read_bytes())):
            report = folder / REPORT
            report.unlink(missing_ok=True)
            shown.unlink()
            gone.append(report)
    return gone


def _below(root: Path, model: str) -> Path:
    # No model may be named out of the root.
    return root / quote(model, safe="").replace(".", "%2E")
