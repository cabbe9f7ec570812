"""Versions in an object store: the same cases in memory and on an S3 server."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import pytest
from moto.server import ThreadedMotoServer

from infra.contracts.errors import ConfigurationError
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
from infra.registry.manifest import MARKER, manifest_of
from infra.registry.store import ArtifactStore
from infra.settings import ArtifactStoreSettings, load_settings

BUCKET = "versions"


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        endpoint = f"http://{host}:{port}"
        fsspec.filesystem("s3", endpoint_url=endpoint, use_listings_cache=False).mkdir(BUCKET)
        yield endpoint
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStoreSettings:
    """A store of one's own, with a cache of one's own."""
    endpoint = request.getfixturevalue("s3_endpoint") if request.param == "s3" else None
    url = f"{request.param}://{BUCKET}/{uuid.uuid4().hex} ü"
    return ArtifactStoreSettings(url=url, cache=tmp_path / "cache", endpoint_url=endpoint)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "deep" / "er" / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "empty").write_bytes(b"")
    return folder


def stored(store: ArtifactStore, folder: Path) -> ModelVersionPublished:
    uri, manifest = store.put(folder, model="m", version="1")
    return ModelVersionPublished(
        model="m", version="1", kind="full", artifact_uri=uri, manifest=manifest, created_at_ms=0
    )


class Objects:
    """What lies in the store, past Feedloom. fsspec gives one thread one file system, as here."""

    def __init__(self, place: ArtifactStoreSettings) -> None:
        scheme, _, self._root = place.url.partition("://")
        options = {"endpoint_url": place.endpoint_url} if place.endpoint_url else {}
        self.filesystem: Any = fsspec.filesystem(scheme, use_listings_cache=False, **options)

    def names(self) -> list[str]:
        return sorted(name.strip("/") for name in self.filesystem.find(self._root))

    def named(self, end: str) -> str:
        (found,) = [name for name in self.names() if name.endswith(f"/{end}")]
        return found


def test_what_was_put_resolves_to_a_local_copy(place: ArtifactStoreSettings, build: Path) -> None:
    published = stored(ArtifactStore(place), build)
    assert published.artifact_uri.startswith(place.url.split("://")[0] + "://")
    assert " " not in published.artifact_uri
    folder = Path(ArtifactStore(place).resolve(published))
    assert folder.parent == place.cache
    assert manifest_of(folder) == published.manifest == manifest_of(build)


def test_the_marker_is_the_last_to_be_written(
    place: ArtifactStoreSettings, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(place)
    before: list[list[str]] = []
    mark = objects.filesystem.pipe_file

    def noting(path: str, content: bytes, **options: Any) -> Any:
        before.append(objects.names())
        assert options == {"mode": "create"}
        return mark(path, content, **options)

    monkeypatch.setattr(objects.filesystem, "pipe_file", noting)
    published = stored(ArtifactStore(place), build)
    assert [len(names) for names in before] == [len(published.manifest)]
    assert objects.named(MARKER) not in before[0]


def test_the_same_content_is_uploaded_once(place: ArtifactStoreSettings, build: Path) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    published = stored(store, build)
    marked = objects.filesystem.info(objects.named(MARKER))
    weights = objects.filesystem.info(objects.named("weights.safetensors"))
    assert stored(store, build) == published
    assert objects.filesystem.info(objects.named(MARKER)) == marked
    assert objects.filesystem.info(objects.named("weights.safetensors")) == weights


# fsspec's memory shows a file before its bytes are in it, which an object store never does.
@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_many_putting_one_version_agree(place: ArtifactStoreSettings, build: Path) -> None:
    store = ArtifactStore(place)
    with ThreadPoolExecutor(4) as pool:
        puts = [pool.submit(store.put, build, model="m", version="1") for _ in range(8)]
        ((uri, manifest),) = {put.result(60) for put in puts}
    assert len(Objects(place).names()) == len(manifest) + 1
    with ThreadPoolExecutor(4) as pool:
        event = msgspec.structs.replace(stored(store, build), artifact_uri=uri)
        folders = {pool.submit(store.resolve, event).result(60) for _ in range(8)}
    assert len(folders) == 1


def test_who_comes_second_to_the_marker_agrees(
    place: ArtifactStoreSettings, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    mark = objects.filesystem.pipe_file
    firsts: list[ModelVersionPublished] = []

    def overtaken(path: str, content: bytes, **options: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(objects.filesystem, "pipe_file", mark)
            firsts.append(stored(store, build))
        mark(path, content, **options)
        raise AssertionError("there were two markers")

    monkeypatch.setattr(objects.filesystem, "pipe_file", overtaken)
    assert [stored(store, build)] == firsts


def test_a_half_written_upload_is_refused_and_then_completed(
    place: ArtifactStoreSettings, build: Path
) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    published = stored(store, build)
    objects.filesystem.rm_file(objects.named(MARKER))
    objects.filesystem.rm_file(objects.named("empty"))
    with pytest.raises(ArtifactRejected, match="never finished"):
        store.resolve(published)
    assert not list(place.cache.iterdir())
    assert stored(store, build) == published
    assert manifest_of(Path(store.resolve(published))) == published.manifest


def test_an_upload_that_breaks_off_leaves_no_marker(
    place: ArtifactStoreSettings, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    sent: list[str] = []
    put = objects.filesystem.put_file

    def breaking(source: str, target: str) -> Any:
        if sent:
            raise ConnectionResetError("the line is cut")
        sent.append(target)
        return put(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(objects.filesystem, "put_file", breaking)
        with pytest.raises(ArtifactStoreFailed, match=r"could not take 102,416 bytes.*line is cut"):
            stored(store, build)
    assert len(objects.names()) == 1
    assert manifest_of(Path(store.resolve(stored(store, build)))) == manifest_of(build)


@pytest.mark.parametrize("harm", ["change", "shorten", "remove", "add"])
def test_a_harmed_version_is_refused_by_the_name_of_its_file(
    place: ArtifactStoreSettings, build: Path, harm: str
) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    published = stored(store, build)
    tokenizer = objects.named("tokenizer.json")
    if harm == "remove":
        objects.filesystem.rm_file(tokenizer)
    else:
        name = f"{tokenizer}2" if harm == "add" else tokenizer
        objects.filesystem.pipe_file(name, b"{" if harm == "shorten" else b"[]")
    with pytest.raises(ArtifactRejected, match=r"tokenizer\.json"):
        store.resolve(published)
    assert not list(place.cache.iterdir())
    if harm != "change":  # Sizes are compared when content is put that is there already.
        with pytest.raises(ArtifactRejected, match=r"tokenizer\.json"):
            store.put(build, model="m", version="1")


def test_an_intact_copy_needs_no_store(place: ArtifactStoreSettings, build: Path) -> None:
    store, objects = ArtifactStore(place), Objects(place)
    published = stored(store, build)
    folder = store.resolve(published)
    for name in objects.names():
        objects.filesystem.rm_file(name)
    assert store.resolve(published) == folder
    (Path(folder) / "empty").write_text("harmed")
    with pytest.raises(ArtifactRejected, match="not there"):
        store.resolve(published)


def test_a_harmed_copy_is_downloaded_again(place: ArtifactStoreSettings, build: Path) -> None:
    store = ArtifactStore(place)
    published = stored(store, build)
    (Path(store.resolve(published)) / "empty").write_text("harmed")
    assert manifest_of(Path(store.resolve(published))) == published.manifest


def test_a_folder_that_changes_under_the_upload_gets_no_marker(
    place: ArtifactStoreSettings, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(place)
    put = objects.filesystem.put_file

    def changing(source: str, target: str) -> Any:
        (build / "empty").write_text("later")
        return put(source, target)

    monkeypatch.setattr(objects.filesystem, "put_file", changing)
    with pytest.raises(ArtifactRejected, match="changed while it was copied"):
        stored(ArtifactStore(place), build)
    assert not [name for name in objects.names() if name.endswith(MARKER)]


@pytest.mark.parametrize("path", ["../escaped", "/escaped", "deep/../../escaped", MARKER])
def test_a_manifest_cannot_write_past_the_cache(
    place: ArtifactStoreSettings, build: Path, path: str
) -> None:
    store = ArtifactStore(place)
    published = stored(store, build)
    stray = msgspec.structs.replace(published.manifest[0], path=path)
    with pytest.raises(ArtifactRejected, match=path):
        store.resolve(msgspec.structs.replace(published, manifest=(*published.manifest, stray)))
    assert not place.cache.exists()


def test_a_store_that_cannot_be_reached_is_not_a_bad_version(
    s3_endpoint: str, tmp_path: Path, build: Path
) -> None:
    nowhere = ArtifactStoreSettings(
        url="s3://no-such-bucket/x", cache=tmp_path / "cache", endpoint_url=s3_endpoint
    )
    with pytest.raises(ArtifactStoreFailed, match="could not take 102,416 bytes"):
        stored(ArtifactStore(nowhere), build)


def test_a_full_cache_is_not_a_bad_version(
    place: ArtifactStoreSettings, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(place)
    published = stored(store, build)

    def full(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Objects(place).filesystem, "get_file", full)
    with pytest.raises(ArtifactStoreFailed, match=r"102,416 bytes\); [\d,]+ bytes are free.*space"):
        store.resolve(published)
    assert not list(place.cache.iterdir())


def test_a_local_version_is_loaded_in_place(place: ArtifactStoreSettings, build: Path) -> None:
    local = place.cache.parent / "local"
    published = stored(ArtifactStore(local), build)
    assert Path(ArtifactStore(place).resolve(published)).is_relative_to(local)
    with pytest.raises(ArtifactRejected, match="reads no"):
        ArtifactStore(local).resolve(stored(ArtifactStore(place), build))


def test_a_store_that_needs_an_extra_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigurationError, match=r"feedloom\[gcs\]"):
        ArtifactStore(ArtifactStoreSettings(url="gs://bucket/x", cache=tmp_path))
    with pytest.raises(ConfigurationError, match="no store has the scheme 'http'"):
        ArtifactStore(ArtifactStoreSettings(url="http://host/x", cache=tmp_path))


def test_places_are_below_the_home_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(home=tmp_path)
    assert settings.artifacts.url == str(tmp_path / "artifacts")
    assert settings.artifacts.cache == tmp_path / "artifact-cache"
    moved = settings.model_copy(update={"home": tmp_path / "moved"})
    assert moved.artifacts.url == str(tmp_path / "moved" / "artifacts")
    monkeypatch.setenv("FEEDLOOM_ARTIFACT_STORE__URL", "s3://bucket/x")
    monkeypatch.setenv("FEEDLOOM_ARTIFACT_STORE__CACHE", "elsewhere")
    given = load_settings(home=tmp_path).artifacts
    assert (given.url, given.cache) == ("s3://bucket/x", Path("elsewhere"))
