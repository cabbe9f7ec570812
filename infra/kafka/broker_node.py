"""One broker of the embedded Kafka: its folder, its configuration and its process.

It knows nothing of the others but their addresses, and nothing of who starts it when
(``infra.kafka.broker``).
"""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil

from infra.contracts.errors import FatalError
from infra.kafka.credentials import ADMIN, server_security
from infra.tether import tethered

STOP_TIMEOUT_S = 30.0
REPLICAS = 3
"""Of every topic, where there are so many brokers; all but one must have a record."""
SMALL_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""Compile quickly rather than well, collect in one thread.

The optimizing compiler takes a third of a core in a broker's first minutes, which on two cores the
engine misses: 3,160 against 3,705 tokens/s at 64 streams, TTFT p95 131 against 68 ms.
"""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where the brokers of one cluster listen. The first has node id 1."""

    cluster_id: str
    ports: tuple[int, ...]
    controller_ports: tuple[int, ...]

    @property
    def numbers(self) -> range:
        """Of the brokers: their node ids."""
        return range(1, len(self.ports) + 1)

    @property
    def bootstrap_servers(self) -> str:
        """Of all, whether they run or not."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """A broker's process. ``started_at``: in epoch seconds."""

    number: int
    port: int
    pid: int
    started_at: float

    @property
    def address(self) -> str:
        """Of this broker alone."""
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> psutil.Process | None:
        """That very process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_at) < 1.0
            alive = process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same and alive else None


def server_properties(
    layout: Layout, number: int, *, data: Path, admin_password: str | None = None
) -> str:
    """What the broker is configured with. ``admin_password``: of the super user, if secured."""
    protocol = "PLAINTEXT" if admin_password is None else "SASL_PLAINTEXT"
    port, controller_port = layout.ports[number - 1], layout.controller_ports[number - 1]
    voters = ",".join(
        f"{one}@127.0.0.1:{layout.controller_ports[one - 1]}" for one in layout.numbers
    )
    replicas = min(REPLICAS, len(layout.ports))
    in_sync = max(1, replicas - 1)
    text = f"""\
process.roles=broker,controller
node.id={number}
controller.quorum.voters={voters}
listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={protocol}://127.0.0.1:{port}
controller.listener.names=CONTROLLER
inter.broker.listener.name={protocol}
listener.security.protocol.map={protocol}:{protocol},CONTROLLER:{protocol}
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
offsets.topic.num.partitions=8
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
group.initial.rebalance.delay.ms=0
"""
    return text if admin_password is None else text + server_security(admin_password)


def log_properties(log: Path) -> str:
    """What log4j is configured with: one file, which does not grow for ever."""
    return f"""\
status=warn
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log}
appender.file.filePattern={log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d %-5p %m (%c{{1}})%n
appender.file.policies.type=SizeBasedTriggeringPolicy
appender.file.policies.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
"""


class BrokerNode:
    """Of a folder, which holds ``data``, ``logs`` and ``server.properties``."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.environment: dict[str, str] = {}
        """What its process gets beside the caller's."""
        self.prefix: tuple[str, ...] = ()
        """A program that runs it, with its arguments, and becomes it."""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """The broker's own log."""
        return self.folder / "logs" / "broker.log"

    @property
    def formatted(self) -> bool:
        """Whether it has data, if only a cluster's id."""
        return (self.folder / "data" / "meta.properties").is_file()

    def logs(self, lines: int) -> list[str]:
        """The last lines of its log."""
        if not self.log.is_file():
            return []
        with self.log.open(encoding="utf-8", errors="replace") as stream:
            return [line.rstrip("\n") for line in deque(stream, maxlen=lines)]

    def log_end(self) -> str:
        """What a message quotes when it did not start."""
        console = (self.folder / "logs" / "console.log").read_text("utf-8", "replace")
        return "\n".join([*console.splitlines()[-10:], *self.logs(20)])

    def configure(self, properties: str) -> None:
        """Write its configuration, for its owner's eyes: it may hold the super user's password."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        configuration = self.folder / "server.properties"
        configuration.unlink(missing_ok=True)
        configuration.touch(0o600)
        configuration.write_text(properties)
        (self.folder / "log4j2.properties").write_text(log_properties(self.log))

    def format(
        self, java: Sequence[str], cluster_id: str, *, admin_password: str | None = None
    ) -> None:
        """Give the data folder the cluster's id, once. Raises FatalError."""
        if self.formatted:
            return
        arguments = ["format", "-t", cluster_id, "-c", str(self.folder / "server.properties")]
        if admin_password is not None:
            # What StorageTool writes there is as good as the password.
            (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                arguments += ["-S", f"{mechanism}=[name={ADMIN},password={admin_password}]"]
        # From a file: everybody on the machine can read a command line.
        with NamedTemporaryFile("w", dir=self.folder, prefix=".format-") as stream:
            stream.write("\n".join(arguments) + "\n")
            stream.flush()
            finished = subprocess.run(
                [*self._logging(java), "kafka.tools.StorageTool", f"@{stream.name}"],
                capture_output=True,
                text=True,
                check=False,
            )
        if finished.returncode != 0:
            raise FatalError(f"cannot format {self.folder / 'data'}:\n{finished.stderr[-2000:]}")

    def launch(self, java: Sequence[str], port: int, *, attached: bool) -> NodeStatus:
        """Start the process. ``attached`` ties its life to the calling thread's."""
        self.reap()
        command = [*self._logging(java), "kafka.Kafka", str(self.folder / "server.properties")]
        full = [*self.prefix, *command]
        with (self.folder / "logs" / "console.log").open("wb") as console:
            self._process = subprocess.Popen(
                tethered(full) if attached else full,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.environment},
                stdout=console,
                stderr=subprocess.STDOUT,
                # Out of reach of the terminal's Ctrl-C: its starter stops it in order.
                start_new_session=True,
                cwd=self.folder if not attached else None,
            )
        pid = self._process.pid
        return NodeStatus(
            number=self.number,
            port=port,
            pid=pid,
            started_at=psutil.Process(pid).create_time(),
        )

    @property
    def ended(self) -> bool:
        """Whether the process that was launched here has ended."""
        return self._process is not None and self._process.poll() is not None

    def reap(self) -> None:
        """Forget the process that was launched here, which has ended or is about to."""
        if self._process is not None:
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def _logging(self, java: Sequence[str]) -> list[str]:
        program, *rest = java
        return [
            program,
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            *rest,
        ]
