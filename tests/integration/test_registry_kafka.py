"""The registry on a real broker: what one process publishes, every watcher sees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.contracts import catalogue
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.kafka.bus import KafkaBus
from infra.registry.client import RegistryWatcher, publish_rollout, publish_version
from infra.registry.store import ArtifactStore

pytestmark = pytest.mark.kafka


def version(name: str, store: ArtifactStore, folder: Path) -> ModelVersionPublished:
    uri, manifest = store.put(folder, model="default", version=name)
    return ModelVersionPublished(
        model="default",
        version=name,
        kind="full",
        artifact_uri=uri,
        manifest=manifest,
        created_at_ms=int(name),
    )


def rollout(revision: int, stable: str) -> RolloutChanged:
    return RolloutChanged(model="default", revision=revision, stable=stable, changed_at_ms=0)


def test_a_version_goes_from_the_store_over_kafka_to_every_watcher(
    kafka_bus: KafkaBus, tmp_path: Path
) -> None:
    folder = tmp_path / "build"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 100_000)
    store = ArtifactStore(tmp_path / "store")
    events = [version("1", store, folder), version("2", store, folder)]
    early = RegistryWatcher(kafka_bus)
    publisher = kafka_bus.publisher()
    publisher.publish(catalogue.REGISTRY.name, key=b"default/0", value=b"{").result(30)
    for event in events:
        publish_version(publisher, event)
    publish_rollout(publisher, rollout(2, "2"))
    # An older revision that arrives late does not undo the newer one.
    publish_rollout(publisher, rollout(1, "1"))
    publisher.close()

    late = RegistryWatcher(kafka_bus)
    for watcher in (early, late):
        watcher.catch_up(60)
        assert watcher.state.versions("default") == events
        assert watcher.state.rollout("default") == rollout(2, "2")
        assert watcher.state.next_version("default") == "3"
        stable = watcher.state.stable("default")
        assert stable is not None
        assert Path(store.resolve(stable), "weights").stat().st_size == 100_000
        watcher.close()


def test_catching_up_on_an_empty_registry_ends(kafka_bus: KafkaBus) -> None:
    watcher = RegistryWatcher(kafka_bus)
    watcher.catch_up(60)
    assert watcher.state.models() == []
    watcher.close()


def test_of_two_writers_of_one_version_every_watcher_keeps_the_same(
    kafka_bus: KafkaBus, tmp_path: Path
) -> None:
    folders = []
    for number in range(4):
        folder = tmp_path / f"build{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"%d" % number)
        folders.append(folder)
    rivals = [
        version("1", ArtifactStore(tmp_path / f"store{number}"), folder)
        for number, folder in enumerate(folders)
    ]
    publisher = kafka_bus.publisher()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda event: publish_version(publisher, event), rivals))
    publisher.close()
    kept = []
    for _ in range(2):
        watcher = RegistryWatcher(kafka_bus)
        watcher.catch_up(60)
        kept.append(watcher.state.versions("default"))
        watcher.close()
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]
