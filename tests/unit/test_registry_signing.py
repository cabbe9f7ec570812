"""Signed versions: what the key's owner signed is loaded, and nothing else once a key is set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import hashing, signing

from infra.contracts.errors import ConfigurationError
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.errors import ArtifactRejected
from infra.registry.manifest import SIGNATURE, manifest_of
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.settings import ArtifactStoreSettings, load_settings
from trainer.version_commands import verify


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
    (folder / "deep" / "tokenizer.json").write_text("{}")
    (folder / ".gitattributes").write_text("of a hub snapshot")
    return folder


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A new pair: the private key's file, the public key's."""
    pair = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        pair.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        pair.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStoreSettings:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path}/store"
    return ArtifactStoreSettings(url=url, cache=tmp_path / "cache")


def store_at(
    place: ArtifactStoreSettings, *, signing: Path | None = None, public: Path | None = None
) -> ArtifactStore:
    return ArtifactStore(place.model_copy(update={"signing_key": signing, "public_key": public}))


def stored(store: ArtifactStore, folder: Path, version: str = "1") -> ModelVersionPublished:
    uri, manifest = store.put(folder, model="m", version=version)
    return ModelVersionPublished(
        model="m",
        version=version,
        kind="full",
        artifact_uri=uri,
        manifest=manifest,
        created_at_ms=0,
    )


def test_a_signed_version_is_loaded(
    tmp_path: Path, place: ArtifactStoreSettings, build: Path
) -> None:
    private, public = keys(tmp_path, "ours")
    published = stored(store_at(place, signing=private), build)
    verifying = store_at(place, public=public)
    folder = verifying.resolve(published)
    assert Path(folder, SIGNATURE).is_file()
    assert SIGNATURE not in {file.path for file in published.manifest}
    assert manifest_of(Path(folder)) == published.manifest == manifest_of(build)
    assert verifying.signature_of(folder) == "signature verified"
    trusting = store_at(place)
    assert "not verified" in trusting.signature_of(trusting.resolve(published))


def test_without_a_signature_nothing_is_loaded_once_a_key_is_set(
    tmp_path: Path, place: ArtifactStoreSettings, build: Path
) -> None:
    _, public = keys(tmp_path, "ours")
    store = store_at(place)
    published = stored(store, build)
    assert store.signature_of(store.resolve(published)) == "not signed"
    with pytest.raises(ArtifactRejected, match="is not signed"):
        store_at(place, public=public).resolve(published)
    hub = msgspec.structs.replace(published, artifact_uri="hf://org/name", manifest=())
    with pytest.raises(ArtifactRejected, match="nobody signed"):
        store_at(place, public=public).resolve(hub)


def test_another_keys_signature_is_refused(
    tmp_path: Path, place: ArtifactStoreSettings, build: Path
) -> None:
    (theirs, _), (ours, public) = keys(tmp_path, "theirs"), keys(tmp_path, "ours")
    published = stored(store_at(place, signing=theirs), build)
    with pytest.raises(ArtifactRejected, match="Key mismatch"):
        store_at(place, public=public).resolve(published)
    # Put again by the right hands, the same content gets their signature.
    assert stored(store_at(place, signing=ours), build) == published
    store_at(place, public=public).resolve(published)


def test_the_signature_of_other_files_is_refused(tmp_path: Path, build: Path) -> None:
    private, public = keys(tmp_path, "ours")
    place = ArtifactStoreSettings(url=str(tmp_path / "store"))
    first = stored(store_at(place, signing=private), build)
    (build / "weights.safetensors").write_bytes(b"other weights")
    second = stored(store_at(place), build, "2")
    folders = [Path(store_at(place).resolve(version)) for version in (first, second)]
    shutil.copy(folders[0] / SIGNATURE, folders[1] / SIGNATURE)
    with pytest.raises(ArtifactRejected, match="mismatch"):
        store_at(place, public=public).resolve(second)


def test_a_signature_that_leaves_a_file_out_is_refused(tmp_path: Path, build: Path) -> None:
    private, public = keys(tmp_path, "ours")
    place = ArtifactStoreSettings(url=str(tmp_path / "store"))
    published = stored(store_at(place), build)
    folder = Path(store_at(place).resolve(published))
    partial = hashing.Config().set_ignored_paths(paths=["deep"], ignore_git_paths=False)
    config = signing.Config().use_elliptic_key_signer(private_key=private)
    config.set_hashing_config(partial).sign(folder, folder / SIGNATURE)
    with pytest.raises(ArtifactRejected, match=r"does not cover deep/tokenizer\.json"):
        store_at(place, public=public).resolve(published)


def test_a_signature_file_that_is_none_is_refused(tmp_path: Path, build: Path) -> None:
    private, public = keys(tmp_path, "ours")
    place = ArtifactStoreSettings(url=str(tmp_path / "store"))
    published = stored(store_at(place, signing=private), build)
    signature = Path(store_at(place).resolve(published), SIGNATURE)
    bundle = json.loads(signature.read_text())
    unsigned = {**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], "signatures": []}}
    payload = {**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], "payload": "e30="}}
    for content in (b"", b"\xff", b"{}", b"[]", b"[" * 100_000, b'{"verificationMaterial": {}}'):
        signature.write_bytes(content)
        with pytest.raises(ArtifactRejected, match="is not one of these files"):
            store_at(place, public=public).resolve(published)
    for changed in (unsigned, payload):
        signature.write_text(json.dumps(changed))
        with pytest.raises(ArtifactRejected, match="is not one of these files"):
            store_at(place, public=public).resolve(published)


def test_models_verify_reports_the_signature(
    tmp_path: Path, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys(tmp_path, "ours")
    _, other = keys(tmp_path, "other")
    place = load_settings(home=tmp_path).artifacts
    state = RegistryState()
    state.apply(stored(store_at(place, signing=private), build))
    (build / "weights.safetensors").write_bytes(b"other weights")
    state.apply(stored(store_at(place), build, "2"))
    monkeypatch.setattr("trainer.version_commands.registry_state", lambda: state)
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))
    said = CliRunner().invoke(verify, [])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert "as published; signature not verified" in lines[0]
    assert "as published; not signed" in lines[1]
    monkeypatch.setenv("FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY", str(public))
    said = CliRunner().invoke(verify, [])
    assert said.exit_code == 1
    assert "as published; signature verified" in said.output.splitlines()[0]
    assert "m@2: " in said.output
    assert "is not signed" in said.output
    monkeypatch.setenv("FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY", str(other))
    assert "Key mismatch" in CliRunner().invoke(verify, ["m@1"]).output


def test_a_key_that_is_none_is_a_setting_to_change(tmp_path: Path) -> None:
    private, public = keys(tmp_path, "ours")
    pair = rsa.generate_private_key(65537, 2048).public_key()
    other = tmp_path / "rsa.pub"
    other.write_bytes(
        pair.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    place = ArtifactStoreSettings(url=str(tmp_path / "store"))
    for bad in (tmp_path / "nowhere.pem", public):
        with pytest.raises(ConfigurationError, match="SIGNING_KEY"):
            store_at(place, signing=bad)
    for bad in (tmp_path / "nowhere.pub", private, other):
        with pytest.raises(ConfigurationError, match="PUBLIC_KEY"):
            store_at(place, public=bad)
