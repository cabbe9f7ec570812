"""Child processes with log files: started, watched, and stopped to the last descendant.

Each child leads a process group of its own, so Ctrl-C reaches only the supervisor, which then
stops the children in order. SIGTERM goes to the child alone: it drains while its own helpers
(vLLM's engine process) still run. Whatever of the group outlives the child is killed. A supervisor
that is itself killed takes its children along (``infra.tether``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from infra.contracts.errors import FatalError
from infra.tether import tethered


class ChildStopped(FatalError):
    """A child ended that should be running. The message holds the end of its log."""


class Child:
    """One running child. ``log`` receives its standard output and error."""

    def __init__(
        self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = log
        with log.open("ab") as stream:
            self._log_start = stream.tell()
            self._process = subprocess.Popen(
                tethered(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    @property
    def pid(self) -> int:
        """Process id, also of its process group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """``None`` while it runs."""
        return self._process.poll()

    def log_tail(self, lines: int = 15) -> str:
        """The end of what this run of the child wrote."""
        with self.log.open("rb") as stream:
            stream.seek(self._log_start)
            text = stream.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-lines:])

    def check(self) -> None:
        """Raise ChildStopped if the child has ended."""
        status = self.exit_status
        if status is not None:
            raise ChildStopped(
                f"{self.name} ended with status {status}; the end of {self.log}:\n"
                + self.log_tail()
            )

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the child's own end. Raises ``subprocess.TimeoutExpired``."""
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float) -> int:
        """Ask it to drain, wait, then kill what is left of its group. Returns its exit status."""
        if self.exit_status is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """Kill the whole group at once. Safe when nothing of it is left."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Supervisor:
    """Owns children; leaving the context stops them, the last started first."""

    def __init__(
        self, *, logs: Path, environment: Mapping[str, str], stop_timeout_s: float
    ) -> None:
        self._logs = logs
        self._environment = dict(environment)
        self._stop_timeout_s = stop_timeout_s
        self.children: list[Child] = []

    def start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Child:
        """Start ``feedloom ARGUMENTS...`` with the supervisor's environment and ``environment``."""
        return self.run(
            name, feedloom_command(arguments), {**self._environment, **(environment or {})}
        )

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start another program, with nothing of the supervisor's environment."""
        child = Child(name, command, log=self._logs / f"{name}.log", environment=environment)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raise ChildStopped if any child has ended."""
        for child in self.children:
            child.check()

    def stop(self) -> dict[str, int]:
        """Stop every child; exit statuses by name. Safe to call twice."""
        statuses = {}
        while self.children:
            child = self.children.pop()
            statuses[child.name] = child.stop(self._stop_timeout_s)
        return statuses

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def feedloom_command(arguments: Sequence[str]) -> list[str]:
    """The command line of another ``feedloom`` in this same environment."""
    return [sys.executable, "-c", "from infra.cli import main; main()", *arguments]
