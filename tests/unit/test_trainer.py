"""Packing, curation, shards, and the position that lives in lineage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue, codec
from infra.contracts.bus import TopicPartition
from infra.contracts.events.feedback import FeedbackExample, PreferencePair
from infra.contracts.events.model import (
    GateDecision,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    RolloutChanged,
)
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.testing import InMemoryBus
from trainer.corpus import Source, assemble
from trainer.curation import CurationRules, curate, held_out, target_of
from trainer.intake import FeedbackIntake, awaiting_rollout, in_use, next_offsets
from trainer.packing import IGNORED, completion, document, fill, fit
from trainer.pile import CorruptShard, PileRow, ReadCounts, read_shards, write_shards
from trainer.publishing import publish, roll_out

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
    kept = sorted(
        tuple(text[start : start + size])
        for text in texts
        # Every piece after the first begins with the last token of the one before.
        for start in range(0, max(len(text) - 1, 1), size - 1)
    )
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


@given(SEGMENTS, st.integers(2, 16))
def test_fitting_counts_every_label_once(texts: list[list[int]], size: int) -> None:
    blocks = fit((completion(text[:1], text[1:]) for text in texts), size, padding=1)
    counted = [label for block in blocks for label in block.labels if label != IGNORED]
    assert sorted(counted) == sorted(token for text in texts for token in text[1:])


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
            example("c", downs=1, output="something that is wrong"),
            example("d", edited_text="short"),
            example("e", edited_text="a text that evaluation uses"),
        ],
        heldout=frozenset({"here is a text that evaluation uses, whole"}),
    )
    assert [one.request_id for one in curated.completions] == ["a"]
    assert curated.dropped == {
        "duplicate": 1,
        "nothing says what would have been right": 1,
        "too short or too long": 1,
        "part of the held-out text": 2,
    }


def test_an_edit_is_preferred_to_the_answer_it_replaces() -> None:
    pair = PreferencePair(preferred="the better one", rejected="the worse one")
    curated = curate([example("a", edited_text="as it should be", pairs=(pair,))])
    assert {(one.preferred, one.rejected) for one in curated.preferences} == {
        ("the better one", "the worse one"),
        ("as it should be", "does what it should do"),
    }


def test_where_people_are_evenly_divided_nothing_is_learnt() -> None:
    one = PreferencePair(preferred="a first answer", rejected="a second answer")
    other = PreferencePair(preferred="a second answer", rejected="a first answer")
    divided = curate([example("a", ups=1, pairs=(one,)), example("b", downs=1, pairs=(other,))])
    assert divided.ratings == ()
    assert divided.preferences == ()
    assert divided.dropped["people disagree about an answer"] == 1
    assert divided.dropped["people disagree about a pair"] == 1
    decided = curate(
        [
            example("a", pairs=(one,)),
            example("b", pairs=(other,)),
            example("c", downs=2, pairs=(other,)),
        ]
    )
    assert [two.preferred for two in decided.preferences] == ["a second answer"]
    assert [rating.desirable for rating in decided.ratings] == [False]


def test_an_answer_that_most_people_rejected_is_no_target() -> None:
    curated = curate(
        [example("a", ups=1), *(example(f"b{n}", downs=1) for n in range(3))],
    )
    assert curated.completions == ()
    assert curated.dropped["most people rejected it"] == 1


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    share=st.floats(0.05, 1.0),
)
def test_no_principal_contributes_more_than_its_share(counts: list[int], share: float) -> None:
    examples = [
        example(
            f"{who}-{n}",
            edited_text=f"text {n} of principal {who}",
            principals=(f"p{who}",),
            updated_at_ms=n,
        )
        for who, count in enumerate(counts)
        for n in range(count)
    ]
    kept = Counter(
        one.request_id.split("-")[0]
        for one in curate(examples, CurationRules(max_share=share)).completions
    )
    total = sum(kept.values())
    for who in range(len(counts)):
        mine = kept[str(who)]
        assert mine >= 1
        assert mine <= max(1, max(share, 2 / (len(counts) + 1)) * total + 1e-6)
    if max(counts) <= share * sum(counts):
        assert total == sum(counts)


def test_the_newest_of_a_principal_stay() -> None:
    examples = [
        example(f"{who}{n}", edited_text=f"text {n} of {who}", principals=(who,), updated_at_ms=n)
        for who, count in (("a", 9), ("b", 2))
        for n in range(count)
    ]
    curated = curate(examples, CurationRules(max_share=0.5))
    assert {one.request_id for one in curated.completions} == {"a8", "a7", "b1", "b0"}
    assert curated.dropped["beyond a principal's share"] == 7


def test_old_feedback_and_personal_data_are_left_out() -> None:
    curated = curate(
        [
            example("old", edited_text="from long ago", updated_at_ms=1_000),
            example("new", edited_text="from somebody@home", updated_at_ms=9_000),
        ],
        CurationRules(max_age_s=5, scrub=lambda text: text.replace("somebody@home", "them")),
        now_ms=10_000,
    )
    assert [one.target for one in curated.completions] == ["from them"]
    assert curated.dropped == {"too old": 1}


@given(st.lists(st.text(), min_size=1, max_size=20, unique=True), st.floats(0, 1))
def test_a_prompt_is_held_out_or_not_for_good(prompts: list[str], share: float) -> None:
    for prompt in prompts:
        kept = held_out(prompt, share)
        assert kept == held_out(prompt, share)
        assert not kept or held_out(prompt, min(1.0, share + 0.1))
        assert not held_out(prompt, 0.0)


def test_about_the_asked_share_of_prompts_is_held_out() -> None:
    assert 60 < sum(held_out(f"prompt {n}", 0.1) for n in range(1000)) < 140


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
    first = FeedbackIntake(bus, model="default")
    first.poll(1)
    batch = first.batch()
    first.close()
    assert {item.request_id: item.ups for item in batch.examples} == {"a": 2, "b": 1}
    (letter,) = bus.records(f"{catalogue.EXAMPLES.name}.dlq")
    assert letter.value == b"{"

    publish_examples(bus, example("c", ups=1), example("other", ups=1, model="another"))
    used = next_offsets([version_trained_on(batch.ranges)])
    second = FeedbackIntake(bus, model="default", used=used)
    second.poll(1)
    assert [item.request_id for item in second.batch().examples] == ["c"]
    second.settle(learnt=True)
    assert second.waiting == 0
    assert second.batch().ranges == ()
    assert len(bus.records(f"{catalogue.EXAMPLES.name}.dlq")) == 1
    second.close()


def test_feedback_that_comes_in_pieces_counts_once_it_says_what_was_right() -> None:
    bus = InMemoryBus()
    intake = FeedbackIntake(bus, model="default")
    publish_examples(bus, example("a", downs=1))
    intake.poll(1)
    assert (intake.waiting, intake.teaching) == (1, 0)
    publish_examples(bus, example("a", downs=1, edited_text="as it should have been"))
    intake.poll(1)
    assert (intake.waiting, intake.teaching) == (1, 1)
    intake.close()


def test_what_a_rejected_version_had_learnt_is_learnt_again_with_the_next() -> None:
    bus = InMemoryBus()
    publish_examples(bus, example("a", ups=1))
    intake = FeedbackIntake(bus, model="default")
    intake.poll(1)
    tried = intake.batch().ranges
    intake.settle(learnt=False)
    intake.close()
    # The same after a restart as without one.
    again = FeedbackIntake(bus, model="default", tried=next_offsets([version_trained_on(tried)]))
    again.poll(1)
    for one in (intake, again):
        assert one.waiting == 0
        assert [item.request_id for item in one.batch().examples] == ["a"]
    publish_examples(bus, example("b", ups=1))
    again.poll(1)
    assert again.waiting == 1
    assert [item.request_id for item in again.batch().examples] == ["a", "b"]
    ((span,),) = [again.batch().ranges]
    assert (span.start, span.end) == (0, 2)
    again.close()


def test_examples_that_measure_are_kept_over_all_rounds_and_never_trained_on() -> None:
    bus = InMemoryBus()
    names = [f"r{n}" for n in range(6)]
    publish_examples(bus, *(example(name, ups=1, prompt=name) for name in names))
    intake = FeedbackIntake(
        bus,
        model="default",
        used={TopicPartition(catalogue.EXAMPLES.name, place): 99 for place in range(64)},
        measures=lambda one: one.prompt in {"r1", "r2", "r4"},
        keep=2,
    )
    intake.poll(1)
    batch = intake.batch()
    assert batch.examples == ()
    assert [one.request_id for one in batch.measuring] == ["r2", "r4"]
    intake.close()


def test_a_tombstone_takes_an_example_out_of_every_later_round() -> None:
    bus = InMemoryBus()
    intake = FeedbackIntake(bus, model="default", measures=lambda one: one.prompt == "measures")
    publish_examples(bus, example("k", ups=1))
    intake.poll(1)
    publisher = bus.publisher()
    publisher.publish(catalogue.EXAMPLES.name, key=b"k", value=None).result(0)
    intake.poll(1)
    assert (intake.waiting, intake.teaching) == (0, 0)
    assert intake.batch().examples == ()
    publish_examples(bus, example("k", ups=1, prompt="measures"))
    publisher.publish(catalogue.EXAMPLES.name, key=b"k", value=None).result(0)
    intake.poll(1)
    assert intake.batch().measuring == ()
    intake.close()


def test_what_a_withdrawn_version_had_learnt_is_taken_back() -> None:
    bus = InMemoryBus()
    publish_examples(bus, example("a", ups=1), example("b", ups=1))
    bus.publisher().publish(catalogue.EXAMPLES.name, key=b"a", value=b"{")
    intake = FeedbackIntake(bus, model="default")
    intake.poll(1)
    learnt = intake.batch().ranges
    intake.settle(learnt=True)
    publish_examples(bus, example("c", ups=1))
    intake.poll(1)
    assert [one.request_id for one in intake.batch().examples] == ["c"]
    intake.follow(next_offsets([version_trained_on(learnt)]))
    assert [one.request_id for one in intake.batch().examples] == ["c"]
    intake.follow({})
    assert {one.request_id for one in intake.batch().examples} == {"a", "b", "c"}
    assert sum(span.end - span.start for span in intake.batch().ranges) == 4
    # What was in a round starts none, and what cannot be read is put aside once.
    assert intake.waiting == 1
    assert len(bus.records(f"{catalogue.EXAMPLES.name}.dlq")) == 1
    # It serves again.
    intake.follow(next_offsets([version_trained_on(learnt)]))
    assert [one.request_id for one in intake.batch().examples] == ["c"]
    assert sum(span.end - span.start for span in intake.batch().ranges) == 1
    assert intake.waiting == 1
    intake.close()


def test_what_another_process_learnt_is_not_learnt_again_though_it_was_not_read_yet() -> None:
    bus = InMemoryBus()
    intake = FeedbackIntake(bus, model="default", measures=lambda one: one.prompt == "measures")
    publish_examples(bus, example("a", ups=1), example("m", ups=1, prompt="measures"))
    end = bus.end_offsets(catalogue.EXAMPLES.name)
    publish_examples(bus, example("b", ups=1))
    intake.follow(end)
    assert [one.request_id for one in intake.batch().examples] == ["b"]
    assert [one.request_id for one in intake.batch().measuring] == ["m"]
    intake.close()


def test_positions_take_the_furthest_of_all_versions() -> None:
    def span(start: int, end: int) -> OffsetRange:
        return OffsetRange(topic="t", partition=0, start=start, end=end)

    versions = [version_trained_on((span(4, 9),)), version_trained_on((span(0, 4),))]
    assert next_offsets(versions) == {TopicPartition("t", 0): 9}


def registry(*entries: tuple[str, str | None, bool, int], rollout: RolloutChanged) -> RegistryState:
    """Version, parent, whether it passed, created at; and the rollout in force."""
    state = RegistryState()
    for name, parent, passed, created in entries:
        version = msgspec.structs.replace(
            version_trained_on(()),
            version=name,
            lineage=Lineage(parent=parent),
            created_at_ms=created,
            gate=GateDecision(passed=passed, confidence=0.95),
        )
        state.apply(version)
    state.apply(rollout)
    return state


def rollout_of(stable: str, at: int, candidate: str | None = None) -> RolloutChanged:
    return RolloutChanged(
        model="default", revision=1, stable=stable, candidate=candidate, changed_at_ms=at
    )


def test_feedback_is_in_use_by_what_serves_or_is_about_to_and_their_ancestors() -> None:
    entries = [
        ("1", None, True, 10),
        ("2", "1", True, 20),
        ("3", "2", False, 30),
        ("4", "2", True, 40),
        ("5", "2", True, 50),
    ]

    def names(rollout: RolloutChanged) -> set[str]:
        return {one.version for one in in_use(registry(*entries, rollout=rollout), "default")}

    assert names(rollout_of("2", 25)) == {"1", "2", "5"}
    # Somebody went back to 2 after 5 had come: its feedback has to be learnt again.
    assert names(rollout_of("2", 60)) == {"1", "2"}
    assert names(rollout_of("2", 60, candidate="4")) == {"1", "2", "4"}
    assert in_use(RegistryState(), "default") == []


def test_a_version_that_was_rolled_back_is_not_rolled_out_again() -> None:
    entries = [("1", None, True, 10), ("2", "1", True, 20), ("3", "1", False, 30)]
    pending = awaiting_rollout(registry(*entries, rollout=rollout_of("1", 15)), "default")
    assert pending is not None
    assert pending.version == "2"
    assert awaiting_rollout(registry(*entries, rollout=rollout_of("1", 25)), "default") is None


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
            gate=GateDecision(passed=True, confidence=0.95),
            store=store,
            state=state,
            publisher=bus.publisher(),
        )

    # A crash after the files were stored and before the event: other weights than these.
    store.put(build, model="default", version="1")
    (build / "weights").write_text("w, trained again")
    first = attempt()
    assert attempt() == first
    assert len(bus.records(catalogue.REGISTRY.name)) == 1
    for _ in range(2):
        roll_out(first, state=state, publisher=bus.publisher(), reason="test")
    assert len(bus.records(catalogue.ROLLOUTS.name)) == 1
