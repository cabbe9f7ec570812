"""A real Kafka (KRaft, no ZooKeeper, no Docker) of one broker or several, as child processes.

``home/kafka`` holds ``lib`` (jars), a folder a broker, ``layout.json`` (who listens where) and
``state.json`` (what runs). For development and tests only: loopback. With one broker nothing is
replicated; with three, everything is, and one may fail. No authentication, unless that was asked
for when the home's Kafka was first started: then clients log in by SCRAM, may do only what ACLs
allow them, and ``credentials`` holds the passwords (``infra.kafka.credentials``).
"""

from __future__ import annotations

import base64
import fcntl
import json
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from infra.contracts.errors import ConfigurationError, FatalError
from infra.kafka.broker_node import (
    SMALL_JVM,
    STOP_TIMEOUT_S,
    BrokerNode,
    Layout,
    NodeStatus,
    server_properties,
)
from infra.kafka.connection import client_options
from infra.kafka.credentials import ADMIN, Credentials
from infra.kafka.jars import fetch_jars, locked_jars
from infra.kafka.java import find_java
from infra.kafka.topics import await_in_sync
from infra.settings import KafkaSettings

START_TIMEOUT_S = 90.0
ANSWER_TIMEOUT_MS = 5_000
POLL_S = 0.1

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BrokerStatus:
    """A running Kafka. ``bootstrap_servers`` names all its brokers, ``nodes`` those that run."""

    bootstrap_servers: str
    nodes: tuple[NodeStatus, ...]
    secured: bool = False

    @property
    def brokers(self) -> int:
        """How many there are, whether they run or not."""
        return self.bootstrap_servers.count(",") + 1

    @property
    def pids(self) -> tuple[int, ...]:
        """Of those that run."""
        return tuple(node.pid for node in self.nodes)


class EmbeddedKafka:
    """Starts, stops and inspects the Kafka of a home. Every method works across processes.

    ``secured``: with logins and ACLs. ``brokers``: how many; unset: as many as the home has, or
    one. Both hold until reset.
    """

    def __init__(
        self,
        home: Path,
        *,
        port: int = 0,
        heap_mb: int = 512,
        secured: bool = False,
        brokers: int | None = None,
    ) -> None:
        if brokers is not None and brokers % 2 == 0:
            raise ConfigurationError(
                f"{brokers} brokers: take an odd number, as of {brokers} no more may fail than "
                f"of {brokers - 1}"
            )
        self.root = home.resolve() / "kafka"
        self.credentials = Credentials(home)
        self._port = port
        self._heap_mb = heap_mb
        self._asked_secured = secured
        self._asked_brokers = brokers
        self._nodes: dict[int, BrokerNode] = {}

    def status(self) -> BrokerStatus | None:
        """What runs, or ``None``. A process id used again by another is not mistaken."""
        layout, running = self._kept_layout(), self._running()
        if layout is None or not running:
            return None
        return BrokerStatus(
            bootstrap_servers=layout.bootstrap_servers, nodes=running, secured=self._secured
        )

    def start(
        self,
        progress: Progress | None = None,
        *,
        attached: bool = False,
        jar_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> BrokerStatus:
        """Start each broker that does not run; returns once all answer.

        ``attached`` ties the brokers' lives to the calling thread's; otherwise they outlive the
        caller.

        Raises:
            ConfigurationError: no Java, no jars, a port is taken, or logins or a number of brokers
                are asked for that the home's data was not made with.
            FatalError: a broker ended or did not answer; quotes the end of its log.
        """
        say = progress or (lambda line: None)
        self.root.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._check_made()
            running = {node.number: node for node in self._running()}
            layout = self._choose_layout(running)
            missing = [number for number in layout.numbers if number not in running]
            if missing:
                java = self._java(say, jar_progress)
                if self._asked_secured:
                    self.credentials.create(ADMIN)
                password = self.credentials.create(ADMIN) if self._secured else None
                for number in missing:
                    node = self.node(number)
                    text = server_properties(
                        layout, number, data=node.folder / "data", admin_password=password
                    )
                    node.configure(text + self.extra_properties(layout, number))
                    node.format(java, layout.cluster_id, admin_password=password)
                for number in missing:
                    running[number] = self.node(number).launch(
                        java, layout.ports[number - 1], attached=attached
                    )
                    self._save(running.values())
                self._wait_until_ready([running[number] for number in missing])
            status = self.status()
            if status is None:
                raise FatalError(f"Kafka ended as soon as it had started: {self.root}")
            return status

    def stop(self, number: int | None = None) -> bool:
        """Stop all brokers, or the one of this number, and wait; ``False`` if none of them ran."""
        if not self.root.is_dir():
            return False
        with self._locked():
            return self._stop(number)

    def not_running(self) -> str:
        """What to tell who looks for it here: another folder may be meant."""
        return f"Kafka is not running in {self.root}: `feedloom kafka start`"

    def restart(self, progress: Progress | None = None, *, attached: bool = False) -> None:
        """Restart one broker after the other, each once all data is on all again.

        Raises as :meth:`start`; FatalError also where the others do not catch up.
        """
        say = progress or (lambda line: None)
        status = self.status()
        if status is None:
            raise ConfigurationError(self.not_running())
        for number in range(1, status.brokers + 1):
            say(f"broker {number} of {status.brokers}")
            self.stop(number)
            started = self.start(attached=attached)
            await_in_sync(self.settings(started))

    def reset(self) -> None:
        """Delete topics, records and logs; the jars stay. Stops the brokers first."""
        if not self.root.is_dir():
            return
        with self._locked():
            self._stop()
            for folder in (*self.root.glob("broker-*"), self.root / "credentials"):
                shutil.rmtree(folder, ignore_errors=True)
            self._layout_file.unlink(missing_ok=True)

    def node(self, number: int) -> BrokerNode:
        """The broker of this number, from 1."""
        if number not in self._nodes:
            self._nodes[number] = BrokerNode(self.root / f"broker-{number}", number)
        return self._nodes[number]

    def settings(self, status: BrokerStatus, user: str = ADMIN) -> KafkaSettings:
        """How to connect to it; where it is secured, as ``user``."""
        return self._connection(status.bootstrap_servers, user)

    def extra_properties(self, layout: Layout, number: int) -> str:
        """More of a broker's configuration; of a name that is given twice the later holds."""
        return ""

    def _connection(self, servers: str, user: str = ADMIN) -> KafkaSettings:
        settings = KafkaSettings(bootstrap_servers=servers)
        return self.credentials.log_in(settings, user) if self._secured else settings

    @property
    def _secured(self) -> bool:
        return self.credentials.path(ADMIN).is_file()

    def _check_made(self) -> None:
        """That the home's data was made with what is asked for."""
        layout = self._kept_layout()
        if layout is None:
            return
        made, asked = len(layout.ports), self._asked_brokers
        if asked is not None and asked != made:
            raise ConfigurationError(
                f"the Kafka of {self.root.parent} was made with {made} "
                f"{'broker' if made == 1 else 'brokers'}, not {asked}: run `feedloom kafka reset`, "
                "which deletes every record, and start again"
            )
        if self._asked_secured and not self._secured and self.node(1).formatted:
            raise ConfigurationError(
                f"the embedded broker of {self.root.parent} has its data from a time without "
                "logins: run `feedloom kafka reset`, which deletes every record, and start again"
            )

    @property
    def _layout_file(self) -> Path:
        return self.root / "layout.json"

    @property
    def _state_file(self) -> Path:
        return self.root / "state.json"

    def _kept_layout(self) -> Layout | None:
        if not self._layout_file.is_file():
            return None
        kept = json.loads(self._layout_file.read_text())
        return Layout(
            cluster_id=kept["cluster_id"],
            ports=tuple(kept["ports"]),
            controller_ports=tuple(kept["controller_ports"]),
        )

    def _running(self) -> tuple[NodeStatus, ...]:
        if not self._state_file.is_file():
            return ()
        nodes = [NodeStatus(**one) for one in json.loads(self._state_file.read_text())["nodes"]]
        return tuple(node for node in nodes if node.process is not None)

    def _save(self, nodes: Iterable[NodeStatus]) -> None:
        self._state_file.write_text(json.dumps({"nodes": [asdict(node) for node in nodes]}))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time in a home, across processes."""
        with (self.root / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _stop(self, number: int | None = None) -> bool:
        running = self._running()
        chosen = [node for node in running if number in (None, node.number)]
        processes = [process for node in chosen if (process := node.process) is not None]
        for process in processes:
            process.terminate()
        # All at once: the last of several would wait in vain for others to hand its partitions to.
        _, late = psutil.wait_procs(processes, STOP_TIMEOUT_S)
        for process in late:
            process.kill()
        psutil.wait_procs(late, STOP_TIMEOUT_S)
        for node in self._nodes.values():
            if number in (None, node.number):
                node.reap()
        if left := [node for node in running if node not in chosen]:
            self._save(left)
        else:
            self._state_file.unlink(missing_ok=True)
        return bool(processes)

    def _choose_layout(self, running: Collection[int]) -> Layout:
        """Where those that start now listen: as the others know it, else as last time if that is
        free, else anywhere; the port asked for comes first, the brokers' in a row from it.
        """
        kept = self._kept_layout()
        count = len(kept.ports) if kept is not None else self._asked_brokers or 1
        if kept is not None and running:
            for port in (kept.ports[one - 1] for one in kept.numbers if one not in running):
                self._check_free(port)
            return kept
        if self._port:
            wanted = tuple(range(self._port, self._port + count))
            for port in wanted:
                self._check_free(port)
        else:
            wanted = kept.ports if kept is not None and all(map(_is_free, kept.ports)) else ()
        found = [port for port in _free_ports(3 * count) if port not in wanted]
        layout = Layout(
            cluster_id=kept.cluster_id if kept is not None else _cluster_id(),
            ports=wanted or tuple(found[:count]),
            controller_ports=tuple(found[count : 2 * count]),
        )
        self._layout_file.write_text(json.dumps(asdict(layout)))
        return layout

    def _check_free(self, port: int) -> None:
        if not _is_free(port):
            raise ConfigurationError(
                f"port {port} is taken by another program: set FEEDLOOM_KAFKA__LOCAL_PORT to a "
                "free one, or to 0 to let one be chosen"
            )

    def _java(self, say: Progress, jar_progress: Callable[[int, int], None]) -> list[str]:
        java = find_java()
        jars = locked_jars()
        fetched = fetch_jars(self.root / "lib", jars, progress=jar_progress)
        if fetched:
            say(f"Kafka: {fetched} jars from Maven Central")
        return [
            str(java.path),
            f"-Xmx{self._heap_mb}m",
            "-XX:+ExitOnOutOfMemoryError",
            *SMALL_JVM,
            "-Djava.awt.headless=true",
            "-cp",
            # The pinned jars by name: others in a shared folder stay out.
            ":".join(str(self.root / "lib" / jar.filename) for jar in jars),
        ]

    def _wait_until_ready(self, started: Sequence[NodeStatus]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(started)
        while waiting:
            status = waiting[0]
            node = self.node(status.number)
            if _answers(self._connection(status.address), status.number):
                waiting.pop(0)
                continue
            late = time.monotonic() > deadline
            if node.ended or late:
                for one in started:
                    self._stop(one.number)
                what = f"did not answer within {START_TIMEOUT_S:.0f} s" if late else "ended"
                raise FatalError(f"Kafka {what} while starting:\n{node.log_end()}")
            time.sleep(POLL_S)


def _answers(settings: KafkaSettings, number: int) -> bool:
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
        brokers = admin.describe_cluster()["brokers"]
        return any(broker["broker_id"] == number for broker in brokers)
    except KafkaError:
        return False
    finally:
        admin.close()


def _cluster_id() -> str:
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    # StorageTool reads a leading dash as an option.
    return cluster.replace("-", "f", 1) if cluster.startswith("-") else cluster


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> tuple[int, ...]:
    """So many, all different: they are held until all are found."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(int(probe.getsockname()[1]) for probe in probes)
