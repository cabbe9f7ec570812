"""Worker and gateway processes on the real broker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

import httpx
import psutil
import pytest

from infra.contracts import catalogue, codec
from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import Record, read_to_end
from infra.contracts.events.generation import GenerationChunk
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.kafka.bus import KafkaBus
from infra.local.supervisor import Child, feedloom_command
from infra.local.watch import PlatformWatch
from infra.registry.client import (
    RegistryWatcher,
    change_rollout,
    publish_rollout,
    publish_version,
)
from infra.registry.config import ConfigWatcher, publish_config
from infra.registry.store import ArtifactStore
from infra.registry.transitions import tried
from infra.settings import KafkaSettings


def child_environment(home: Path, kafka: KafkaSettings) -> dict[str, str]:
    """What tells a child process of its home and its broker."""
    return {
        "FEEDLOOM_HOME": str(home),
        "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers or "",
        "FEEDLOOM_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
    }


def engine_process(worker: Child) -> psutil.Process:
    """The process that a worker's vLLM engine runs in."""
    children = psutil.Process(worker.pid).children(recursive=True)
    (core,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    return core


def configure(bus: KafkaBus, **settings: str) -> None:
    """Change dynamic settings: JSON by key, ``__`` for its dot."""
    watcher, publisher = ConfigWatcher(bus), bus.publisher()
    for name, value in settings.items():
        publish_config(publisher, watcher, name.replace("__", "."), value, now_ms=1)
    publisher.close()
    watcher.close()


def try_out(
    bus: KafkaBus, registry: RegistryWatcher, version: str, mode: Literal["canary", "shadow"]
) -> RolloutChanged:
    """Make a version the candidate, for half of the users."""
    publisher = bus.publisher()
    event = change_rollout(
        publisher,
        registry,
        lambda state: tried(
            state,
            "default",
            version,
            mode=mode,
            weight=0.5,
            unit="user",
            now_ms=time.time_ns() // 1_000_000,
            actor="test",
            reason="a trial",
        ),
    )
    publisher.close()
    return event


class Workers:
    """Starts workers and stops them: with vLLM if a ``model`` is given, else with words.

    ``engine`` says otherwise.
    """

    def __init__(
        self,
        bus: KafkaBus,
        kafka: KafkaSettings,
        home: Path,
        model: Path | None = None,
        *,
        engine: str | None = None,
    ) -> None:
        self.bus = bus
        self._kafka = kafka
        self._home = home
        self._model = model
        self._engine = engine or ("memory" if model is None else "vllm")
        self.children: list[Child] = []
        self.publish(version="1", revision=1)
        self.watch = PlatformWatch(bus)

    def publish(self, *, version: str, revision: int, spoil: bool = False) -> None:
        folder = self._home / "build" / version
        if self._model is None:
            folder.mkdir(parents=True)
            (folder / "weights").write_text(version)
        else:
            shutil.copytree(self._model, folder)
        uri, manifest = ArtifactStore(self._home / "artifacts").put(
            folder, model="default", version=version
        )
        if spoil:
            (Path(unquote(urlsplit(uri).path)) / "weights").write_text("other")
        publisher = self.bus.publisher()
        publish_version(
            publisher,
            ModelVersionPublished(
                model="default",
                version=version,
                kind="full",
                artifact_uri=uri,
                manifest=manifest,
                created_at_ms=revision,
            ),
        )
        publish_rollout(
            publisher,
            RolloutChanged(model="default", revision=revision, stable=version, changed_at_ms=1),
        )
        publisher.close()

    def start(self, *, token_interval_s: float = 0.001, **settings: object) -> Child:
        """``settings`` of the worker section. Returns once it is ready."""
        (child,) = self.start_several(1, token_interval_s=token_interval_s, **settings)
        return child

    def start_several(
        self, count: int, *, token_interval_s: float = 0.001, **settings: object
    ) -> list[Child]:
        """So many side by side. Returns once all are ready."""
        started = [self.launch(token_interval_s=token_interval_s, **settings) for _ in range(count)]
        for child in started:
            self.wait_ready(child)
        return started

    def launch(
        self, *, name: str = "", token_interval_s: float = 0.001, **settings: object
    ) -> Child:
        """Like ``start``, which names it by its number; returns at once."""
        name = name or f"worker-{len(self.children)}"
        chosen = {"session_timeout_s": 6, "pin_cores": False, **settings}
        child = Child(
            name,
            feedloom_command(
                ["worker", "--engine", self._engine, "--token-interval", str(token_interval_s)]
            ),
            log=self._home / f"{name}.log",
            environment={
                **child_environment(self._home, self._kafka),
                "FEEDLOOM_WORKER__WORKER_ID": name,
                **{f"FEEDLOOM_WORKER__{key.upper()}": str(value) for key, value in chosen.items()},
            },
        )
        self.children.append(child)
        return child

    def wait_ready(self, child: Child) -> None:
        """Until it says so on its topic."""
        self.wait(f"{child.name} to be ready", lambda: self._state(child.name) == "ready", 240)

    def _state(self, name: str) -> str | None:
        report = self.watch.workers.get(name)
        return report.state if report else None

    def wait(self, what: str, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        def check() -> None:
            for child in self.children:
                if child.exit_status not in (None, 0, -signal.SIGKILL):
                    child.check()

        self.watch.wait_for(what, condition, timeout_s=timeout_s, check=check)

    def records(self, topic: str) -> list[Record]:
        """Everything on a topic up to its present end."""
        return read_to_end(self.bus, topic)

    def answers(self) -> dict[str, ChunkAssembler]:
        """Each request's chunks, as a reader puts them together."""
        found: dict[str, ChunkAssembler] = {}
        for record in self.records(catalogue.CHUNKS.name):
            chunk = codec.decode(record.value or b"", GenerationChunk)
            found.setdefault(chunk.request_id, ChunkAssembler()).add(chunk)
        return found

    def close(self) -> None:
        _stop(self.children)
        self.watch.close()


def publish_adapter(bus: KafkaBus, home: Path, files: Path, version: str) -> None:
    """A LoRA adapter of version 1, from a folder, in the store of a home."""
    uri, manifest = ArtifactStore(home / "artifacts").put(files, model="default", version=version)
    publisher = bus.publisher()
    publish_version(
        publisher,
        ModelVersionPublished(
            model="default",
            version=version,
            kind="lora",
            base="1",
            artifact_uri=uri,
            manifest=manifest,
            created_at_ms=1,
        ),
    )
    publisher.close()


class Gateways:
    """Starts gateways and stops them."""

    def __init__(self, kafka: KafkaSettings, home: Path) -> None:
        self._kafka = kafka
        self._home = home
        self.children: list[Child] = []

    @property
    def environment(self) -> dict[str, str]:
        return child_environment(self._home, self._kafka)

    def start(self) -> tuple[str, Child]:
        """Its address, once it is ready."""
        child = self.launch()
        return self.wait_ready(child), child

    def launch(self) -> Child:
        """Returns at once. Of two that start side by side, both may read one partition."""
        name = f"gateway-{len(self.children)}"
        child = Child(
            name,
            feedloom_command(["gateway", "--port", "0"]),
            log=self._home / f"{name}.log",
            environment={**self.environment, "FEEDLOOM_GATEWAY__GATEWAY_ID": name},
        )
        self.children.append(child)
        return child

    def wait_ready(self, child: Child) -> str:
        """Its address, once it is ready: there must be a worker by then."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            child.check()
            if said := re.search(r" listens on (http://\S+)", child.log_tail(1000)):
                with suppress(httpx.TransportError):
                    if httpx.get(f"{said[1]}/readyz").status_code == 200:
                        return said[1]
            time.sleep(0.05)
        raise AssertionError(f"{child.name} did not become ready")

    def key(self, tenant: str, *roles: str) -> str:
        """A new API key, made by the command."""
        options = [word for role in roles for word in ("--role", role)]
        made = subprocess.run(
            feedloom_command(["keys", "create", "--tenant", tenant, "--name", "test", *options]),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.strip()

    def close(self) -> None:
        _stop(self.children)


def _stop(children: Sequence[Child]) -> None:
    """All at once: each takes a second or two."""
    running = [child for child in children if child.exit_status is None]
    with ThreadPoolExecutor(max(1, len(running))) as pool:
        list(pool.map(lambda child: child.stop(30), running))


@dataclass(frozen=True, kw_only=True)
class Served:
    """A deployment with one vLLM worker, which may serve two adapters beside version 1."""

    kafka: KafkaSettings
    home: Path
    workers: Workers


@pytest.fixture
def workers(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> Iterator[Workers]:
    running = Workers(kafka_bus, kafka_settings, tmp_path)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def gateways(kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[Gateways]:
    running = Gateways(kafka_settings, tmp_path)
    try:
        yield running
    finally:
        running.close()
