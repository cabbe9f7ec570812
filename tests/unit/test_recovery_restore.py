"""What a restore writes, when it refuses, and that it goes on: on a bus in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import codec
from infra.contracts.bus import Bus, Record, TopicPartition
from infra.contracts.catalogue import (
    BATCHES,
    CATALOGUE,
    CONFIG,
    DAY_MS,
    DECISIONS,
    EXAMPLES,
    FILES,
    FORGOTTEN,
    KEYS,
    REGISTRY,
    ROLLOUTS,
    all_topics,
)
from infra.contracts.errors import FatalError
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten
from infra.contracts.events.gateway import BatchChanged, FileChanged
from infra.contracts.events.model import (
    ArtifactFile,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    RolloutChanged,
)
from infra.contracts.events.platform import ApiKeyChanged
from infra.identity import hashing
from infra.identity.key_topic import KeysWatcher, create_key, read_keys, revoke_key
from infra.recovery import scope
from infra.recovery.artifacts import check_artifacts, relocated
from infra.recovery.errors import BackupRejected, RestoreDisturbed, RestoreRefused
from infra.recovery.placing import FILLER_KEY, Layout
from infra.recovery.reading import read_whole
from infra.recovery.references import dangling
from infra.recovery.restoring import compare, execute, plan_restore
from infra.recovery.snapshot import Backup, SavedRecord
from infra.recovery.taking import take_backup
from infra.recovery.writing import Pending
from infra.registry.client import publish_rollout, publish_version, read_registry, send
from infra.registry.config import ConfigWatcher, publish_config, read_config
from infra.registry.config_history import read_history
from infra.registry.store import ArtifactStore
from infra.rollouts.decisions import read_decisions
from infra.testing import InMemoryBus, InMemoryReader, murmur2
from tests.recovering import batch, decided
from trainer.intake import FeedbackIntake, in_use, next_offsets

NOW_MS = 1_800_000_000_000


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "hashed", lambda secret: HASH)


HASH = hashing.hashed("of a test")


@dataclass(frozen=True)
class Written:
    """A record that has come to lie."""

    at: int

    def offset(self) -> int:
        return self.at


class MemoryWriter:
    """Appends with the record's own timestamp. ``fail_at``: dies at that record."""

    def __init__(self, bus: InMemoryBus, *, fail_at: int | None = None) -> None:
        self._bus = bus
        self._left = fail_at
        self.written = 0

    def write(self, topic: str, record: SavedRecord) -> Pending:
        if self._left is not None:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
        log = self._bus.log_of(topic)[record.partition]
        log.append(
            Record(
                topic=topic,
                partition=record.partition,
                offset=len(log),
                timestamp_ms=record.timestamp_ms,
                key=record.key,
                value=record.value,
                headers=record.headers,
            )
        )
        self.written += 1
        return Written(len(log) - 1)

    def close(self) -> None:
        pass


def version(name: str, *, parent: str | None = None, end: int = 0) -> ModelVersionPublished:
    return ModelVersionPublished(
        model="default",
        version=name,
        kind="full",
        artifact_uri=f"s3://models/default/{name}",
        manifest=(ArtifactFile(path="w", size=3, sha256="0" * 64),),
        created_at_ms=int(name),
        lineage=Lineage(
            parent=parent,
            feedback=(OffsetRange(topic=EXAMPLES.name, partition=2, start=0, end=end),)
            if end
            else (),
        ),
    )


def rollout(revision: int, stable: str, candidate: str | None = None) -> RolloutChanged:
    return RolloutChanged(
        model="default",
        revision=revision,
        stable=stable,
        candidate=candidate,
        changed_at_ms=revision,
    )


def filled() -> InMemoryBus:
    """A platform that has lived, by its own calls."""
    bus = InMemoryBus()
    publisher = bus.publisher()
    for one in (version("1"), version("2", parent="1", end=5), version("3", parent="2", end=9)):
        publish_version(publisher, one)
    # A record that no reader can read, and one that redefines a version.
    publisher.publish(REGISTRY.name, key=b"default/0", value=b"\xff{")
    publish_version(publisher, version("1", end=99))
    for each in (rollout(1, "1"), rollout(3, "2", "3"), rollout(2, "1")):
        publish_rollout(publisher, each)
    for _ in range(2):
        send(publisher, DECISIONS.name, "default", decided(3, "hold", "too few"))
    configuration = ConfigWatcher(bus)
    for text in ("5", "6", "null"):
        publish_config(publisher, configuration, "worker.max_waiting", text, now_ms=1, actor="ann")
    publish_config(publisher, configuration, "tenants.acme.weight", "2.5", now_ms=2)
    publisher.publish(CONFIG.name, key=b"tenants.gone.weight", value=None)
    publisher.publish(CONFIG.name, key=b"no.such", value=b"{")
    configuration.close()
    keys = KeysWatcher(bus)
    made = [
        create_key(publisher, keys, tenant="acme", name=name, roles=("caller",), now_ms=1)
        for name in ("app", "lost")
    ]
    revoke_key(publisher, keys, made[1].key.key_id, now_ms=2, reason="leaked")
    keys.close()
    file = FileChanged(
        file_id="file-1",
        tenant="acme",
        filename="in.jsonl",
        purpose="batch",
        size=1,
        created_at_ms=1,
    )
    send(publisher, FILES.name, "file-1", file)
    for number in (1, 2):
        send(publisher, BATCHES.name, "batch_1", batch(number), source="gateway#runner")
    for number in range(20):
        event = FeedbackForgotten(request_id=f"r{number}", forgotten_at_ms=1, principal="eve")
        send(publisher, FORGOTTEN.name, event.request_id, event)
    return bus


def example(name: str) -> FeedbackExample:
    return FeedbackExample(
        request_id=name,
        prompt="p",
        output="o",
        model="default",
        model_versions=("1",),
        feedback_ids=("f",),
        updated_at_ms=1,
        ups=1,
    )


def taken(bus: Bus, *, feedback: bool = False) -> Backup:
    return take_backup(
        bus,
        cluster_id="c1",
        topic_prefix="",
        feedloom_version="1",
        now_ms=lambda: NOW_MS,
        feedback=feedback,
    )


def restored(
    backup: Backup,
    bus: InMemoryBus | None = None,
    *,
    merge: bool = False,
    fail_at: int | None = None,
) -> InMemoryBus:
    bus = bus or InMemoryBus()
    plan = plan_restore(bus, backup, now_ms=now_ms(bus), merge=merge)
    execute(plan, MemoryWriter(bus, fail_at=fail_at), say=lambda line: None)
    assert compare(bus, backup, plan, now_ms=now_ms(bus), merge=merge) == []
    return bus


def now_ms(bus: InMemoryBus) -> int:
    """No earlier than any record."""
    return max((one.timestamp_ms for name in bus.logs for one in bus.records(name)), default=NOW_MS)


def control(bus: InMemoryBus) -> dict[str, list[Record]]:
    """Every record of the topics that are backed up."""
    return {spec.name: bus.records(spec.name) for spec in scope.CONTROL}


SOURCE = filled()


LEFT_OUT = {
    *("generation.requests", "generation.requests.batch", "generation.cancellations"),
    *("generation.chunks", "generation.results", "generation.shadow", "feedback.events"),
    *("platform.workers", "platform.gateways", "gateway.admissions"),
}


def test_of_every_topic_it_is_decided_whether_it_is_in_a_backup() -> None:
    kept = {spec.name for spec in scope.reading_order(feedback=True)}
    assert kept.isdisjoint(LEFT_OUT)
    assert kept | LEFT_OUT == {spec.name for spec in CATALOGUE}


def test_every_record_comes_back_with_its_bytes_and_its_time() -> None:
    assert all(control(SOURCE).values()), "each topic of the backup has something on it"
    assert control(restored(taken(SOURCE))) == control(SOURCE)


def test_readers_of_the_restored_platform_see_what_those_of_the_lost_one_saw() -> None:
    here = restored(taken(SOURCE))
    before, after = read_registry(SOURCE), read_registry(here)
    assert after.versions("default") == before.versions("default")
    assert [one.version for one in after.versions("default")] == ["1", "2", "3"]
    assert after.rollout("default") == before.rollout("default") == rollout(3, "2", "3")
    assert read_config(here).changes() == read_config(SOURCE).changes()
    assert read_config(here).next_revision("worker.max_waiting") == 4
    assert read_history(here) == read_history(SOURCE)
    assert read_keys(here).keys() == read_keys(SOURCE).keys()
    assert read_decisions(here) == read_decisions(SOURCE)


def test_a_restore_that_has_finished_writes_nothing_when_it_is_run_again() -> None:
    backup = taken(SOURCE)
    here = restored(backup)
    assert plan_restore(here, backup, now_ms=NOW_MS).to_write == 0


@given(st.data())
def test_a_restore_goes_on_wherever_it_was_cut_off(data: st.DataObject) -> None:
    backup = taken(SOURCE)
    whole = plan_restore(InMemoryBus(), backup, now_ms=NOW_MS).to_write
    fail_at = data.draw(st.integers(0, whole - 1))
    here = InMemoryBus()
    with pytest.raises(KeyboardInterrupt):
        restored(backup, here, fail_at=fail_at)
    # Rollouts come after the versions that they name.
    state = read_registry(here)
    current = state.rollout("default")
    assert current is None or state.version("default", current.stable) is not None
    assert plan_restore(here, backup, now_ms=NOW_MS).to_write == whole - fail_at
    assert control(restored(backup, here)) == control(SOURCE)


@pytest.mark.parametrize("topic", [spec.name for spec in scope.CONTROL])
def test_a_platform_that_holds_something_is_refused_and_left_as_it_is(topic: str) -> None:
    here = InMemoryBus()
    here.publisher().publish(topic, key=b"k", value=b"v")
    with pytest.raises(RestoreRefused, match=rf"not empty: {topic}/\d+ .*--merge"):
        plan_restore(here, taken(SOURCE), now_ms=NOW_MS)


def test_what_came_after_a_restore_is_not_of_the_backup() -> None:
    backup = taken(SOURCE)
    here = restored(backup)
    publish_rollout(here.publisher(), rollout(4, "3"))
    with pytest.raises(RestoreRefused, match=r"model.rollouts/0 reaches to offset 4, .* to 3"):
        plan_restore(here, backup, now_ms=NOW_MS)


def test_whoever_writes_during_a_restore_is_found_out() -> None:
    backup, here = taken(SOURCE), InMemoryBus()
    plan = plan_restore(here, backup, now_ms=NOW_MS)
    publish_rollout(here.publisher(), rollout(9, "1"))
    with pytest.raises(RestoreDisturbed, match=r"model.rollouts/0 at 0 came to lie at 1"):
        execute(plan, MemoryWriter(here), say=lambda line: None)


def test_a_merge_adds_what_is_missing_and_changes_nothing() -> None:
    backup, here = taken(SOURCE), InMemoryBus()
    publisher = here.publisher()
    publish_version(publisher, version("1"))
    publish_version(publisher, version("4", parent="1"))
    publish_rollout(publisher, rollout(7, "4"))
    before = control(here)
    restored(backup, here, merge=True)
    for topic, records in control(here).items():
        assert records[: len(before[topic])] == before[topic]
    state = read_registry(here)
    assert [one.version for one in state.versions("default")] == ["1", "4", "2", "3"]
    assert state.rollout("default") == rollout(7, "4")
    assert read_keys(here).keys() == read_keys(SOURCE).keys()
    assert read_decisions(here) == read_decisions(SOURCE)
    assert plan_restore(here, backup, now_ms=NOW_MS, merge=True).to_write == 0


def test_a_merge_brings_back_what_was_deleted_here_and_not_what_was_deleted_there() -> None:
    backup = taken(SOURCE)
    here = restored(backup)
    here.publisher().publish(CONFIG.name, key=b"tenants.acme.weight", value=None)
    restored(backup, here, merge=True)
    assert read_config(here).tenant("acme").weight == 2.5
    assert here.records(CONFIG.name)[-1].key == b"tenants.acme.weight"


def test_another_number_of_partitions_is_dealt_as_producers_deal() -> None:
    backup = taken(SOURCE)
    here = InMemoryBus({spec.name: min(spec.partitions, 5) for spec in all_topics()})
    restored(backup, here)
    for topic in (FORGOTTEN.name, BATCHES.name):
        for one in here.records(topic):
            assert one.partition == (murmur2(one.key or b"") & 0x7FFFFFFF) % 5
    assert sorted(one.key or b"" for one in here.records(FORGOTTEN.name)) == sorted(
        one.key or b"" for one in SOURCE.records(FORGOTTEN.name)
    )
    revisions = [
        codec.decode(one.value or b"", BatchChanged).revision for one in here.records(BATCHES.name)
    ]
    assert revisions == [1, 2]


def learning(bus: InMemoryBus) -> FeedbackIntake:
    state = read_registry(bus)
    return FeedbackIntake(
        bus,
        model="default",
        used=next_offsets(in_use(state, "default")),
        tried=next_offsets(state.versions("default")),
    )


def in_partition(number: int) -> str:
    """An id whose record goes there."""
    names = (f"new-{count}" for count in range(1_000))
    return next(name for name in names if (murmur2(name.encode()) & 0x7FFFFFFF) % 12 == number)


def test_a_trainer_learns_from_what_comes_after_a_restore() -> None:
    """Its position is offset 9 of a topic that begins at 0 again."""
    backup = taken(SOURCE)
    lost, here = InMemoryBus(), restored(backup)
    for spec in (REGISTRY, ROLLOUTS):
        for one in SOURCE.records(spec.name):
            lost.publisher().publish(spec.name, key=one.key, value=one.value)
    for bus, waiting in ((lost, 0), (here, 1)):
        new = example(in_partition(2))
        send(bus.publisher(), EXAMPLES.name, new.request_id, new)
        intake = learning(bus)
        intake.catch_up()
        assert intake.waiting == waiting
        assert [one.request_id for one in intake.batch().examples] == [new.request_id] * waiting
        intake.close()


def test_the_trainers_position_is_lifted_once_and_from_where_it_is() -> None:
    backup = taken(SOURCE)
    here = InMemoryBus()
    for number in range(4):
        here.publisher().publish(EXAMPLES.name, key=b"%d" % number, value=b"{}", partition=2)
    plan = plan_restore(here, backup, now_ms=NOW_MS)
    assert plan.topics[0].fillers, "before there are versions"
    assert plan.topics[0].to_write == 9 - 4
    assert plan.notes[0].endswith("counts as learnt, 4 offsets that were there already too")
    restored(backup, here)
    assert here.end_offsets(EXAMPLES.name)[TopicPartition(EXAMPLES.name, 2)] == 9
    assert not plan_restore(here, backup, now_ms=NOW_MS).notes


def test_feedback_comes_to_lie_where_it_lay() -> None:
    bus = filled()
    publisher = bus.publisher()
    for number in range(30):
        new = example(f"r{number}")
        send(publisher, EXAMPLES.name, new.request_id, new)
    # As on a topic of which compaction and retention have taken records away.
    for log in bus.logs[EXAMPLES.name]:
        for offset in range(0, len(log), 3):
            log[offset] = emptied(log[offset])
    backup = gapped(taken(bus, feedback=True))
    here = restored(backup)
    for before, after in zip(bus.logs[EXAMPLES.name], here.logs[EXAMPLES.name], strict=True):
        for offset, one in enumerate(after):
            if one.key == FILLER_KEY:
                assert one.value is None
                assert offset >= len(before) or before[offset].value is None
            else:
                assert one == before[offset]
    assert here.end_offsets(EXAMPLES.name)[TopicPartition(EXAMPLES.name, 2)] == 9
    intake = learning(here)
    intake.catch_up()
    elsewhere = {
        one.key_text for one in bus.records(EXAMPLES.name) if one.partition != 2 and one.value
    }
    assert {one.request_id for one in intake.batch().examples} == elsewhere
    intake.close()
    few = InMemoryBus({spec.name: min(spec.partitions, 5) for spec in all_topics()})
    with pytest.raises(RestoreRefused, match="FEEDLOOM_KAFKA__PARTITIONS=12"):
        plan_restore(few, backup, now_ms=NOW_MS)


def emptied(record: Record) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key,
        value=None,
    )


def gapped(backup: Backup) -> Backup:
    """Without the tombstones of the examples: gaps."""
    left = tuple(one for one in backup.saved(EXAMPLES.name) if one.value is not None)
    assert len(left) < len(backup.saved(EXAMPLES.name))
    return Backup(manifest=backup.manifest, records={**backup.records, EXAMPLES.name: left})


def layout(*values: tuple[bytes, bytes | None], spec: object = ROLLOUTS) -> Layout:
    assert spec in (ROLLOUTS, DECISIONS)
    return Layout(
        spec=DECISIONS if spec is DECISIONS else ROLLOUTS,
        partition=0,
        records={
            offset: SavedRecord(
                partition=0, offset=offset, timestamp_ms=NOW_MS + offset, key=key, value=value
            )
            for offset, (key, value) in enumerate(values)
        },
        end=len(values),
        filled_at_ms=0,
    )


def test_a_restored_topic_may_be_compacted_before_the_restore_goes_on() -> None:
    whole = layout((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", None), (b"b", b"2"))
    every = dict(whole.records)

    def complaint(*gone: int, end: int) -> str | None:
        present = {at: one for at, one in every.items() if at not in gone and at < end}
        return whole.complaint(present, end, now_ms=NOW_MS)

    assert complaint(end=5) is None
    assert complaint(0, 3, end=4) is None
    assert complaint(0, 1, end=5) is None
    # b's newest by then is at 1.
    assert complaint(1, end=4) == "model.rollouts/0 held a record at 1, and it is gone"
    assert complaint(0, 1, 2, 3, 4, end=5) is not None


def test_a_restored_record_may_be_gone_by_its_age_where_that_takes_records() -> None:
    whole = layout((b"a", b"1"), (b"a", b"2"), spec=DECISIONS)
    second = {1: whole.records[1]}
    assert whole.complaint(second, 2, now_ms=NOW_MS) is not None
    assert whole.complaint(second, 2, now_ms=NOW_MS + 1 + 365 * DAY_MS) is None
    assert whole.complaint({}, 2, now_ms=NOW_MS + 2 + 365 * DAY_MS) is None


class Busy(InMemoryBus):
    """A platform on which a version is published and tried whenever somebody begins to read."""

    def __init__(self) -> None:
        super().__init__()
        self.round = 0

    def reader(self, topics: object, **options: object) -> InMemoryReader:  # type: ignore[override]
        reader = super().reader(topics, **options)  # type: ignore[arg-type]
        self.round += 1
        publisher = self.publisher()
        name = str(self.round)
        publish_version(publisher, version(name, parent=str(self.round - 1 or 1)))
        publish_rollout(publisher, rollout(self.round, name))
        return reader


def test_a_backup_of_a_busy_platform_names_nothing_that_it_does_not_hold() -> None:
    bus = Busy()
    publish_version(bus.publisher(), version("1"))
    publish_rollout(bus.publisher(), rollout(0, "1"))
    backup = taken(bus)
    assert len(backup.saved(REGISTRY.name)) > 2
    assert len(backup.saved(ROLLOUTS.name)) > 1
    assert dangling(backup) == []


def test_a_name_without_its_referent_is_told() -> None:
    bus = InMemoryBus()
    publisher = bus.publisher()
    publish_version(publisher, version("2", parent="1"))
    publish_rollout(publisher, rollout(1, "2", "3"))
    send(publisher, BATCHES.name, "batch_1", batch(1))
    assert dangling(taken(bus)) == [
        "the rollout of default names 3, which is no version",
        "default@2 comes of 1, which is no version",
        "batch_1 reads file-1, which is no file",
    ]
    assert dangling(taken(SOURCE)) == []


class Compacting:
    """One key, of which a newer record comes, and the older goes, while the topic is read."""

    def __init__(self) -> None:
        self.at = 0
        self.ends = [1, 2, 2]

    def reader(self, topics: object) -> Compacting:
        return self

    def seek_since(self, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        self.at = 0
        return {TopicPartition(ROLLOUTS.name, 0): self.ends.pop(0)}

    def seek(self, where: TopicPartition, offset: int) -> None:
        self.at = offset

    def poll(self, timeout_s: float, max_records: int = 500) -> list[Record]:
        self.at += 1
        if self.at == 1:
            return []  # what lay there is gone by now
        return [
            Record(
                topic=ROLLOUTS.name,
                partition=0,
                offset=1,
                timestamp_ms=1,
                key=b"default",
                value=b"new",
            )
        ]

    def position(self, where: TopicPartition) -> int:
        return self.at

    def close(self) -> None:
        pass


def test_a_key_that_is_compacted_away_while_it_is_read_is_not_lost() -> None:
    whole = read_whole(Compacting(), ROLLOUTS.name)  # type: ignore[arg-type]
    assert whole.ends == (2,)
    assert [one.value for one in whole.records] == [b"new"]


class Endless(Compacting):
    def __init__(self) -> None:
        super().__init__()
        self.ends = [10]


def test_a_topic_that_never_stands_still_is_given_up() -> None:
    with pytest.raises(FatalError, match="to an end that stands still within 0 s"):
        read_whole(Endless(), ROLLOUTS.name, timeout_s=0)  # type: ignore[arg-type]


def test_what_differs_is_told_and_no_hash_with_it() -> None:
    backup = taken(SOURCE)
    here = restored(backup)
    plan = plan_restore(here, backup, now_ms=NOW_MS)
    rollouts, keys = here.logs[ROLLOUTS.name][0], here.logs[KEYS.name][0]
    other = saying(rollouts[1], rollout(3, "1"))
    rollouts[1] = other
    first = codec.decode(keys[0].value or b"", ApiKeyChanged)
    keys[0] = saying(keys[0], msgspec.structs.replace(first, secret_hash=HASH[:-2] + "AA"))
    here.logs[REGISTRY.name][0].pop()
    told = compare(here, backup, plan, now_ms=now_ms(here))
    assert "model.rollouts/0 holds a record at 1 that is not the backup's" in told
    assert (
        "model.rollouts: default: stable was '2' and is '1'; candidate was '3' and is None" in told
    )
    assert f"platform.keys: {first.key_id}: secret_hash is not as it was" in told
    assert "model.registry/0 ends at 4, and should at 5" in told
    assert not any(HASH[-20:-2] in line for line in told)


def saying(record: Record, event: RolloutChanged | ApiKeyChanged) -> Record:
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key,
        value=codec.encode(event),
        headers=record.headers,
    )


def test_a_topic_with_the_brokers_clock_is_told() -> None:
    backup = taken(SOURCE)
    here = restored(backup)
    plan = plan_restore(here, backup, now_ms=NOW_MS)
    log = here.logs[ROLLOUTS.name][0]
    log[:] = [
        Record(
            topic=one.topic,
            partition=one.partition,
            offset=one.offset,
            timestamp_ms=one.timestamp_ms + 1,
            key=one.key,
            value=one.value,
            headers=one.headers,
        )
        for one in log
    ]
    assert compare(here, backup, plan, now_ms=now_ms(here)) == [
        "model.rollouts/0: 3 records have another timestamp (message.timestamp.type of the topic "
        "must be CreateTime)"
    ]


def test_a_topic_of_a_newer_release_is_refused() -> None:
    backup = taken(SOURCE)
    strange = msgspec.structs.replace(backup.manifest.topics[0], name="model.futures")
    newer = Backup(
        manifest=msgspec.structs.replace(
            backup.manifest, topics=(*backup.manifest.topics, strange)
        ),
        records={**backup.records, "model.futures": ()},
    )
    with pytest.raises(RestoreRefused, match=r"holds model.futures, which this release"):
        plan_restore(InMemoryBus(), newer, now_ms=NOW_MS)


def test_a_store_that_moved_is_named_in_the_restored_registry(tmp_path: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    (build / "weights").write_bytes(b"www")
    old = ArtifactStore(tmp_path / "old")
    bus = InMemoryBus()
    publisher = bus.publisher()
    for name in ("1", "2"):
        uri, manifest = old.put(build, model="default", version=name)
        event = msgspec.structs.replace(version(name), artifact_uri=uri, manifest=manifest)
        # A field of a newer release.
        value = msgspec.json.encode(msgspec.json.decode(codec.encode(event)) | {"future": 1})
        publisher.publish(REGISTRY.name, key=f"default/{name}".encode(), value=value)
    backup = taken(bus)
    assert [wrong for _, wrong in check_artifacts(backup, old)] == [None, None]
    (tmp_path / "old").rename(tmp_path / "new")
    new = ArtifactStore(tmp_path / "new")
    assert all("old" in str(wrong) for _, wrong in check_artifacts(backup, new))
    with pytest.raises(BackupRejected, match=r"no version .* below s3://"):
        relocated(backup, "s3://", "s3://new")
    moved = relocated(backup, (tmp_path / "old").as_uri(), (tmp_path / "new").as_uri())
    assert [wrong for _, wrong in check_artifacts(moved, new)] == [None, None]
    here = restored(moved)
    assert b'"future":1' in (here.records(REGISTRY.name)[0].value or b"")
    first, _ = sorted((tmp_path / "new" / "default").iterdir())
    (first / "weights").write_bytes(b"xxx")
    assert sum(wrong is not None for _, wrong in check_artifacts(moved, new)) == 1
