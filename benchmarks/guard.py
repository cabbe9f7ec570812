"""Cleans up after a benchmark that cannot: killed outright, or crashed.

A process of its own that reads what to clean up from a pipe. The pipe ends with its writer,
whatever ended it; then the process groups that are still noted are killed (also stopped ones,
which no other signal would reach) and the folders removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO


class Guard:
    """The writer's side. Closing it cleans up what is still noted."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.guard"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def note(self, kind: str, what: str | int) -> None:
        """``kind``: ``group`` (a process group's id), ``folder`` (a path) or ``done`` (a group)."""
        stream = self._process.stdin
        assert stream is not None
        with suppress(BrokenPipeError):
            stream.write(f"{kind} {what}\n")
            stream.flush()

    def close(self) -> None:
        """Safe to call twice."""
        stream = self._process.stdin
        assert stream is not None
        if not stream.closed:
            stream.close()
            self._process.wait(60)


def watch(lines: IO[str]) -> None:
    """Take notes until the end, then clean up."""
    groups: set[int] = set()
    folders: list[Path] = []
    for line in lines:
        kind, _, what = line.strip().partition(" ")
        if kind == "group":
            groups.add(int(what))
        elif kind == "done":
            groups.discard(int(what))
        elif kind == "folder":
            folders.append(Path(what))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    # Ctrl-C and the starter's SIGTERM are the starter's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    watch(sys.stdin)
