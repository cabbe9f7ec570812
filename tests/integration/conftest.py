"""Worker processes on the real broker, with the engine in memory."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import Record, read_to_end
from infra.contracts.events import GenerationChunk, ModelVersionPublished, RolloutChanged
from infra.kafka.bus import KafkaBus
from infra.local.supervisor import Child, feedloom_command
from infra.local.watch import PlatformWatch
from infra.registry.client import publish_rollout, publish_version
from infra.registry.store import ArtifactStore
from infra.settings import KafkaSettings


class Workers:
    """Starts workers and stops them: with vLLM if a ``model`` is given, else with words."""

    def __init__(
        self, bus: KafkaBus, kafka: KafkaSettings, home: Path, model: Path | None = None
    ) -> None:
        self.bus = bus
        self._kafka = kafka
        self._home = home
        self._model = model
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
        name = f"worker-{len(self.children)}"
        engine = "memory" if self._model is None else "vllm"
        chosen = {"session_timeout_s": 6, "pin_cores": False, **settings}
        child = Child(
            name,
            feedloom_command(
                ["worker", "--engine", engine, "--token-interval", str(token_interval_s)]
            ),
            log=self._home / f"{name}.log",
            environment={
                "FEEDLOOM_HOME": str(self._home),
                "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS": self._kafka.bootstrap_servers or "",
                "FEEDLOOM_KAFKA__TOPIC_PREFIX": self._kafka.topic_prefix,
                "FEEDLOOM_WORKER__WORKER_ID": name,
                **{f"FEEDLOOM_WORKER__{key.upper()}": str(value) for key, value in chosen.items()},
            },
        )
        self.children.append(child)
        self.wait(f"{name} to be ready", lambda: self._state(name) == "ready", 180)
        return child

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
        for child in self.children:
            child.stop(30)
        self.watch.close()


@pytest.fixture
def workers(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> Iterator[Workers]:
    running = Workers(kafka_bus, kafka_settings, tmp_path)
    try:
        yield running
    finally:
        running.close()
