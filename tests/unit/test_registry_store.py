"""The artifact store: names, races and manifests that point elsewhere."""

from __future__ import annotations

import errno
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from infra.contracts.events.model import ArtifactFile, ModelVersionPublished
from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
from infra.registry.manifest import manifest_of
from infra.registry.store import ArtifactStore


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "deep" / "er" / "config.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    return folder


def published(uri: str, manifest: tuple[ArtifactFile, ...]) -> ModelVersionPublished:
    return ModelVersionPublished(
        model="m", version="1", kind="full", artifact_uri=uri, manifest=manifest, created_at_ms=0
    )


@pytest.mark.parametrize("name", ["", ".", "..", "../b", "a/b", "/a", ".hidden", "a\\b", "a\0"])
def test_a_name_is_one_folder(tmp_path: Path, build: Path, name: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    for model, version in ((name, "1"), ("m", name)):
        with pytest.raises(ArtifactRejected, match="not a name"):
            store.put(build, model=model, version=version)
    assert not (tmp_path / "store").exists()


def test_many_putting_one_version_agree(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    with ThreadPoolExecutor(8) as pool:
        puts = [pool.submit(store.put, build, model="m", version="1") for _ in range(16)]
        outcomes = {put.result(60) for put in puts}
    ((uri, manifest),) = outcomes
    (folder,) = (tmp_path / "store" / "m").iterdir()
    assert folder.name.startswith("1-")
    assert store.resolve(published(uri, manifest)) == str(folder)


def test_what_a_dead_writer_left_is_in_nobodys_way(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    left = store.put(build, model="m", version="1")
    (build / "empty").write_text("trained again, to other weights")
    uri, manifest = store.put(build, model="m", version="1")
    assert uri != left[0]
    assert manifest_of(Path(store.resolve(published(uri, manifest)))) == manifest_of(build)
    assert manifest_of(Path(store.resolve(published(*left)))) == left[1]


def test_a_kept_copy_that_was_changed_is_not_taken_for_the_same(
    tmp_path: Path, build: Path
) -> None:
    store = ArtifactStore(tmp_path / "store")
    store.put(build, model="m", version="1")
    (folder,) = (tmp_path / "store" / "m").iterdir()
    (folder / "empty").write_text("not empty")
    with pytest.raises(ArtifactRejected, match="changed since it was written"):
        store.put(build, model="m", version="1")


def test_a_failed_put_leaves_nothing_behind(
    tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def copy_until_full(source: Path, target: Path) -> None:
        if copies:
            raise OSError(errno.ENOSPC, "No space left on device")
        copies.append(target)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr("infra.registry.store.shutil.copyfile", copy_until_full)
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr("infra.registry.store.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ArtifactStoreFailed) as failed:
        ArtifactStore(tmp_path / "store").put(build, model="m", version="1")
    assert str(tmp_path / "store" / "m") in str(failed.value)
    assert "needs 102,402 bytes, 4,096 are free" in str(failed.value)
    assert "No space left" in str(failed.value)
    assert copies
    assert not list((tmp_path / "store" / "m").iterdir())


def test_the_system_refusing_to_write_leaves_nothing_behind(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ArtifactStoreFailed, match="File too large"):
            store.put(build, model="m", version="1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "store" / "m").iterdir())
    uri, manifest = store.put(build, model="m", version="1")
    assert manifest_of(Path(store.resolve(published(uri, manifest)))) == manifest_of(build)


def test_a_folder_that_changes_under_the_copy_is_refused(
    tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_something_else(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes() + b"later")

    monkeypatch.setattr("infra.registry.store.shutil.copyfile", copy_something_else)
    with pytest.raises(ArtifactRejected, match="changed while it was copied"):
        ArtifactStore(tmp_path / "store").put(build, model="m", version="1")
    assert not list((tmp_path / "store" / "m").iterdir())


@pytest.mark.parametrize("path", ["../build/empty", "/etc/hostname", "deep/../empty", "./empty"])
def test_a_manifest_cannot_point_elsewhere(tmp_path: Path, build: Path, path: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    uri, manifest = store.put(build, model="m", version="1")
    empty = next(file for file in manifest if file.path == "empty")
    stray = msgspec.structs.replace(empty, path=path)
    with pytest.raises(ArtifactRejected, match="missing or has changed"):
        store.resolve(published(uri, (*manifest, stray)))


def test_a_folder_behind_a_link_is_refused(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    uri, manifest = store.put(build, model="m", version="1")
    (folder,) = (tmp_path / "store" / "m").iterdir()
    (folder / "more").symlink_to(build, target_is_directory=True)
    with pytest.raises(ArtifactRejected, match="more is a link"):
        store.resolve(published(uri, manifest))


def test_without_a_manifest_no_folder_is_trusted(tmp_path: Path, build: Path) -> None:
    with pytest.raises(ArtifactRejected, match="without a manifest"):
        ArtifactStore(tmp_path).resolve(published(build.as_uri(), ()))


def test_a_file_named_twice_in_a_manifest_is_refused(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    uri, manifest = store.put(build, model="m", version="1")
    with pytest.raises(ArtifactRejected):
        store.resolve(published(uri, (*manifest, manifest[0])))


def test_a_space_in_the_path_survives_the_uri(tmp_path: Path, build: Path) -> None:
    store = ArtifactStore(tmp_path / "my store %20 ü")
    uri, manifest = store.put(build, model="m", version="1")
    assert " " not in uri
    assert manifest_of(Path(store.resolve(published(uri, manifest)))) == manifest_of(build)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "deep/optimizer.pt", "modeling_x.py"])
def test_weights_that_could_run_code_are_refused(tmp_path: Path, build: Path, name: str) -> None:
    store = ArtifactStore(tmp_path / "store")
    uri, manifest = store.put(build, model="m", version="1")
    (build / name).write_bytes(b"x")
    with pytest.raises(ArtifactRejected, match="safetensors"):
        store.put(build, model="m", version="2")
    stray = msgspec.structs.replace(manifest[0], path=name)
    with pytest.raises(ArtifactRejected, match="safetensors"):
        store.resolve(published(uri, (*manifest, stray)))
