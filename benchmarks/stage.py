"""An embedded broker, deployments on it, and child processes, in a temporary home of their own.

The home shares the project's jars by a link; the model is copied in when it is published. Leaving
the stage stops every child and the broker and removes the home; if this process is killed, its
guard does. Start children from the main thread: they are tied to the life of the thread.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import psutil
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError

from benchmarks.guard import Guard
from benchmarks.harness import Broken, project_home
from benchmarks.processes import thaw
from infra.contracts.bus import Bus
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus
from infra.kafka.connection import client_options
from infra.kafka.topics import apply_catalogue
from infra.local.supervisor import Child, feedloom_command
from infra.local.watch import PlatformWatch
from infra.registry.client import publish_rollout, publish_version
from infra.registry.store import ArtifactStore
from infra.settings import KafkaSettings

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 30.0
ROOT = Path(__file__).resolve().parent.parent


class Stage:
    """A context manager. ``home`` is temporary."""

    def __init__(self, *, heap_mb: int = 512) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="feedloom-bench-"))
        self._guard = Guard()
        self._guard.note("folder", str(self.home))
        self._children: list[Child] = []
        self._deployments: list[Deployment] = []
        self._broker = EmbeddedKafka(self.home, heap_mb=heap_mb)
        self.bootstrap_servers = ""
        self.broker_process: psutil.Process | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        jars = project_home() / "kafka" / "lib"
        jars.mkdir(parents=True, exist_ok=True)
        (self.home / "kafka").mkdir()
        (self.home / "kafka" / "lib").symlink_to(jars, target_is_directory=True)
        # An empty file: settings of the working directory must not reach the children.
        (self.home / "feedloom.toml").touch()
        status = self._broker.start(attached=True)
        (pid,) = status.pids
        self._guard.note("group", pid)
        self.broker_process = psutil.Process(pid)
        self.bootstrap_servers = status.bootstrap_servers

    def deployment(self, prefix: str, *, partitions: int | None = None) -> Deployment:
        """Topics of their own, under ``prefix``."""
        made = Deployment(self, prefix, partitions)
        self._deployments.append(made)
        return made

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> Child:
        """Run a command as a child; its output goes to ``logs/NAME.log`` of the home."""
        child = Child(
            name,
            command,
            log=self.home / "logs" / f"{name}.log",
            environment={
                "FEEDLOOM_CONFIG": str(self.home / "feedloom.toml"),
                "PYTHONPATH": str(ROOT),
                **(environment or {}),
            },
        )
        self._guard.note("group", child.pid)
        self._children.append(child)
        return child

    def python(self, name: str, module: str, *arguments: str) -> Child:
        """Run a module of this package as a child."""
        return self.start(name, [sys.executable, "-m", module, *arguments])

    def watch_over(self, group: int) -> None:
        """Have the guard kill a process group that this stage did not start."""
        self._guard.note("group", group)

    def released(self, group: int) -> None:
        """That group has ended."""
        self._guard.note("done", group)

    def stop(self, child: Child, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Stop one child (thawed first); returns its exit status."""
        thaw(child.pid)
        status = child.stop(timeout_s)
        self._guard.note("done", child.pid)
        if child in self._children:
            self._children.remove(child)
        return status

    def check(self) -> None:
        """Raise ChildStopped if a child has ended."""
        for child in self._children:
            child.check()

    def data_bytes(self) -> int:
        """Bytes of the broker's record logs: every topic's, and the group and transaction logs."""
        logs = self._broker.node(1).folder.glob("data/*/*.log")
        return sum(path.stat().st_size for path in logs)

    def close(self) -> None:
        """Stop everything and remove the home. Safe to call twice."""
        for deployment in self._deployments:
            deployment.close()
        for child in list(reversed(self._children)):
            # Nothing that is left is worth waiting for.
            self.stop(child, 2.0)
        self._broker.stop()
        self._guard.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Deployment:
    """The catalogue's topics under one prefix, and workers that serve them."""

    def __init__(self, stage: Stage, prefix: str, partitions: int | None) -> None:
        self.stage = stage
        self.kafka = KafkaSettings(
            bootstrap_servers=stage.bootstrap_servers, topic_prefix=f"{prefix}."
        )
        apply_catalogue(self.kafka, partitions=partitions)
        self.bus = KafkaBus(self.kafka)
        self.watch = PlatformWatch(self.bus)
        self._admin = KafkaAdminClient(**client_options(self.kafka))
        self._partitions: dict[str, int] = {}
        self._started = 0
        self._revision = 0

    @property
    def environment(self) -> dict[str, str]:
        """Of the ``feedloom`` commands that belong to it."""
        return {
            "FEEDLOOM_HOME": str(self.stage.home),
            "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS": self.stage.bootstrap_servers,
            "FEEDLOOM_KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
        }

    def publish_model(
        self, directory: Path | None = None, *, version: str = "1", base: str | None = None
    ) -> None:
        """Publish the files of ``directory`` (by default a dummy's) as a version of ``default``.

        With a ``base`` they are its adapter's. The first version is also made the stable one.
        """
        if directory is None:
            directory = self.stage.home / "dummy"
            directory.mkdir(exist_ok=True)
            (directory / "weights").write_text("none")
        store = ArtifactStore(self.stage.home / self.kafka.topic_prefix / "artifacts")
        publish_files(self.bus, store, directory, version, base)
        if not self._revision:
            self.serve(version)

    def serve(self, version: str) -> None:
        """Make it the stable version."""
        self._revision += 1
        make_stable(self.bus, version, self._revision)

    def worker(
        self,
        *,
        engine: str = "memory",
        token_interval_s: float = 0.0,
        wait: bool = True,
        **settings: object,
    ) -> Child:
        """A worker; ``settings`` are of the worker section. Returns once it is ready."""
        name = f"{self.kafka.topic_prefix}worker-{self._started}"
        self._started += 1
        environment = {
            **self.environment,
            "FEEDLOOM_WORKER__WORKER_ID": name,
            **{f"FEEDLOOM_WORKER__{key.upper()}": str(value) for key, value in settings.items()},
        }
        arguments = ["worker", "--engine", engine, "--token-interval", str(token_interval_s)]
        child = self.stage.start(name, feedloom_command(arguments), environment)
        if wait:
            self.wait_ready(name)
        return child

    def wait_ready(self, name: str) -> None:
        """Until the worker of that name serves. Raises ChildStopped, PlatformSilent."""

        def ready() -> bool:
            report = self.watch.workers.get(name)
            return report is not None and report.state == "ready"

        self.watch.wait_for(
            f"{name} to be ready", ready, timeout_s=START_TIMEOUT_S, check=self.stage.check
        )

    def finished(self, group: str, topics: Sequence[str]) -> int:
        """Sum of the group's committed offsets in these topics (names without prefix)."""
        names = {self.kafka.topic_prefix + topic for topic in topics}
        try:
            found = self._admin.list_group_offsets(self.kafka.topic_prefix + group)
        except KafkaError:
            return 0  # the coordinator is not there yet
        positions = found.get(self.kafka.topic_prefix + group, {})
        return sum(
            max(0, stored.offset)
            for partition, stored in positions.items()
            if partition.topic in names
        )

    def written(self, topic: str) -> int:
        """Sum of a topic's end offsets, markers and open transactions included."""
        name = self.kafka.topic_prefix + topic
        if topic not in self._partitions:
            self._partitions[topic] = len(self.bus.end_offsets(topic))
        asked = {
            KafkaPartition(name, number): OffsetSpec.LATEST
            for number in range(self._partitions[topic])
        }
        ends = self._admin.list_partition_offsets(asked)
        return sum(end.offset for end in ends.values())

    def close(self) -> None:
        """Let go of the clients."""
        with suppress(Exception):
            self.watch.close()
            self._admin.close()
        self.bus.close()


def publish_files(
    bus: Bus, store: ArtifactStore, files: Path, version: str, base: str | None = None
) -> ModelVersionPublished:
    """Publish a folder as a version of ``default``; with a ``base``, as an adapter of it."""
    uri, manifest = store.put(files, model="default", version=version)
    event = ModelVersionPublished(
        model="default",
        version=version,
        kind="full" if base is None else "lora",
        artifact_uri=uri,
        manifest=manifest,
        created_at_ms=1,
        base=base,
    )
    with closing(bus.publisher(client_id="benchmark")) as publisher:
        publish_version(publisher, event)
    return event


def make_stable(bus: Bus, version: str, revision: int) -> None:
    """Publish the rollout in which a version of ``default`` alone serves."""
    event = RolloutChanged(
        model="default",
        revision=revision,
        stable=version,
        changed_at_ms=time.time_ns() // 1_000_000,
    )
    with closing(bus.publisher(client_id="benchmark")) as publisher:
        publish_rollout(publisher, event)


def wait_until(
    condition: Callable[[], bool], *, what: str, timeout_s: float, poll_s: float = 0.2
) -> None:
    """Poll until ``condition`` holds. Raises Broken after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Broken(f"no sign of {what} within {timeout_s:.0f} s")
        time.sleep(poll_s)
