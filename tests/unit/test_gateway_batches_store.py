"""The file store: whole files or none, in a folder and in an object store."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from infra.contracts.errors import ConfigurationError
from producers.gateway.batches.errors import FileMissing, FileStoreFailed
from producers.gateway.batches.store import FileStore, fetch, file_store


class Failing(io.RawIOBase):
    """A stream that breaks after its first block."""

    def __init__(self) -> None:
        self._left = 1

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            raise OSError("the source broke")
        self._left -= 1
        return b"begun"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3", use_listings_cache=False).mkdir("files")
        yield "files"
    server.stop()


@pytest.fixture(params=["folder", "url", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "s3":
        return file_store(f"s3://{request.getfixturevalue('bucket')}/{uuid.uuid4().hex} ü")
    places = {
        "folder": str(tmp_path / "some files"),
        "url": (tmp_path / "some files").as_uri(),
        "memory": f"memory://{uuid.uuid4().hex}/files",
    }
    return file_store(places[request.param])


def read(store: FileStore, name: str) -> bytes:
    with store.open(name) as stream:
        return stream.read()


def test_a_file_is_kept_replaced_and_removed(store: FileStore, tmp_path: Path) -> None:
    store.put("file-1", io.BytesIO(b"first"))
    store.put("file-2", io.BytesIO(b""))
    store.put("file-1", io.BytesIO(b"second" * 500_000))
    assert read(store, "file-1") == b"second" * 500_000
    assert read(store, "file-2") == b""
    fetch(store, "file-1", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second" * 500_000
    store.delete("file-1")
    store.delete("file-1")
    with pytest.raises(FileMissing):
        store.open("file-1")
    with pytest.raises(FileMissing):
        fetch(store, "file-1", tmp_path / "copy")


def test_a_file_that_breaks_off_is_not_there(store: FileStore) -> None:
    with pytest.raises(FileStoreFailed, match="the source broke"):
        store.put("file-1", Failing())  # type: ignore[arg-type]
    with pytest.raises(FileMissing):
        store.open("file-1")
    store.put("file-1", io.BytesIO(b"kept"))
    with pytest.raises(FileStoreFailed):
        store.put("file-1", Failing())  # type: ignore[arg-type]
    assert read(store, "file-1") == b"kept"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileStoreFailed, match="bytes are free"):
        file_store(str(tmp_path / "file")).put("a", io.BytesIO(b"x"))


def test_a_scheme_that_no_store_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="FEEDLOOM_GATEWAY__FILES_URL"):
        file_store("ftp://host/files")
