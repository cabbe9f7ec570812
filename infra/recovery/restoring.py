"""Restores a backup: plans, writes, reads back and compares.

A plan is made of what is on the platform, and says what will be written before anything is. The
platform must be at rest: a record that comes to lie elsewhere than planned ends the restore.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from infra.contracts.bus import Bus
from infra.contracts.catalogue import EXAMPLES, REGISTRY, TopicSpec
from infra.recovery import placing, scope
from infra.recovery.errors import RestoreDisturbed, RestoreRefused
from infra.recovery.folded import differences, folded
from infra.recovery.placing import Layout
from infra.recovery.reading import Whole, ends_of, read_whole
from infra.recovery.snapshot import Backup, SavedRecord, SavedTopic
from infra.recovery.writing import RecordWriter

AT_ONCE = 10_000
"""Records that are on their way to the broker at a time."""
TOLD = 3
"""Of what stands against a restore."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Offsets of one partition that are to be written, and what belongs at each."""

    spec: TopicSpec
    partition: int
    start: int
    end: int
    at: Callable[[int], SavedRecord]


@dataclass(frozen=True, kw_only=True)
class TopicPlan:
    """What becomes of one topic. ``saved`` records are in the backup, ``here`` on the platform.

    ``fillers``: offsets of ``feedback.examples`` that are passed over. ``layouts``: what the
    partitions must hold in the end; none where a merge or filling adds to what is there.
    """

    spec: TopicSpec
    saved: int
    here: int
    spans: tuple[Span, ...]
    layouts: tuple[Layout, ...] = ()
    fillers: bool = False

    @property
    def to_write(self) -> int:
        """How many records."""
        return sum(span.end - span.start for span in self.spans)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """In the order of writing. ``notes`` are worth a person's knowing."""

    topics: tuple[TopicPlan, ...]
    notes: tuple[str, ...] = ()

    @property
    def to_write(self) -> int:
        """How many records."""
        return sum(topic.to_write for topic in self.topics)


def plan_restore(
    bus: Bus,
    backup: Backup,
    *,
    now_ms: int,
    merge: bool = False,
    absent: Collection[str] = (),
) -> Plan:
    """What a restore would write. ``merge``: add what is missing and change nothing that is there.

    ``absent``: topics that are not there, and will be made with as many partitions as they had.

    Raises:
        RestoreRefused: without ``merge``, a topic holds what is not of this backup; or the topics
            here cannot take it.
        ConfigurationError: a topic is missing, or may not be read.
    """
    unknown = [one.name for one in backup.manifest.topics if not scope.known(one.name)]
    if unknown:
        raise RestoreRefused(
            f"the backup holds {', '.join(unknown)}, which this release does not know: it was "
            f"taken by {backup.manifest.feedloom_version}"
        )
    plans, complaints, notes = list[TopicPlan](), list[str](), list[str]()
    positions = placing.trainer_positions(backup.saved(REGISTRY.name))
    for spec in scope.writing_order(set(backup.records)):
        if spec == EXAMPLES and merge:
            notes.append(f"{spec.name} is not merged: its records have their places")
            continue
        here = _here(bus, backup, spec.name, absent)
        if merge:
            plans.append(_merged(spec, backup, here))
            continue
        layouts = _layouts(spec, backup, here, positions)
        for layout in layouts:
            complaint = layout.complaint(
                here.partition(layout.partition), here.ends[layout.partition], now_ms=now_ms
            )
            if complaint is not None:
                complaints.append(complaint)
        plans.append(_anew(spec, backup, here, layouts))
    if complaints:
        more = f"; and {len(complaints) - TOLD} more" if len(complaints) > TOLD else ""
        raise RestoreRefused(
            f"the platform is not empty: {'; '.join(complaints[:TOLD])}{more}. Nothing was "
            "written. Restore to topics that were made anew, or with --merge, which adds what is "
            "missing and changes nothing that is there"
        )
    if merge or EXAMPLES.name not in backup.records:
        ends = (
            (0,) * (1 + max(positions, default=0))
            if EXAMPLES.name in absent
            else ends_of(bus.end_offsets(EXAMPLES.name))
        )
        filling = _filled(backup, positions, ends, notes)
        if filling.spans:
            # Before there are versions, by whose lineage a trainer goes.
            plans.insert(0, filling)
    return Plan(topics=tuple(plans), notes=tuple(notes))


def execute(plan: Plan, writer: RecordWriter, *, say: Callable[[str], None]) -> None:
    """Write what is planned, topic by topic, each whole before the next.

    Raises:
        RestoreDisturbed: somebody else writes there too. Once they are stopped, a new plan tells
            what came of it.
        DeliveryFailed, ConfigurationError: the broker does not take it; run again to go on.
    """
    for topic in plan.topics:
        for span in topic.spans:
            _write(span, writer)
        if topic.to_write:
            say(f"{topic.spec.name}: {topic.to_write:,} written")


def compare(bus: Bus, backup: Backup, plan: Plan, *, now_ms: int, merge: bool = False) -> list[str]:
    """Read back, and compare with the backup: record by record, and what the records say.

    Returns:
        A line a difference. After a merge only what is missing is one.
    """
    found: list[str] = []
    for topic in plan.topics:
        spec = topic.spec
        if topic.fillers:
            continue
        here = read_whole(bus, spec.name)
        for layout in topic.layouts:
            found += _checked(layout, here, now_ms)
        records = [one for one in here.records if one.key != placing.FILLER_KEY]
        oldest_ms = now_ms - (spec.retention_ms or 0) if scope.expires(spec) else None
        saved = [
            one
            for one in backup.saved(spec.name)
            if oldest_ms is None or one.timestamp_ms >= oldest_ms
        ]
        if merge:
            lost = placing.missing(spec, saved, here)
            found += [f"{spec.name}: {one.key_text} is missing" for one in lost]
        else:
            found += differences(spec.name, folded(spec, saved), folded(spec, records))
    return found


def _here(bus: Bus, backup: Backup, topic: str, absent: Collection[str]) -> Whole:
    if topic not in absent:
        return read_whole(bus, topic)
    return Whole(ends=(0,) * len(_topic(backup, topic).ends), records=())


def _topic(backup: Backup, name: str) -> SavedTopic:
    topic = backup.topic(name)
    assert topic is not None, "the topics of a backup are those of its manifest"
    return topic


def _layouts(
    spec: TopicSpec, backup: Backup, here: Whole, positions: Mapping[int, int]
) -> list[Layout]:
    topic = _topic(backup, spec.name)
    records, partitions = backup.saved(spec.name), len(here.ends)
    if spec != EXAMPLES:
        return placing.dense(spec, topic, records, partitions=partitions)
    return placing.in_place(
        spec,
        topic,
        records,
        positions,
        partitions=partitions,
        filled_at_ms=backup.manifest.ended_at_ms,
    )


def _anew(spec: TopicSpec, backup: Backup, here: Whole, layouts: Sequence[Layout]) -> TopicPlan:
    return TopicPlan(
        spec=spec,
        saved=len(backup.saved(spec.name)),
        here=len(here.records),
        layouts=tuple(layouts),
        spans=tuple(
            Span(
                spec=spec,
                partition=layout.partition,
                start=here.ends[layout.partition],
                end=layout.end,
                at=layout.at,
            )
            for layout in layouts
            if here.ends[layout.partition] < layout.end
        ),
    )


def _merged(spec: TopicSpec, backup: Backup, here: Whole) -> TopicPlan:
    topic, records = _topic(backup, spec.name), backup.saved(spec.name)
    added = placing.missing(spec, records, here)
    spans = []
    for layout in placing.dense(spec, topic, added, partitions=len(here.ends)):
        if layout.end:
            start = here.ends[layout.partition]
            at = _shifted(layout, start)
            spans.append(
                Span(
                    spec=spec,
                    partition=layout.partition,
                    start=start,
                    end=start + layout.end,
                    at=at,
                )
            )
    return TopicPlan(spec=spec, saved=len(records), here=len(here.records), spans=tuple(spans))


def _shifted(layout: Layout, start: int) -> Callable[[int], SavedRecord]:
    return lambda offset: layout.at(offset - start)


def _filled(
    backup: Backup, positions: Mapping[int, int], ends: Sequence[int], notes: list[str]
) -> TopicPlan:
    """Lift ``feedback.examples`` to the trainer's position, where it has not come so far."""
    spans, below = [], 0
    for partition, position in sorted(positions.items()):
        if partition >= len(ends) or ends[partition] >= position:
            continue
        below += ends[partition]
        layout = Layout(
            spec=EXAMPLES,
            partition=partition,
            records={},
            end=position,
            filled_at_ms=backup.manifest.ended_at_ms,
        )
        spans.append(
            Span(
                spec=EXAMPLES,
                partition=partition,
                start=ends[partition],
                end=position,
                at=layout.at,
            )
        )
    if spans:
        taken = f", {below:,} offsets that were there already too" if below else ""
        notes.append(
            f"fillers lift {EXAMPLES.name} to the trainer's position; what is below counts as "
            f"learnt{taken}"
        )
    return TopicPlan(spec=EXAMPLES, saved=0, here=sum(ends), spans=tuple(spans), fillers=True)


def _write(span: Span, writer: RecordWriter) -> None:
    offsets = iter(range(span.start, span.end))
    while batch := list(islice(offsets, AT_ONCE)):
        written = [(offset, writer.write(span.spec.name, span.at(offset))) for offset in batch]
        for offset, pending in written:
            came_to = pending.offset()
            if came_to != offset:
                raise RestoreDisturbed(
                    f"a record for {span.spec.name}/{span.partition} at {offset} came to lie at "
                    f"{came_to}: somebody else writes there. Stop every component, look at "
                    "what they wrote, make the topic anew and run the restore again"
                )


def _checked(layout: Layout, here: Whole, now_ms: int) -> list[str]:
    present, end = here.partition(layout.partition), here.ends[layout.partition]
    complaint = layout.complaint(present, end, now_ms=now_ms)
    if complaint is not None:
        return [complaint]
    where = f"{layout.spec.name}/{layout.partition}"
    if end < layout.end:
        return [f"{where} ends at {end}, and should at {layout.end}"]
    moved = sum(
        record.timestamp_ms != layout.at(offset).timestamp_ms for offset, record in present.items()
    )
    if moved:
        return [
            f"{where}: {moved:,} records have another timestamp (message.timestamp.type of the "
            "topic must be CreateTime)"
        ]
    return []
