"""Children end with their supervisor: on stop, on error, and when the supervisor is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from infra.contracts import codec
from infra.contracts.events.platform import WorkerStatusReported
from infra.local import platform
from infra.local.supervisor import Child, ChildStopped, Supervisor
from infra.settings import KafkaSettings, Settings
from infra.testing import InMemoryBus
from infra.tether import tethered

FOREVER = [sys.executable, "-c", "import time\nwhile True: time.sleep(1)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\n"
    "while True: time.sleep(1)",
]
WITH_GRANDCHILD = [
    sys.executable,
    "-c",
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(600)",
]


def wait_until_gone(pid: int, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def first_line(log: Path, timeout_s: float = 20.0) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        text = log.read_text() if log.exists() else ""
        if "\n" in text:
            return text.splitlines()[0]
        time.sleep(0.02)
    raise TimeoutError(f"{log} stayed empty")


def test_stop_ends_a_child_and_its_own_children(tmp_path: Path) -> None:
    child = Child("parent", WITH_GRANDCHILD, log=tmp_path / "parent.log", environment={})
    grandchild = int(first_line(child.log))
    assert child.stop(10) == -signal.SIGTERM
    assert wait_until_gone(child.pid)
    assert wait_until_gone(grandchild)


def test_a_child_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    child = Child("stubborn", STUBBORN, log=tmp_path / "stubborn.log", environment={})
    assert first_line(child.log) == "up"
    assert child.stop(0.2) == -signal.SIGKILL


def test_check_quotes_the_end_of_the_log_of_a_child_that_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    child = Child("worker", command, log=tmp_path / "worker.log", environment={})
    child.wait(20)
    with pytest.raises(ChildStopped, match=r"worker ended with status 3(.|\n)*no such model"):
        child.check()


def test_the_log_tail_holds_only_this_run(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    for text in ("first", "second"):
        child = Child("worker", [sys.executable, "-c", f"print('{text}')"], log=log, environment={})
        child.wait(20)
    assert child.log_tail() == "second"
    assert log.read_text() == "first\nsecond\n"


def test_leaving_the_supervisor_by_an_error_stops_its_children(tmp_path: Path) -> None:
    supervisor = Supervisor(logs=tmp_path, environment={}, stop_timeout_s=10)

    def fail_with_a_child_running() -> None:
        with supervisor:
            children.append(supervisor.start("help", ["--help"]))
            raise RuntimeError("boom")

    children: list[Child] = []
    with pytest.raises(RuntimeError, match="boom"):
        fail_with_a_child_running()
    assert children[0].exit_status is not None
    assert supervisor.children == []


def test_a_tethered_command_ends_when_its_starter_is_killed(tmp_path: Path) -> None:
    starter = (
        "import subprocess, sys, time\n"
        "from infra.tether import tethered\n"
        f"child = subprocess.Popen(tethered({FOREVER!r}))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
    assert wait_until_gone(pid)


def test_a_tethered_command_refuses_to_start_without_its_parent() -> None:
    command = tethered(["true"])
    command[command.index(str(os.getpid()))] = "1"
    assert subprocess.run(command, check=False).returncode == (1 if sys.platform == "linux" else 0)


def test_up_starts_every_service_once_the_model_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Recorder(Supervisor):
        def start(self, name: str, arguments: Sequence[str], environment: object = None) -> Child:
            started.append([name, *arguments])
            return super().start(name, ["--help"])

        def check(self) -> None:
            """They only print their help."""

    bus = InMemoryBus()
    monkeypatch.setattr(platform, "Supervisor", Recorder)
    monkeypatch.setattr(platform, "KafkaBus", lambda kafka: bus)
    monkeypatch.setattr(platform, "apply_catalogue", lambda kafka: [])
    monkeypatch.setattr(
        platform.LocalPlatform, "_bootstrap", lambda *_: started.append(["bootstrap"])
    )
    report = WorkerStatusReported(
        worker_id="w", state="ready", versions={"default": "1"}, reported_at_ms=1
    )
    bus.publisher().publish("platform.workers", key=b"w", value=codec.encode(report))
    settings = Settings(home=tmp_path, kafka=KafkaSettings(bootstrap_servers="nowhere:1"))
    with platform.LocalPlatform(settings, lambda line: None, gateway=True):
        assert started == [
            ["worker", "worker"],
            ["bootstrap"],
            ["trainer", "trainer", "run"],
            ["rollouts", "rollouts", "run"],
            ["gateway", "gateway"],
        ]
