"""A child process that takes one command a line and answers each with one line, both JSON.

What the child writes to its standard output otherwise goes to its log.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from benchmarks.harness import Broken
from benchmarks.processes import freeze, thaw
from benchmarks.stage import ROOT, Stage
from infra.tether import tethered

Handle = Callable[[Mapping[str, Any]], Awaitable[Any]]
READY = "ready"


class Served:
    """The caller's side. Start it in the main thread; :meth:`ask` blocks."""

    def __init__(
        self, stage: Stage, name: str, module: str, *arguments: str, ready_timeout_s: float = 240.0
    ) -> None:
        self._stage = stage
        self._name = name
        self._log = stage.home / "logs" / f"{name}.log"
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                tethered([sys.executable, "-m", module, *arguments]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd=ROOT,
            )
        stage.watch_over(self._process.pid)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"{name}-answers", daemon=True).start()
        try:
            assert self._next(ready_timeout_s) == READY
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Also of its process group."""
        return self._process.pid

    def ask(self, timeout_s: float, **command: Any) -> Any:
        """One command; thawed for it if need be. Raises Broken."""
        assert self._process.stdin is not None
        thaw(self.pid)
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._next(timeout_s)
        if isinstance(answer, dict) and "error" in answer:
            raise Broken(f"{self._name}: {answer['error']}")
        return answer

    def freeze(self) -> None:
        """No CPU until the next :meth:`ask`."""
        freeze(self.pid)

    def kill(self) -> None:
        """As ``kill -9``, the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, 9)
        self._process.wait()
        self._stage.released(self.pid)

    def close(self) -> None:
        """End it: by the end of its input, then by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        thaw(self.pid)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self.kill()
        self._process.stdout.close()

    def log_tail(self) -> str:
        """The end of what it wrote."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-15:])

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put("")

    def _next(self, timeout_s: float) -> Any:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise Broken(f"{self._name} did not answer in {timeout_s:.0f} s") from None
        if not line:
            raise Broken(f"{self._name} ended:\n{self.log_tail()}")
        return json.loads(line)


async def serve(handle: Handle) -> None:
    """The child's side: answer commands until the input ends. Call :func:`keep_stdout` first."""
    _say(READY)
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            _say(await handle(json.loads(line)))
        except Exception as error:  # noqa: BLE001 - the caller decides what it means
            _say({"error": f"{type(error).__name__}: {error}"})


_OUT: list[Any] = []


def keep_stdout() -> None:
    """Keep standard output for answers; whatever else is printed goes to standard error."""
    _OUT.append(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)


def _say(answer: Any) -> None:
    _OUT[0].write(json.dumps(answer) + "\n")
    _OUT[0].flush()
