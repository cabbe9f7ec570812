"""A backup as files: any bytes come back, and what is not whole is refused by name."""

from __future__ import annotations

import stat
import subprocess
import uuid
from contextlib import suppress
from itertools import product
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from infra.files import STAGING
from infra.recovery import snapshot
from infra.recovery.archive import read_backup, write_backup
from infra.recovery.commands import backup as command
from infra.recovery.errors import BackupRejected, BackupStoreFailed
from infra.recovery.places import Folder, Place, place
from infra.recovery.snapshot import (
    FORMAT,
    MANIFEST,
    SUMS,
    Backup,
    BackupManifest,
    SavedRecord,
    SavedTopic,
)
from infra.registry.errors import ArtifactRejected
from infra.registry.signing import Signer, Verifier

records = st.builds(
    SavedRecord,
    partition=st.integers(0, 3),
    offset=st.integers(0, 2**40),
    timestamp_ms=st.integers(-1, 2**50),
    key=st.none() | st.binary(max_size=40),
    value=st.none() | st.binary(max_size=200),
    headers=st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=40)), max_size=4).map(
        tuple
    ),
)
partitions = st.lists(records, max_size=12, unique_by=lambda one: (one.partition, one.offset)).map(
    lambda found: tuple(sorted(found, key=lambda one: (one.partition, one.offset)))
)


def made(topics: dict[str, tuple[SavedRecord, ...]]) -> Backup:
    return Backup(
        manifest=BackupManifest(
            format=FORMAT,
            feedloom_version="1.2.3",
            cluster_id="c1",
            topic_prefix="eu.",
            began_at_ms=1,
            ended_at_ms=2,
            topics=tuple(
                SavedTopic(
                    name=name,
                    cleanup_policy="compact",
                    ends=tuple(
                        max((one.offset + 1 for one in found if one.partition == number), default=0)
                        for number in range(4)
                    ),
                    records=len(found),
                )
                for name, found in topics.items()
            ),
        ),
        records=topics,
    )


def record(offset: int, key: bytes, value: bytes | None) -> SavedRecord:
    return SavedRecord(
        partition=0,
        offset=offset,
        timestamp_ms=1_000 + offset,
        key=key,
        value=value,
        headers=(("ce_id", b"\xff\x00"),),
    )


SAMPLE = made(
    {
        "model.registry": (record(0, b"default/1", b'{"a":1}'), record(7, b"default/2", None)),
        "model.rollouts": (record(3, b"default", b"\xfe\xff"),),
        "platform.keys": (),
    }
)


class Kept:
    """A place without a disk, whose files a test can spoil."""

    where = "kept"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def names(self) -> set[str]:
        return set(self.files)

    def put(self, source: Path, name: str) -> None:
        self.files[name] = source.read_bytes()

    def get(self, name: str, target: Path) -> None:
        target.write_bytes(self.files[name])


@pytest.fixture(params=["folder", "memory"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    here = str(tmp_path / "b ü") if request.param == "folder" else f"memory://x/{uuid.uuid4().hex}"
    return place(here)


def pair(folder: Path, name: str) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@given(st.dictionaries(st.sampled_from(["a.b", "c", "platform.keys"]), partitions))
def test_any_keys_values_tombstones_and_headers_come_back(
    topics: dict[str, tuple[SavedRecord, ...]],
) -> None:
    saved, kept = made(topics), Kept()
    write_backup(saved, kept)
    assert read_backup(kept) == saved


def test_a_backup_is_the_same_anywhere(anywhere: Place) -> None:
    write_backup(SAMPLE, anywhere)
    assert read_backup(anywhere) == SAMPLE
    assert anywhere.names() == {
        "model.registry.jsonl",
        "model.rollouts.jsonl",
        "platform.keys.jsonl",
        MANIFEST,
        SUMS,
    }


def test_a_backup_is_not_written_over_but_a_half_written_one_is(anywhere: Place) -> None:
    class Dying:
        """Dies before the last file."""

        where = anywhere.where
        names = staticmethod(anywhere.names)
        get = staticmethod(anywhere.get)

        def put(self, source: Path, name: str) -> None:
            if name == SUMS:
                raise KeyboardInterrupt
            anywhere.put(source, name)

    with pytest.raises(KeyboardInterrupt):
        write_backup(made({"model.registry": (record(0, b"k", b"another"),)}), Dying())
    with pytest.raises(BackupRejected, match="never finished"):
        read_backup(anywhere)
    write_backup(SAMPLE, anywhere)
    with pytest.raises(BackupRejected, match="is a backup already"):
        write_backup(SAMPLE, anywhere)
    assert read_backup(anywhere) == SAMPLE


def test_two_writers_of_one_place_are_found_out(tmp_path: Path) -> None:
    here = Folder(tmp_path)

    class Raced(Folder):
        def put(self, source: Path, name: str) -> None:
            super().put(source, name)
            if name == SUMS:
                (tmp_path / SUMS).unlink()
                write_backup(made({"a": (record(0, b"k", b"v"),)}), here)

    with pytest.raises(BackupRejected, match="somebody else"):
        write_backup(SAMPLE, Raced(tmp_path))


@given(st.data())
def test_one_flipped_bit_in_any_file_is_refused_and_named(data: st.DataObject) -> None:
    kept = Kept()
    write_backup(SAMPLE, kept)
    name = data.draw(st.sampled_from(sorted(one for one in kept.files if kept.files[one])))
    content = bytearray(kept.files[name])
    at = data.draw(st.integers(0, len(content) - 1), label="byte")
    content[at] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    kept.files[name] = bytes(content)
    with pytest.raises(BackupRejected) as raised:
        read_backup(kept)
    assert "kept" in str(raised.value)
    # A sum that no longer fits may be the file's fault or the sum's.
    assert name == SUMS or name in str(raised.value)


def test_no_flipped_bit_of_the_sums_goes_unnoticed() -> None:
    """Not that of a line's end neither, which others than a newline may look like."""
    sums = {"a.jsonl": snapshot.sha256(b"a"), "b.jsonl": snapshot.sha256(b"b")}
    content = snapshot.encode_sums({"a.jsonl": b"a", "b.jsonl": b"b"})
    assert snapshot.decode_sums(content) == sums
    for at, bit in product(range(len(content)), range(8)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << bit
        with suppress(BackupRejected):
            assert snapshot.decode_sums(bytes(flipped)) != sums, (at, bit)


@given(st.data())
def test_a_file_cut_short_is_refused_and_named(data: st.DataObject) -> None:
    kept = Kept()
    write_backup(SAMPLE, kept)
    name = data.draw(st.sampled_from(sorted(one for one in kept.files if kept.files[one])))
    content = kept.files[name]
    kept.files[name] = content[: data.draw(st.integers(0, len(content) - 1), label="left")]
    with pytest.raises(BackupRejected) as raised:
        read_backup(kept)
    assert name == SUMS or name in str(raised.value)


@pytest.mark.parametrize("file", ["model.rollouts.jsonl", "platform.keys.jsonl", MANIFEST, SUMS])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    write_backup(SAMPLE, Folder(tmp_path))
    (tmp_path / file).unlink()
    with pytest.raises(BackupRejected, match=file):
        read_backup(Folder(tmp_path))


def test_no_backup_is_said_to_be_none(anywhere: Place) -> None:
    with pytest.raises(BackupRejected, match="there is no backup"):
        read_backup(anywhere)


def rewritten(folder: Path, **changes: object) -> None:
    """Another manifest, with sums that fit."""
    document = msgspec.json.decode((folder / MANIFEST).read_bytes()) | changes
    (folder / MANIFEST).write_bytes(msgspec.json.encode(document))
    names = [one.name for one in folder.iterdir() if one.name != SUMS]
    (folder / SUMS).write_bytes(
        snapshot.encode_sums({name: (folder / name).read_bytes() for name in names})
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 2}, "of format 2, and this release reads format 1"),
        ({"format": None}, "no manifest of a backup"),
        ({"topics": "all"}, "no manifest of a backup"),
        ({"topics": []}, r"lists [a-z.]+\.jsonl, of which manifest.json says nothing"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    write_backup(SAMPLE, Folder(tmp_path))
    rewritten(tmp_path, **changes)
    with pytest.raises(BackupRejected, match=complaint):
        read_backup(Folder(tmp_path))


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (b"", "holds 0 records; the manifest says 1"),
        (b"{}\n", "holds a line that is no record"),
        (
            snapshot.encode_records([record(9, b"default", b"x")]),
            "holds a record at 0/9, which is not below an end",
        ),
        (snapshot.encode_records([record(1, b"k", b"x")] * 2), "holds 2 records"),
    ],
)
def test_records_that_the_manifest_does_not_speak_of_are_refused(
    tmp_path: Path, lines: bytes, complaint: str
) -> None:
    write_backup(SAMPLE, Folder(tmp_path))
    (tmp_path / "model.rollouts.jsonl").write_bytes(lines)
    rewritten(tmp_path)
    with pytest.raises(BackupRejected, match=f"model.rollouts.jsonl {complaint}"):
        read_backup(Folder(tmp_path))


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", ".hidden", "a/b"])
def test_a_sum_names_no_file_elsewhere(tmp_path: Path, name: str) -> None:
    write_backup(SAMPLE, Folder(tmp_path))
    with (tmp_path / SUMS).open("a") as stream:
        stream.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(BackupRejected, match="no sum of a file"):
        read_backup(Folder(tmp_path))


def test_sha256sum_checks_a_backup_without_us(tmp_path: Path) -> None:
    write_backup(SAMPLE, Folder(tmp_path))
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", SUMS], cwd=tmp_path, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(": OK") == 4


def test_files_of_a_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "backup"
    write_backup(SAMPLE, Folder(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o600}


def test_what_a_dead_writer_staged_is_no_file(tmp_path: Path) -> None:
    (tmp_path / f".{SUMS}.1{STAGING}").write_text("half")
    assert Folder(tmp_path).names() == set()
    write_backup(SAMPLE, Folder(tmp_path))
    assert read_backup(Folder(tmp_path)) == SAMPLE


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackupStoreFailed, match="file"):
        write_backup(SAMPLE, Folder(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="the backup: no store has the scheme 'ftp'"):
        place("ftp://host/backup")


def test_with_a_key_only_what_its_pair_signed_is_read(anywhere: Place, tmp_path: Path) -> None:
    private, public = pair(tmp_path, "ours")
    _, other = pair(tmp_path, "theirs")
    write_backup(SAMPLE, anywhere, signer=Signer(private))
    assert read_backup(anywhere, verifier=Verifier(public)) == SAMPLE
    # Without a key, a signature is in nobody's way.
    assert read_backup(anywhere) == SAMPLE
    with pytest.raises(ArtifactRejected, match="not one of these files by the key"):
        read_backup(anywhere, verifier=Verifier(other))


def test_with_a_key_an_unsigned_backup_and_a_changed_one_are_refused(tmp_path: Path) -> None:
    private, public = pair(tmp_path, "ours")
    plain, signed = tmp_path / "plain", tmp_path / "signed"
    write_backup(SAMPLE, Folder(plain))
    with pytest.raises(ArtifactRejected, match="is not signed"):
        read_backup(Folder(plain), verifier=Verifier(public))
    write_backup(SAMPLE, Folder(signed), signer=Signer(private))
    # Whoever can write there can make the sums fit; the signature does not.
    rewritten(signed, cluster_id="another")
    (signed / SUMS).write_bytes(
        b"".join(
            line
            for line in (signed / SUMS).read_bytes().splitlines(keepends=True)
            if b"model.sig" not in line
        )
    )
    assert read_backup(Folder(signed)).manifest.cluster_id == "another"
    with pytest.raises(ArtifactRejected, match="not one of these files by the key"):
        read_backup(Folder(signed), verifier=Verifier(public))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_show_and_verify_at_the_command_line(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = pair(elsewhere, "ours")
    write_backup(SAMPLE, Folder(elsewhere / "b"), signer=Signer(private))
    shown = CliRunner().invoke(command, ["show", "b"])
    assert shown.exit_code == 0, shown.output
    assert "of cluster c1, topic prefix eu., by feedloom 1.2.3" in shown.output
    assert "signature not verified" in shown.output
    monkeypatch.setenv("FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY", str(public))
    verified = CliRunner().invoke(command, ["verify", "b"])
    assert verified.exit_code == 0, verified.output
    assert f"{elsewhere / 'b'} is whole: 3 topics, 3 records; signature verified" in verified.output


def test_verify_fails_on_a_backup_that_is_not_whole(elsewhere: Path) -> None:
    write_backup(SAMPLE, Folder(elsewhere / "b"))
    (elsewhere / "b" / "model.rollouts.jsonl").write_text("")
    found = CliRunner().invoke(command, ["verify", "b"])
    assert isinstance(found.exception, BackupRejected)
    assert "model.rollouts.jsonl has changed" in str(found.exception)


@pytest.mark.parametrize("given_text", ["old", "=new", "old="])
def test_a_relocation_is_two_beginnings(elsewhere: Path, given_text: str) -> None:
    write_backup(SAMPLE, Folder(elsewhere / "b"))
    found = CliRunner().invoke(command, ["verify", "b", "--artifacts-at", given_text])
    assert found.exit_code == 2
    assert "OLD=NEW" in found.output
