"""A real single-node Kafka broker (KRaft, no ZooKeeper, no Docker) as a child process.

``home/kafka`` holds ``lib`` (jars), ``data``, ``logs``, ``server.properties`` and ``state.json``.
For development and tests only: one node, replication factor 1, loopback. No authentication, unless
that was asked for when the home's broker was first started: then clients log in by SCRAM, may do
only what ACLs allow them, and ``credentials`` holds the passwords (``infra.kafka.credentials``).
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import socket
import subprocess
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from infra.contracts.errors import ConfigurationError, FatalError
from infra.kafka.connection import client_options
from infra.kafka.credentials import ADMIN, Credentials, server_security
from infra.kafka.jars import fetch_jars, locked_jars
from infra.kafka.java import find_java
from infra.settings import KafkaSettings
from infra.tether import tethered

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_MS = 5_000
POLL_S = 0.1
SMALL_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Compile quickly rather than well, collect in one thread.

The optimizing compiler takes a third of a core in a broker's first minutes, which on two cores the
engine misses: 3,160 against 3,705 tokens/s at 64 streams, TTFT p95 131 against 68 ms.
"""

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BrokerStatus:
    """A running broker. ``started_at`` is the process's start, in epoch seconds."""

    bootstrap_servers: str
    pid: int
    started_at: float
    secured: bool = False


class EmbeddedBroker:
    """Starts, stops and inspects the one broker of a home. Every method works across processes.

    ``secured``: with logins and ACLs. A home whose broker was secured once stays so until reset.
    """

    def __init__(
        self, home: Path, *, port: int = 0, heap_mb: int = 512, secured: bool = False
    ) -> None:
        self.root = home.resolve() / "kafka"
        self.credentials = Credentials(home)
        self._port = port
        self._heap_mb = heap_mb
        self._asked_secured = secured
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The broker's own log."""
        return self.root / "logs" / "broker.log"

    def status(self) -> BrokerStatus | None:
        """The running broker, or ``None``. A process id used again by another is not mistaken."""
        if not self._state.is_file():
            return None
        status = BrokerStatus(**json.loads(self._state.read_text()))
        return status if _process_of(status) is not None else None

    def start(
        self,
        progress: Progress | None = None,
        *,
        attached: bool = False,
        jar_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> BrokerStatus:
        """Start it, unless it runs; returns once it answers.

        ``attached`` ties the broker's life to the calling thread's; otherwise it outlives the
        caller.

        Raises:
            ConfigurationError: no Java, no jars, the port is taken, or the broker is to be secured
                and its data was made without that.
            FatalError: the broker ended or did not answer; quotes the end of its log.
        """
        say = progress or (lambda line: None)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked():
            running = self.status()
            if running is not None:
                self._check_secured(running.secured)
                return running
            if self._formatted:
                self._check_secured(self._secured)
            java = find_java()
            jars = locked_jars()
            fetched = fetch_jars(self.root / "lib", jars, progress=jar_progress)
            if fetched:
                say(f"Kafka: {fetched} jars from Maven Central")
            port = self._choose_port()
            if self._asked_secured:
                self.credentials.create(ADMIN)
            self._write_configuration(port, _free_port())
            command = [
                str(java.path),
                f"-Xmx{self._heap_mb}m",
                "-XX:+ExitOnOutOfMemoryError",
                *SMALL_JVM,
                "-Djava.awt.headless=true",
                f"-Dlog4j2.configurationFile={self.root / 'log4j2.properties'}",
                "-cp",
                # The pinned jars by name: others in a shared folder stay out.
                ":".join(str(self.root / "lib" / jar.filename) for jar in jars),
            ]
            self._format(command)
            status = self._launch(command, port, attached=attached)
            self._state.write_text(json.dumps(asdict(status)))
            self._wait_until_ready(status)
            return status

    def stop(self) -> bool:
        """Stop it and wait for its end; ``False`` if it did not run."""
        if not self.root.is_dir():
            return False
        with self._locked():
            return self._stop()

    def reset(self) -> None:
        """Delete topics, records and logs; the jars stay. Stops the broker first."""
        if not self.root.is_dir():
            return
        with self._locked():
            self._stop()
            for name in ("data", "logs", "credentials"):
                shutil.rmtree(self.root / name, ignore_errors=True)
            for name in ("server.properties", "log4j2.properties", "port"):
                (self.root / name).unlink(missing_ok=True)

    def logs(self, lines: int = 50) -> list[str]:
        """The last lines of the broker's log."""
        if not self.log.is_file():
            return []
        with self.log.open(encoding="utf-8", errors="replace") as stream:
            return [line.rstrip("\n") for line in deque(stream, maxlen=lines)]

    def settings(self, status: BrokerStatus, user: str = ADMIN) -> KafkaSettings:
        """How to connect to it; where it is secured, as ``user``."""
        settings = KafkaSettings(bootstrap_servers=status.bootstrap_servers)
        return self.credentials.log_in(settings, user) if status.secured else settings

    @property
    def _secured(self) -> bool:
        return self.credentials.path(ADMIN).is_file()

    @property
    def _formatted(self) -> bool:
        return (self.root / "data" / "meta.properties").is_file()

    def _check_secured(self, secured: bool) -> None:
        if self._asked_secured and not secured:
            raise ConfigurationError(
                f"the embedded broker of {self.root.parent} has its data from a time without "
                "logins: run `feedloom kafka reset`, which deletes every record, and start again"
            )

    @property
    def _state(self) -> Path:
        return self.root / "state.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time in a home, across processes."""
        with (self.root / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _stop(self) -> bool:
        status = self.status()
        process = _process_of(status) if status is not None else None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
        self._state.unlink(missing_ok=True)
        return process is not None

    def _choose_port(self) -> int:
        """The port asked for; else the one used last time, if free; else any free one."""
        kept = self.root / "port"
        if self._port:
            if not _is_free(self._port):
                raise ConfigurationError(
                    f"port {self._port} is taken by another program: set "
                    "FEEDLOOM_KAFKA__LOCAL_PORT to a free one, or to 0 to let one be chosen"
                )
            port = self._port
        else:
            last = int(kept.read_text()) if kept.is_file() else 0
            port = last if last and _is_free(last) else _free_port()
        kept.write_text(str(port))
        return port

    def _write_configuration(self, port: int, controller_port: int) -> None:
        (self.root / "logs").mkdir(exist_ok=True)
        protocol = "SASL_PLAINTEXT" if self._secured else "PLAINTEXT"
        text = f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={protocol}://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name={protocol}
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:{protocol}
log.dirs={self.root / "data"}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
"""
        if self._secured:
            text += server_security(self.credentials.create(ADMIN))
        configuration = self.root / "server.properties"
        configuration.unlink(missing_ok=True)
        # It holds the super user's password.
        configuration.touch(0o600)
        configuration.write_text(text)
        (self.root / "log4j2.properties").write_text(
            f"""\
status=warn
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={self.log}
appender.file.filePattern={self.log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %-5p %m (%c{{1}})%n
appender.file.policies.type=SizeBasedTriggeringPolicy
appender.file.policies.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
"""
        )

    def _format(self, command: list[str]) -> None:
        """Give the data folder a cluster id, once."""
        if self._formatted:
            return
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # StorageTool reads a leading dash as an option.
        cluster = cluster.replace("-", "f", 1) if cluster.startswith("-") else cluster
        arguments = ["format", "-t", cluster, "-c", str(self.root / "server.properties")]
        if self._secured:
            # What StorageTool writes there is as good as the password.
            (self.root / "data").mkdir(mode=0o700, exist_ok=True)
            password = self.credentials.create(ADMIN)
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                arguments += ["-S", f"{mechanism}=[name={ADMIN},password={password}]"]
        # From a file: everybody on the machine can read a command line.
        with NamedTemporaryFile("w", dir=self.root, prefix=".format-") as stream:
            stream.write("\n".join(arguments) + "\n")
            stream.flush()
            finished = subprocess.run(
                [*command, "kafka.tools.StorageTool", f"@{stream.name}"],
                capture_output=True,
                text=True,
                check=False,
            )
        if finished.returncode != 0:
            raise FatalError(f"cannot format {self.root / 'data'}:\n{finished.stderr[-2000:]}")

    def _launch(self, command: list[str], port: int, *, attached: bool) -> BrokerStatus:
        full = [*command, "kafka.Kafka", str(self.root / "server.properties")]
        with (self.root / "logs" / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                tethered(full) if attached else full,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                # Out of reach of the terminal's Ctrl-C: its starter stops it in order.
                start_new_session=True,
                cwd=self.root if not attached else None,
            )
        pid = self._process.pid
        return BrokerStatus(
            bootstrap_servers=f"127.0.0.1:{port}",
            pid=pid,
            started_at=psutil.Process(pid).create_time(),
            secured=self._secured,
        )

    def _wait_until_ready(self, status: BrokerStatus) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        settings = self.settings(status)
        while not _answers(settings):
            if self._process.poll() is not None:
                self._state.unlink(missing_ok=True)
                raise FatalError(f"Kafka ended while starting:\n{self._log_end()}")
            if time.monotonic() > deadline:
                self._stop()
                raise FatalError(
                    f"Kafka did not answer within {START_TIMEOUT_S:.0f} s:\n{self._log_end()}"
                )
            time.sleep(POLL_S)

    def _log_end(self) -> str:
        console = (self.root / "logs" / "console.log").read_text("utf-8", "replace")
        return "\n".join([*console.splitlines()[-10:], *self.logs(20)])


def _answers(settings: KafkaSettings) -> bool:
    """Whether the broker takes part in its cluster: it lists itself in its metadata."""
    host, port = str(settings.bootstrap_servers).rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    options = client_options(settings)
    options |= {"bootstrap_timeout_ms": ANSWER_TIMEOUT_MS, "request_timeout_ms": ANSWER_TIMEOUT_MS}
    try:
        admin = KafkaAdminClient(**options)
    except KafkaError:
        return False
    try:
        return bool(admin.describe_cluster()["brokers"])
    except KafkaError:
        return False
    finally:
        admin.close()


def _process_of(status: BrokerStatus) -> psutil.Process | None:
    """The broker's process, if that very process still runs."""
    try:
        process = psutil.Process(status.pid)
        same = abs(process.create_time() - status.started_at) < 1.0
        alive = process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same and alive else None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
