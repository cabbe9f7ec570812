"""A shell in which the documented commands run, and what they print is held against the page.

``feedloom`` and ``python`` are the real ones, started by forking a process that has imported what
most commands need: a hundred commands then take a hundred times a tenth of a second.
"""

from __future__ import annotations

import atexit
import getpass
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

WIDTH = 200
"""Of the terminal that rich believes in."""
PRELOADED = (
    "infra.cli",
    "infra.identity.commands",
    "infra.kafka.bus",
    "infra.kafka.commands",
    "infra.kafka.dead_letters",
    "infra.local.doctor",
    "infra.recovery.commands",
    "infra.recovery.taking",
    "infra.registry.config",
    "infra.registry.lineage",
    "infra.rollouts.commands",
    "infra.terminal.commands",
    "openai",
    "openai.resources.chat",
    "producers.client",
    "producers.feedback_commands",
    "rich.progress",
    "trainer.commands",
)
END = re.compile(r"^@@(\d+)@@$")


def serve(path: str) -> None:
    """Run what clients ask for, each in a fork of this process, until it is killed."""
    for name in PRELOADED:
        __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _attend(connection)
            connection.close()


def _attend(connection: socket.socket) -> None:
    """Run one command, and tell its exit status."""
    size, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    message = b""
    while part := connection.recv(65536):
        message += part
        if len(message) == int.from_bytes(size, "big"):
            break
    program, arguments, folder, environment = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os._exit(_status(program, arguments))
    _, status = os.waitpid(child, 0)
    with suppress(BrokenPipeError):
        connection.send(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
    os._exit(0)


def _status(program: str, arguments: list[str]) -> int:
    """What an interpreter does: main, then threads, exit handlers and buffers."""
    status = 0
    try:
        if program == "feedloom":
            from infra.cli import main

            sys.argv = ["feedloom", *arguments]
            main()
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 # an interpreter's last word, whatever it was
        import traceback

        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


CLIENT = """\
import json, os, socket, sys
path, *words = sys.argv[1:]
message = json.dumps([words[0], words[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as server:
    server.connect(path)
    socket.send_fds(server, [len(message).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(message)
    sys.exit((server.recv(1) or b"\\xff")[0])
"""


class Programs:
    """``feedloom`` and ``python``, in a folder for ``PATH``; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        address, client = folder / "run.sock", folder / "client.py"
        client.write_text(CLIENT)
        for program in ("feedloom", "python"):
            script = self.folder / program
            script.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" -SE "{client}" "{address}" {program} "$@"\n'
            )
            script.chmod(0o755)
        self._server = subprocess.Popen([sys.executable, "-m", "tests.docs_shell", str(address)])
        while not address.exists() and self._server.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(0.05)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()


class Shell:
    """One bash: what a command sets, the next one has. A context manager."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={**os.environ, "COLUMNS": str(WIDTH), "TERM": "dumb", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[int, list[str]]:
        """Its exit status, and what it printed, errors among it."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '\\n@@%d@@\\n' $?\n")
        self._bash.stdin.flush()
        printed: list[str] = []
        for line in self._bash.stdout:
            if end := END.match(line):
                return int(end[1]), printed
            printed.append(line.rstrip("\n"))
        raise AssertionError(f"the shell ended in {command!r}:\n" + "\n".join(printed))

    def close(self) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait()
        self._bash.stdout.close()


NAMES = re.compile(
    r"fl_\w{12}|go-\d{10,}"
    r"|\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b|\b[0-9a-f]{32}\b"
)
"""What is made up anew each time and named again later."""
CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| UTC)?"), "TIME"),
    (re.compile(r"\b127\.0\.0\.1:\d{2,5}\b"), "ADDRESS"),
    (re.compile(r"\bpid \d+"), "PID"),
    (re.compile(r"\b[\d.,]+ (µs|ms|s|min|GB|MB|kB|GiB)\b"), "MEASURE"),
)


def shape(line: str) -> str:
    """A line without what changes from run to run: moments, ids, ports, durations, columns."""
    line = NAMES.sub("NAME", line)
    for pattern, word in CHANGING:
        line = pattern.sub(word, line)
    return re.sub(r"\s+", " ", line.replace("root", getpass.getuser())).strip()


def compare(shown: Sequence[str], printed: Sequence[str], names: dict[str, str]) -> str | None:
    """The first shown line that was not printed, in this order; ``None``: all were.

    ``...`` stands for anything. What a shown name is called here is noted in ``names``.
    """
    rest = iter(printed)
    for line in shown:
        if not line.strip() or line.strip() == "...":
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in shape(line).split("...")))
        for found in rest:
            if pattern.fullmatch(shape(found)):
                names.update(zip(NAMES.findall(line), NAMES.findall(found), strict=False))
                break
        else:
            return line
    return None


if __name__ == "__main__":
    serve(sys.argv[1])
