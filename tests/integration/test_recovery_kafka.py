"""The restore drill: a platform is backed up, its broker destroyed, and a new one made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record, read_to_end
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten
from infra.contracts.events.gateway import FileChanged
from infra.contracts.events.model import (
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    RolloutChanged,
    RolloutDecided,
)
from infra.contracts.events.platform import ApiKeyChanged, ConfigChanged
from infra.identity.authenticator import PlatformAuthenticator
from infra.identity.key_topic import KeysWatcher, create_key, read_keys, revoke_key
from infra.identity.principal import Unauthenticated
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.recovery import scope
from infra.recovery.archive import read_backup
from infra.recovery.commands import backup as command
from infra.recovery.errors import BackupRejected, RestoreRefused
from infra.recovery.places import Folder
from infra.recovery.restoring import execute, plan_restore
from infra.recovery.snapshot import MANIFEST, SavedRecord
from infra.recovery.writing import KafkaRecordWriter, Pending
from infra.registry.client import publish_rollout, publish_version, read_registry, send
from infra.registry.config import ConfigWatcher, publish_config, read_config
from infra.registry.config_history import PastChange, read_history
from infra.registry.store import ArtifactStore
from infra.rollouts.decisions import publish_decision, read_decisions
from infra.settings import GatewaySettings, KafkaSettings
from tests.conftest import PARTITIONS, embedded_broker
from tests.recovering import batch, decided
from trainer.intake import FeedbackIntake, in_use, next_offsets

from .conftest import child_environment

pytestmark = pytest.mark.kafka

DAY_MS = catalogue.DAY_MS
PREFIX = "eu."
LEARNT = 40
"""Offsets of a partition of feedback that the newest version has learnt from."""


@dataclass(frozen=True)
class Seen:
    """What the platform's readers make of its topics."""

    versions: list[ModelVersionPublished]
    rollout: RolloutChanged | None
    settings: list[ConfigChanged]
    history: list[PastChange]
    keys: list[ApiKeyChanged]
    decisions: list[RolloutDecided]

    @classmethod
    def on(cls, bus: Bus) -> Seen:
        registry = read_registry(bus)
        return cls(
            versions=registry.versions("default"),
            rollout=registry.rollout("default"),
            settings=read_config(bus).changes(),
            history=read_history(bus),
            keys=read_keys(bus).keys(),
            decisions=read_decisions(bus),
        )


class Platform:
    """What a platform leaves on its topics and in its store, by its own calls."""

    def __init__(self, kafka: KafkaSettings, home: Path) -> None:
        self.kafka = kafka
        self.bus = KafkaBus(kafka)
        self.home = home
        self.key = ""
        self.revoked = ""

    def fill(self) -> None:
        publisher = self.bus.publisher()
        store = ArtifactStore(self.home / "artifacts")
        build = self.home / "build"
        build.mkdir()
        for number in range(1, 4):
            (build / "weights").write_bytes(b"%d" % number * 1_000)
            uri, manifest = store.put(build, model="default", version=str(number))
            spans = tuple(
                OffsetRange(
                    topic=catalogue.EXAMPLES.name,
                    partition=partition,
                    start=0,
                    end=LEARNT * number // 3,
                )
                for partition in range(PARTITIONS)
            )
            publish_version(
                publisher,
                ModelVersionPublished(
                    model="default",
                    version=str(number),
                    kind="full",
                    artifact_uri=uri,
                    manifest=manifest,
                    created_at_ms=number,
                    lineage=Lineage(
                        parent=str(number - 1) if number > 1 else None,
                        feedback=spans if number > 1 else (),
                    ),
                ),
            )
            publish_rollout(
                publisher,
                RolloutChanged(
                    model="default", revision=number, stable=str(number), changed_at_ms=number
                ),
            )
        publish_decision(publisher, decided(2, "promote", "better", acted=True))
        self._configure()
        self._make_keys()
        file = FileChanged(
            file_id="file-1",
            tenant="acme",
            filename="in.jsonl",
            purpose="batch",
            size=1,
            created_at_ms=1,
        )
        forgotten = [FeedbackForgotten(request_id=f"r{n}", forgotten_at_ms=1) for n in range(9)]
        others: list[tuple[str, str, Event]] = [
            (catalogue.FILES.name, "file-1", file),
            (catalogue.BATCHES.name, "batch_1", batch(1, "completed")),
            *((catalogue.FORGOTTEN.name, one.request_id, one) for one in forgotten),
        ]
        for topic, key, event in others:
            send(publisher, topic, key, event).result(30)
        publisher.close()
        # As old as anything on this topic may be, or nearly.
        writer = KafkaRecordWriter(self.kafka)
        writer.write(
            catalogue.DECISIONS.name,
            SavedRecord(
                partition=0,
                offset=1,
                timestamp_ms=time.time_ns() // 1_000_000 - 300 * DAY_MS,
                key=b"default",
                value=b"unreadable",
                headers=(("ce_id", b"\x00\xff"),),
            ),
        ).offset()
        writer.close()

    def _configure(self) -> None:
        watcher, publisher = ConfigWatcher(self.bus), self.bus.publisher()
        for text in ("5", "6"):
            publish_config(publisher, watcher, "worker.max_waiting", text, now_ms=1, actor="ann")
        publish_config(publisher, watcher, "tenants.acme.weight", "2.5", now_ms=2)
        publisher.publish(catalogue.CONFIG.name, key=b"tenants.x.weight", value=None).result(30)
        publisher.close()
        watcher.close()

    def _make_keys(self) -> None:
        watcher, publisher = KeysWatcher(self.bus), self.bus.publisher()
        good, bad = (
            create_key(publisher, watcher, tenant="acme", name=name, roles=("caller",), now_ms=1)
            for name in ("app", "lost")
        )
        revoke_key(publisher, watcher, bad.key.key_id, now_ms=2, reason="leaked")
        self.key, self.revoked = good.key.text, bad.key.text
        publisher.close()
        watcher.close()


def records_of(bus: Bus) -> dict[str, list[Record]]:
    """Every record of the topics that are backed up, partition by partition."""
    found = {spec.name: read_to_end(bus, spec.name) for spec in scope.CONTROL}
    return {name: sorted(records, key=_place) for name, records in found.items()}


def _place(record: Record) -> tuple[int, int]:
    return record.partition, record.offset


@contextmanager
def environment(kafka: KafkaSettings, home: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        for name, value in child_environment(home, kafka).items():
            patch.setenv(name, value)
        patch.setenv("FEEDLOOM_KAFKA__PARTITIONS", str(PARTITIONS))
        yield


def run(kafka: KafkaSettings, home: Path, *arguments: str) -> Result:
    """``feedloom backup`` with these arguments."""
    with environment(kafka, home):
        return CliRunner().invoke(command, list(arguments))


def done(kafka: KafkaSettings, home: Path, *arguments: str) -> str:
    found = run(kafka, home, *arguments)
    assert found.exit_code == 0, f"{found.output} {found.exception!r}"
    print(found.output)  # noqa: T201 - what a drill is for
    return found.output


class Dying:
    """A writer whose process dies at a record."""

    def __init__(self, kafka: KafkaSettings, *, at: int) -> None:
        self._writer = KafkaRecordWriter(kafka)
        self._left = at

    def write(self, topic: str, record: SavedRecord) -> Pending:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        return self._writer.write(topic, record)

    def close(self) -> None:
        self._writer.close()


@pytest.mark.slow
async def test_a_platform_outlives_its_broker(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Prints what the commands print, and how long they took (``-s``)."""
    with embedded_broker(tmp_path_factory.mktemp("lost-broker")) as broker:
        status = broker.status()
        assert status is not None
        kafka = broker.settings(status).model_copy(update={"topic_prefix": PREFIX})
        apply_catalogue(kafka, partitions=PARTITIONS)
        platform = Platform(kafka, tmp_path)
        platform.fill()
        records, seen = records_of(platform.bus), Seen.on(platform.bus)
        assert all(records.values()), "each topic of the backup has something on it"
        done(kafka, tmp_path, "create", "kept")
        saved = read_backup(Folder(tmp_path / "kept"))

        broker.reset()
        kafka = broker.settings(broker.start(attached=True)).model_copy(
            update={"topic_prefix": PREFIX}
        )
        done(kafka, tmp_path, "verify", "kept", "--artifacts")
        told = done(kafka, tmp_path, "restore", "kept", "--dry-run")
        assert "nothing was written" in told
        apply_catalogue(kafka, partitions=PARTITIONS)
        bus = KafkaBus(kafka)
        dying = Dying(kafka, at=LEARNT * PARTITIONS + 7)
        with pytest.raises(KeyboardInterrupt):
            execute(
                plan_restore(bus, saved, now_ms=saved.manifest.ended_at_ms),
                dying,
                say=lambda line: None,
            )
        dying.close()
        told = done(kafka, tmp_path, "restore", "kept")
        assert "all of it reads as in the backup" in told
        assert "\n0 records written" in done(kafka, tmp_path, "restore", "kept")

        assert records_of(bus) == records
        assert Seen.on(bus) == seen
        assert seen.rollout is not None
        assert [one.version for one in seen.versions] == ["1", "2", "3"]
        gateway = PlatformAuthenticator(bus, GatewaySettings())
        assert (await gateway.authenticate(platform.key)).tenant == "acme"
        with pytest.raises(Unauthenticated, match="was revoked"):
            await gateway.authenticate(platform.revoked)
        gateway.close()
        check_new_feedback_is_learnt(bus)

        done(kafka, tmp_path, "create", "again")
        again = read_backup(Folder(tmp_path / "again"))
        assert again.manifest.cluster_id != saved.manifest.cluster_id
        assert {
            topic: [one.content for one in found] for topic, found in again.records.items()
        } == {topic: [one.content for one in found] for topic, found in saved.records.items()}


def check_new_feedback_is_learnt(bus: KafkaBus) -> None:
    """On a topic that began at 0 again, by a trainer whose position is beyond that."""
    publisher, registry = bus.publisher(), read_registry(bus)
    names = {f"new-{number}" for number in range(12)}
    for name in names:
        example = FeedbackExample(
            request_id=name,
            prompt="p",
            output="o",
            model="default",
            model_versions=("3",),
            feedback_ids=("f",),
            updated_at_ms=1,
            ups=1,
        )
        send(publisher, catalogue.EXAMPLES.name, name, example).result(30)
    publisher.close()
    intake = FeedbackIntake(
        bus,
        model="default",
        used=next_offsets(in_use(registry, "default")),
        tried=next_offsets(registry.versions("default")),
    )
    intake.catch_up(60)
    assert {one.request_id for one in intake.batch().examples} == names
    assert intake.waiting == len(names)
    intake.close()


def test_only_a_whole_backup_is_restored_and_only_to_an_empty_platform_or_merged(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    """Under another prefix of the same broker, too."""
    platform = Platform(kafka_settings, tmp_path)
    platform.fill()
    done(kafka_settings, tmp_path, "create", "kept")
    other = kafka_settings.model_copy(
        update={"topic_prefix": f"{kafka_settings.topic_prefix}other."}
    )
    apply_catalogue(other, partitions=PARTITIONS)
    bus = KafkaBus(other)
    publisher = bus.publisher()
    newer = RolloutChanged(model="default", revision=9, stable="1", changed_at_ms=9)
    publish_rollout(publisher, newer)
    publisher.close()
    check_refused_unless_whole(other, tmp_path)
    refused = run(other, tmp_path, "restore", "kept")
    assert isinstance(refused.exception, RestoreRefused)
    assert "model.rollouts/0" in str(refused.exception)
    assert read_registry(bus).versions("default") == []
    done(other, tmp_path, "restore", "kept", "--merge")
    here, there = read_registry(bus), read_registry(platform.bus)
    assert here.versions("default") == there.versions("default")
    assert here.rollout("default") == newer
    assert read_keys(bus).keys() == read_keys(platform.bus).keys()
    assert read_config(bus).changes() == read_config(platform.bus).changes()


def check_refused_unless_whole(kafka: KafkaSettings, home: Path) -> None:
    """Whatever is on the platform."""
    file, manifest = home / "kept" / "model.rollouts.jsonl", home / "kept" / MANIFEST
    whole, said = file.read_bytes(), manifest.read_bytes()
    for spoilt in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:]):
        file.write_bytes(spoilt)
        refused = run(kafka, home, "restore", "kept")
        assert isinstance(refused.exception, BackupRejected)
        assert str(file) in str(refused.exception)
    file.write_bytes(whole)
    manifest.unlink()
    refused = run(kafka, home, "restore", "kept")
    assert isinstance(refused.exception, BackupRejected)
    assert f"{MANIFEST} is missing" in str(refused.exception)
    manifest.write_bytes(said)
