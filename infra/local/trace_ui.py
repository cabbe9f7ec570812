"""The local trace UI of ``feedloom up --traces``: Arize Phoenix, in an environment of its own.

Why it and not another, with what it takes: docs/adr/0020. Nothing of it is imported here.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from infra.contracts.errors import ConfigurationError, FatalError
from infra.files import sha256_of

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements" / "traces.txt"
HOST = "127.0.0.1"
PORT = 6006
START_TIMEOUT_S = 240.0
POLL_S = 0.25
RETENTION_DAYS = 7
PROJECT = "feedloom"

Say = Callable[[str], None]


class TraceUi:
    """How the UI is installed, started and addressed under one state directory."""

    def __init__(self, home: Path, *, port: int = PORT, requirements: Path = REQUIREMENTS) -> None:
        self._root = home / "tools" / "traces"
        self._data = home / "traces"
        self._uv = home / "tools" / "bin" / "uv"
        self._requirements = requirements
        self.port = port

    @property
    def url(self) -> str:
        """Of its pages."""
        return f"http://{HOST}:{self.port}"

    @property
    def command(self) -> list[str]:
        """What starts it, once installed."""
        return [str(self._root / "bin" / "phoenix"), "serve"]

    def environment(self) -> dict[str, str]:
        """Of the UI itself: on this machine only, and asking nothing of the internet.

        Its gRPC receiver listens on every interface whatever the host is, on a free port; nothing
        of the platform sends there.
        """
        return {
            "PHOENIX_HOST": HOST,
            "PHOENIX_PORT": str(self.port),
            "PHOENIX_GRPC_PORT": str(_free_port()),
            "PHOENIX_WORKING_DIR": str(self._data),
            "PHOENIX_PROJECT_NAME": PROJECT,
            "PHOENIX_DEFAULT_RETENTION_POLICY_DAYS": str(RETENTION_DAYS),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_ALLOW_EXTERNAL_RESOURCES": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_AGENTS_DISABLE_BASH": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
        }

    def exporters(self, present: Mapping[str, str]) -> dict[str, str]:
        """What makes a process send its spans here, in OpenTelemetry's own variables.

        ``present``: the variables as they are; resource attributes among them are kept.
        """
        attributes = present.get("OTEL_RESOURCE_ATTRIBUTES", "")
        project = f"openinference.project.name={PROJECT}"
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.url}/v1/traces",
            "OTEL_RESOURCE_ATTRIBUTES": ",".join(one for one in (attributes, project) if one),
        }

    def check_port(self) -> None:
        """Raises ConfigurationError if somebody listens there already."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self.port))
            except OSError as error:
                raise ConfigurationError(
                    f"port {self.port}, of the trace UI, is taken ({error.strerror}; TensorBoard's "
                    "is the same by default): name another with --traces-port"
                ) from error

    def install(self, say: Say) -> None:
        """Install what ``requirements/traces.txt`` pins, with its hashes; nothing if it is there.

        Raises ConfigurationError: the file is not there (an installation without the source tree),
        or the packages cannot be fetched.
        """
        if not self._requirements.is_file():
            raise ConfigurationError(
                f"the trace UI is pinned in {self._requirements}, which is not there: run from a "
                "checkout of the project"
            )
        wanted = sha256_of(self._requirements)
        stamp = self._root / "installed"
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        say(f"the trace UI: installing it into {self._root}, once (about 650 MB)")
        self._data.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(self._root)])
        python = str(self._root / "bin" / "python")
        uv = str(self._uv) if self._uv.is_file() else shutil.which("uv")
        installer = (
            [python, "-m", "pip", "install", "--disable-pip-version-check"]
            if uv is None
            else [uv, "pip", "install", "--python", python]
        )
        _run([*installer, "--quiet", "--require-hashes", "-r", str(self._requirements)])
        # Last: an installation that was cut short is made anew.
        stamp.write_text(wanted)

    def wait(self, check: Callable[[], None], *, timeout_s: float = START_TIMEOUT_S) -> float:
        """Until it answers; the seconds that took. ``check`` may raise, as when it has ended.

        Raises FatalError after ``timeout_s``.
        """
        began = time.monotonic()
        while not self._answers():
            check()
            if time.monotonic() - began > timeout_s:
                raise FatalError(f"the trace UI does not answer at {self.url} in {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return time.monotonic() - began

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/healthz", timeout=5) as answer:  # nosec B310 # http, here
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ)
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.decode("utf-8", "replace").splitlines()[-10:])
        raise ConfigurationError(f"the trace UI was not installed; {command[0]} says:\n{tail}")


def _free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
