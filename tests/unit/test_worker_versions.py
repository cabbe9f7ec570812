"""Which versions a worker takes, and what it says when it does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.contracts.errors import ConfigurationError
from infra.contracts.events import (
    GateDecision,
    Lineage,
    ModelVersionPublished,
    RolloutChanged,
    WorkerStatusReported,
)
from infra.registry.client import RegistryWatcher, publish_rollout, publish_version
from infra.registry.store import ArtifactStore
from infra.settings import ArtifactStoreSettings
from infra.testing import InMemoryBus
from stream_workers.engine_memory import MemoryEngine
from stream_workers.versions import VersionSwitcher, wait_for_stable
from tests.gates import SPAN, decision


class Place:
    """A registry on a bus, with files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.bus = InMemoryBus()
        self.store = ArtifactStore(ArtifactStoreSettings(url=str(folder / "artifacts")))
        self._folder = folder
        self._revision = 0

    def publish(self, name: str, gate: GateDecision | None = None) -> ModelVersionPublished:
        """``gate`` makes it a version that has learnt from feedback."""
        source = self._folder / name
        source.mkdir()
        (source / "config.json").write_text(f'{{"name": "{name}"}}')
        uri, manifest = self.store.put(source, model="m", version=name)
        event = ModelVersionPublished(
            model="m",
            version=name,
            kind="full",
            artifact_uri=uri,
            manifest=manifest,
            created_at_ms=0,
            lineage=Lineage(objective="sft", feedback=(SPAN,) if gate is not None else ()),
            gate=gate,
        )
        publish_version(self.bus.publisher(), event)
        return event

    def serve(self, name: str) -> None:
        """Whatever the rules say: some writer may not know them."""
        self._revision += 1
        publish_rollout(
            self.bus.publisher(),
            RolloutChanged(model="m", revision=self._revision, stable=name, changed_at_ms=0),
        )


def test_a_version_that_its_gate_rejected_is_not_loaded(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.publish("1")
    place.publish("2", decision(passed=False, reason="it swore"))
    place.publish("3", decision(passed=True, reason="it did not swear"))
    watcher, said = RegistryWatcher(place.bus), list[WorkerStatusReported]()
    engine = MemoryEngine(version="m@1")
    switcher = VersionSwitcher(
        engine=engine,
        store=place.store,
        watcher=watcher,
        serving=first,
        worker_id="w",
        report=said.append,
        in_flight=lambda: 0,
        now_ms=lambda: 7,
    )

    async def follow(*names: str) -> None:
        for name in names:
            place.serve(name)
            watcher.catch_up()
            await switcher.reconcile()

    asyncio.run(follow("1", "2", "3"))
    refused, switched = said
    assert refused.versions == {"m": "1"}
    assert refused.failure == "m@2: its gate rejected it: it swore"
    assert switched.versions == {"m": "3"}
    assert switched.failure is None
    assert engine.version == switcher.serving() == "m@3"


def test_a_worker_does_not_start_with_a_version_that_may_not_serve(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.publish("1", decision(passed=False, reason="it swore"))
    place.serve("1")
    with pytest.raises(ConfigurationError, match="m@1 is stable and may not serve: its gate"):
        asyncio.run(wait_for_stable(RegistryWatcher(place.bus), "m"))
