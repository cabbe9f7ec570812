"""Packing, curation, shards, and the position that lives in lineage."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue, codec
from infra.contracts.bus import TopicPartition
from infra.contracts.events import (
    FeedbackExample,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    PreferencePair,
)
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.testing import InMemoryBus
from trainer.corpus import Source, assemble
from trainer.curation import curate, target_of
from trainer.intake import FeedbackIntake, next_offsets
from trainer.packing import IGNORED, completion, document, fill, fit
from trainer.pile import CorruptShard, PileRow, ReadCounts, read_shards, write_shards
from trainer.publishing import passes_gate, publish, roll_out

SEGMENTS = st.lists(st.lists(st.integers(2, 99), min_size=1, max_size=20), max_size=12)


def example(request_id: str = "r1", **changes: object) -> FeedbackExample:
    fields: dict[str, object] = {
        "prompt": "The module",
        "output": "does what it should do",
        "model": "default",
        "model_versions": ("default@1",),
        "feedback_ids": ("f1",),
        "updated_at_ms": 0,
    }
    return FeedbackExample(request_id=request_id, **(fields | changes))  # type: ignore[arg-type]


@given(SEGMENTS, st.integers(2, 16))
def test_filling_keeps_every_token_in_order_up_to_the_last_block(
    texts: list[list[int]], size: int
) -> None:
    blocks = list(fill(map(document, texts), size))
    flat = [token for text in texts for token in text]
    assert [token for block in blocks for token in block.tokens] == flat[: len(blocks) * size]
    assert len(flat) - len(blocks) * size < size
    for block in blocks:
        assert len(block.tokens) == len(block.labels) == len(block.positions) == size
        for token, label, position in zip(block.tokens, block.labels, block.positions, strict=True):
            # What begins a piece has nothing before it that could predict it.
            assert label == (IGNORED if position == 0 else token)


@given(SEGMENTS, st.integers(2, 16))
def test_fitting_cuts_no_segment_that_fits(texts: list[list[int]], size: int) -> None:
    blocks = fit(map(document, texts), size, padding=1)
    kept = sorted(tuple(text[:size]) for text in texts)
    found = []
    for block in blocks:
        piece: list[int] = []
        for token, position in zip(block.tokens, block.positions, strict=True):
            if position == 0 and piece:
                found.append(tuple(piece))
                piece = []
            piece.append(token)
        found.append(tuple(piece))
    assert sorted(piece for piece in found if set(piece) != {1}) == kept


def test_the_loss_counts_the_answer_and_not_the_prompt() -> None:
    (block,) = fit([completion([5, 6, 7], [8, 9])], 8, padding=1)
    assert block.labels == (IGNORED, IGNORED, IGNORED, 8, 9, IGNORED, IGNORED, IGNORED)
    assert block.counted == 2


@pytest.mark.parametrize(
    ("given_feedback", "target"),
    [
        ({"edited_text": "edit", "pairs": (PreferencePair(preferred="p", rejected="q"),)}, "edit"),
        ({"pairs": (PreferencePair(preferred="p", rejected="q"),), "downs": 2}, "p"),
        ({"ups": 2, "downs": 1}, "does what it should do"),
        ({"ups": 1, "downs": 1}, None),
        ({"downs": 1}, None),
    ],
)
def test_what_people_say_decides_the_target(
    given_feedback: dict[str, object], target: str | None
) -> None:
    assert target_of(example(**given_feedback)) == target


def test_curation_says_what_it_left_out() -> None:
    curated = curate(
        [
            example("a", ups=1),
            example("b", ups=1),
            example("c", downs=1),
            example("d", edited_text="short"),
            example("e", edited_text="a text that evaluation uses"),
        ],
        heldout=frozenset({"here is a text that evaluation uses, whole"}),
    )
    assert [pair.request_id for pair in curated.pairs] == ["a"]
    assert sum(curated.dropped.values()) == 4
    assert len(curated.dropped) == 4


def test_evaluation_text_stays_out_of_training_text() -> None:
    words = [f"word{number}" for number in range(4000)]
    sources = [
        Source(
            name=str(start),
            group="g",
            paragraphs=(" ".join(words[start : start + 40]).capitalize() + ".",),
        )
        for start in range(0, 3960, 30)
    ]
    corpus = assemble(sources)
    assert corpus.train
    assert corpus.demo
    guarded = {
        tuple(item.text.lower().split()[i : i + 8])
        for item in [*corpus.heldout, *corpus.demo]
        for i in range(len(item.text.split()) - 7)
    }
    for item in corpus.train:
        text = item.text.lower().split()
        assert not guarded & {tuple(text[i : i + 8]) for i in range(len(text) - 7)}


def test_shards_survive_the_disk_and_bad_lines_are_counted(tmp_path: Path) -> None:
    rows = [PileRow(text=f"text {number} é") for number in range(50)]
    paths = write_shards(tmp_path, rows, shard_bytes=500)
    assert len(paths) > 1
    counts = ReadCounts()
    assert list(read_shards(paths, counts)) == rows
    assert (counts.rows, counts.bad_lines) == (50, 0)
    first = paths[0].read_bytes()
    assert write_shards(tmp_path, rows, shard_bytes=500)[0].read_bytes() == first
    paths[0].write_bytes(first[: len(first) // 2])
    with pytest.raises(CorruptShard, match=paths[0].name):
        list(read_shards(paths))


def publish_examples(bus: InMemoryBus, *examples: FeedbackExample | bytes) -> None:
    publisher = bus.publisher()
    for item in examples:
        value = item if isinstance(item, bytes) else codec.encode(item)
        publisher.publish(catalogue.EXAMPLES.name, key=b"k", value=value).result(0)


def version_trained_on(ranges: tuple[OffsetRange, ...]) -> ModelVersionPublished:
    return ModelVersionPublished(
        model="default",
        version="2",
        kind="full",
        artifact_uri="file:///m",
        manifest=(),
        created_at_ms=0,
        lineage=Lineage(parent="1", feedback=ranges),
    )


def test_intake_goes_on_where_the_last_version_ended() -> None:
    bus = InMemoryBus()
    publish_examples(bus, example("a", ups=1), example("a", ups=2), example("b", ups=1), b"{")
    first = FeedbackIntake(bus, model="default", start={})
    first.poll(1)
    batch = first.batch()
    first.close()
    assert {item.request_id: item.ups for item in batch.examples} == {"a": 2, "b": 1}
    (letter,) = bus.records(f"{catalogue.EXAMPLES.name}.dlq")
    assert letter.value == b"{"

    publish_examples(bus, example("c", ups=1), example("other", ups=1, model="another"))
    start = next_offsets([version_trained_on(batch.ranges)])
    second = FeedbackIntake(bus, model="default", start=start)
    second.poll(1)
    assert [item.request_id for item in second.batch().examples] == ["c"]
    second.settle()
    assert second.waiting == 0
    assert second.batch().ranges == ()
    second.close()


def test_feedback_that_comes_in_pieces_counts_once_it_says_what_was_right() -> None:
    bus = InMemoryBus()
    intake = FeedbackIntake(bus, model="default", start={})
    publish_examples(bus, example("a", downs=1))
    intake.poll(1)
    assert (intake.waiting, intake.teaching) == (1, 0)
    publish_examples(bus, example("a", downs=1, edited_text="as it should have been"))
    intake.poll(1)
    assert (intake.waiting, intake.teaching) == (1, 1)
    intake.close()


def test_positions_take_the_furthest_of_all_versions() -> None:
    def span(start: int, end: int) -> OffsetRange:
        return OffsetRange(topic="t", partition=0, start=start, end=end)

    versions = [version_trained_on((span(4, 9),)), version_trained_on((span(0, 4),))]
    assert next_offsets(versions) == {TopicPartition("t", 0): 9}


def test_a_version_is_published_once_whatever_crashed_between(tmp_path: Path) -> None:
    bus = InMemoryBus()
    build = tmp_path / "build"
    build.mkdir()
    (build / "weights").write_text("w")
    store, state = ArtifactStore(tmp_path / "store"), RegistryState()
    lineage = Lineage(
        parent="1", feedback=(OffsetRange(topic="t", partition=0, start=0, end=3),), steps=7
    )

    def attempt() -> ModelVersionPublished:
        return publish(
            build,
            model="default",
            lineage=lineage,
            metrics={},
            store=store,
            state=state,
            publisher=bus.publisher(),
        )

    # A crash after the files were stored and before the event: the next attempt re-uses them.
    store.put(build, model="default", version="1")
    first = attempt()
    assert attempt() == first
    assert len(bus.records(catalogue.REGISTRY.name)) == 1
    for _ in range(2):
        roll_out(first, state=state, publisher=bus.publisher(), reason="test")
    assert len(bus.records(catalogue.ROLLOUTS.name)) == 1


def test_the_gate_lets_a_small_increase_pass() -> None:
    assert passes_gate(4.0, 3.5, max_increase=0.0)
    assert passes_gate(4.0, 4.05, max_increase=0.06)
    assert not passes_gate(4.0, 4.2, max_increase=0.05)
