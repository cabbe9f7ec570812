"""Once a public key is set, no process has a way around it: worker, trainer, replay, caches."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from infra.contracts.events.model import Lineage, ModelVersionPublished
from infra.registry.errors import ArtifactRejected
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.settings import ArtifactStoreSettings
from infra.testing import InMemoryBus
from stream_workers.replay import target_of
from tests.conftest import Weights
from tests.unit.test_registry_signing import keys
from tests.unit.test_worker_versions import Place, Worker
from trainer.publishing import publish
from trainer.whole import whole

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "observability", "producers", "stream_workers", "trainer")
UNSIGNED = "is not signed"
ADDRESSES = {
    "infra/contracts/events/model.py",  # declares it
    "infra/recovery/artifacts.py",  # says where a store has moved to
    "infra/recovery/taking.py",  # notes where files were
    "infra/registry/store.py",  # checks what it reads
    "trainer/publishing.py",  # writes it
    "trainer/version_commands.py",  # shows it
}
"""Every file that touches a version's address: the others only get folders that were checked."""


def strict(folder: Path, public: Path, signing: Path | None = None) -> ArtifactStore:
    return ArtifactStore(
        ArtifactStoreSettings(url=str(folder / "artifacts"), public_key=public, signing_key=signing)
    )


def test_only_the_store_follows_a_versions_address() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if "artifact_uri" in path.read_text()
    }
    assert found - ADDRESSES == set()
    assert "infra/registry/store.py" in found


def test_the_gateway_has_no_way_to_the_weights() -> None:
    """Nothing that answers over HTTP can open a version's files."""
    modules = sorted((ROOT / "producers" / "gateway").rglob("*.py"))
    assert len(modules) > 30
    for path in modules:
        imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(), re.MULTILINE)
        assert not {"infra.registry.store", "infra.registry.remote"} & set(imported), path


def test_a_worker_keeps_what_it_serves_and_says_why(tmp_path: Path) -> None:
    """Full weights and an adapter that nobody signed, offered to a worker with a key."""
    private, public = keys(tmp_path, "ours")
    place = Place(tmp_path)
    place.store = strict(tmp_path, public, private)
    worker = Worker(place, place.publish("1"))
    place.store = ArtifactStore(ArtifactStoreSettings(url=str(tmp_path / "artifacts")))
    place.publish("2")
    place.publish("3", base="1")

    async def follow() -> None:
        for name in ("2", "3"):
            place.serve(name)
            await worker.follow()

    asyncio.run(follow())
    assert [UNSIGNED in (said.failure or "") for said in worker.said] == [True, True]
    assert worker.switcher.serving() == "m@1"
    # Nor does a worker start with it.
    with pytest.raises(ArtifactRejected, match=UNSIGNED):
        strict(tmp_path, public).resolve(versions(place)["2"])


def versions(place: Place) -> dict[str, ModelVersionPublished]:
    return {one.version: one for one in state_of(place).versions("m")}


def state_of(place: Place) -> RegistryState:
    from infra.registry.client import read_registry

    return read_registry(place.bus)


def test_a_replay_takes_no_unsigned_version(tmp_path: Path) -> None:
    _, public = keys(tmp_path, "ours")
    place = Place(tmp_path)
    place.publish("1")
    place.publish("2", base="1")
    for version in ("1", "2"):
        with pytest.raises(ArtifactRejected, match=UNSIGNED):
            target_of(state_of(place), strict(tmp_path, public), "m", version)


def test_what_was_merged_before_the_key_was_set_is_not_trained_from(
    weights: Weights, tmp_path: Path
) -> None:
    """The base is what nobody signed; the adapter on it is."""
    private, public = keys(tmp_path, "ours")
    state, cache = RegistryState(), tmp_path / "merged"
    trusting = ArtifactStore(ArtifactStoreSettings(url=str(tmp_path / "artifacts")))
    signing = strict(tmp_path, public, private)
    found = []
    for store, files, base in (
        (trusting, weights.first, None),
        (signing, weights.adapters[0], "1"),
    ):
        version = publish(
            files,
            model="default",
            base=base,
            lineage=Lineage(objective="imported"),
            metrics={},
            store=store,
            state=state,
            publisher=InMemoryBus().publisher(),
        )
        found.append(version)
    full, adapter = found
    assert whole(adapter, state=state, store=trusting, cache=cache).is_dir()
    for version in (full, adapter):
        with pytest.raises(ArtifactRejected, match=UNSIGNED):
            whole(version, state=state, store=signing, cache=cache)
