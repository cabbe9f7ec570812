"""The registry's fold and its store."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue
from infra.contracts.events.model import ArtifactFile, ModelVersionPublished, RolloutChanged
from infra.registry.client import RegistryWatcher, publish_rollout, publish_version
from infra.registry.errors import ArtifactRejected
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.testing import InMemoryBus


def version(name: str, *, at: int = 0, uri: str = "file:///x") -> ModelVersionPublished:
    return ModelVersionPublished(
        model="m", version=name, kind="full", artifact_uri=uri, manifest=(), created_at_ms=at
    )


def rollout(revision: int, stable: str) -> RolloutChanged:
    return RolloutChanged(model="m", revision=revision, stable=stable, changed_at_ms=0)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("123")), min_size=1))
def test_the_highest_revision_stands_whatever_came_when(changes: list[tuple[int, str]]) -> None:
    state = RegistryState()
    for revision, stable in changes:
        state.apply(rollout(revision, stable))
    top = max(revision for revision, _ in changes)
    last = [stable for revision, stable in changes if revision == top][-1]
    assert state.rollout("m") == rollout(top, last)


def test_a_published_version_never_changes() -> None:
    state = RegistryState()
    assert state.apply(version("1", at=1))
    assert not state.apply(version("1", at=2))
    known = state.version("m", "1")
    assert known is not None
    assert known.created_at_ms == 1


def test_the_next_version_follows_the_highest_number() -> None:
    state = RegistryState()
    assert state.next_version("m") == "1"
    for name in ("2", "10", "experiment"):
        state.apply(version(name))
    assert state.next_version("m") == "11"
    state.apply(rollout(1, "10"))
    assert state.stable("m") == version("10")


def test_every_watcher_sees_everything_and_passes_over_what_it_cannot_read() -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    publisher.publish(catalogue.REGISTRY.name, key=b"m/0", value=b"{")
    publish_version(publisher, version("1"))
    publish_rollout(publisher, rollout(1, "1"))
    for _ in range(2):
        watcher = RegistryWatcher(bus)
        watcher.catch_up(5)
        assert watcher.state.stable("m") == version("1")
        watcher.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build = tmp_path / "build"
    (build / "sub").mkdir(parents=True)
    (build / "weights").write_bytes(b"weights")
    (build / "sub" / "config").write_bytes(b"config")
    return build


def stored(store: ArtifactStore, folder: Path) -> ModelVersionPublished:
    uri, manifest = store.put(folder, model="m", version="1")
    return ModelVersionPublished(
        model="m", version="1", kind="full", artifact_uri=uri, manifest=manifest, created_at_ms=0
    )


def test_what_was_put_resolves(tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    published = stored(store, folder)
    assert Path(store.resolve(published), "sub", "config").read_bytes() == b"config"
    assert stored(store, folder) == published


@pytest.mark.parametrize("harm", ["change", "remove", "add", "link"])
def test_a_harmed_artifact_is_refused(tmp_path: Path, folder: Path, harm: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    published = stored(store, folder)
    (target,) = (tmp_path / "store" / "m").iterdir()
    if harm == "change":
        (target / "weights").write_bytes(b"Weights")
    elif harm == "remove":
        (target / "weights").unlink()
    elif harm == "add":
        (target / "weights2").write_bytes(b"")
    else:
        (target / "weights").unlink()
        (target / "weights").symlink_to(folder / "weights")
    with pytest.raises(ArtifactRejected, match="weights"):
        store.resolve(published)


@pytest.mark.parametrize("uri", ["file:///nowhere", "s3://bucket/m", "relative/path"])
def test_what_cannot_be_checked_is_refused(tmp_path: Path, uri: str) -> None:
    file = ArtifactFile(path="weights", size=1, sha256="0" * 64)
    published = ModelVersionPublished(
        model="m", version="1", kind="full", artifact_uri=uri, manifest=(file,), created_at_ms=0
    )
    with pytest.raises(ArtifactRejected):
        ArtifactStore(tmp_path).resolve(published)


def test_a_hub_model_is_passed_on_by_name(tmp_path: Path) -> None:
    hub = version("1", uri="hf://HuggingFaceTB/SmolLM2-135M-Instruct")
    assert ArtifactStore(tmp_path).resolve(hub) == "HuggingFaceTB/SmolLM2-135M-Instruct"
