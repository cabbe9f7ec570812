"""Dead letters: what the log says, what may be selected, and what replay leaves after a failure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue, codec
from infra.contracts import dead_letters as contract
from infra.contracts.bus import Record, RecordPosition, TopicPartition
from infra.contracts.codec import Headers
from infra.contracts.dead_letters import (
    DeadLetterRefused,
    Letter,
    LetterId,
    Selection,
    fold,
    settlement_headers,
)
from infra.contracts.errors import MalformedRecord, RetryableError, UnknownEventType
from infra.contracts.events.generation import GenerationRequest
from infra.kafka.dead_letters import (
    BATCH,
    DeadLetters,
    DeadLettersUnreadable,
    SettlingIncomplete,
    Spans,
)
from infra.kafka.dlq_commands import dlq
from infra.settings import Settings
from infra.testing import InMemoryBus, InMemoryPublisher, InMemoryReader

TOPIC = catalogue.REQUESTS.name
DLQ = contract.TOPICS[TOPIC]
BROKEN = b'{"type": "GenerationRequest", "prompt": \xff\x1b[2J'
ORIGINAL = (("mine", b"\x00\xfe"), ("traceparent", b"00-1-2-01"))


def letter_headers(
    error: BaseException, offset: int = 7, original: Headers = ORIGINAL
) -> list[tuple[str, bytes]]:
    return codec.dead_letter_headers(original, topic=TOPIC, partition=3, offset=offset, error=error)


def record(
    offset: int,
    headers: Headers,
    *,
    partition: int = 0,
    key: bytes | None = b"k",
    value: bytes | None = BROKEN,
) -> Record:
    return Record(
        topic=DLQ,
        partition=partition,
        offset=offset,
        timestamp_ms=1_700_000_000_000 + offset,
        key=key,
        value=value,
        headers=tuple(headers),
    )


def mark(offset: int, of: int, outcome: contract.Outcome = "dropped", partition: int = 0) -> Record:
    headers = settlement_headers(LetterId(TOPIC, partition, of), outcome, by="ann")
    return record(offset, headers, partition=partition, key=None, value=b"")


# --- the log ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("generation.requests/17", LetterId(TOPIC, 0, 17)),
        ("generation.requests/0/17", LetterId(TOPIC, 0, 17)),
        ("generation.requests/2/17", LetterId(TOPIC, 2, 17)),
        ("generation.requests.dlq/17", LetterId(TOPIC, 0, 17)),
        ("generation.requests.batch/17", LetterId("generation.requests.batch", 0, 17)),
    ],
)
def test_an_id_names_topic_partition_and_offset(text: str, expected: LetterId) -> None:
    assert LetterId.parse(text) == expected


@given(st.sampled_from(sorted(contract.TOPICS)), st.integers(0, 99), st.integers(0, 2**50))
def test_an_id_reads_back_as_written(topic: str, partition: int, offset: int) -> None:
    letter = LetterId(topic, partition, offset)
    assert LetterId.parse(str(letter)) == letter


@pytest.mark.parametrize("text", ["", "17", "generation.requests", "generation.requests/x", "a/-1"])
def test_what_is_no_id_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DeadLetterRefused, match="write TOPIC/OFFSET"):
        LetterId.parse(text)


@pytest.mark.parametrize("topic", ["nobody", "generation.chunks", "model.registry.dlq"])
def test_a_topic_without_dead_letters_is_refused_with_those_that_have(topic: str) -> None:
    for ask in (lambda: LetterId.parse(f"{topic}/1"), lambda: contract.checked_topics(topic)):
        with pytest.raises(DeadLetterRefused, match=r"these have: generation\.requests, "):
            ask()


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Record], dict[LetterId, list[contract.Outcome]]]:
    """Three partitions of letters and marks, with what each letter's history must be."""
    records: list[Record] = []
    expected: dict[LetterId, list[contract.Outcome]] = {}
    for partition in range(3):
        mine: list[int] = []
        # Transaction markers and compaction leave gaps, so offsets only rise.
        offsets = sorted(draw(st.sets(st.integers(0, 60), max_size=12)))
        for offset in offsets:
            if bool(mine) and draw(st.booleans()):
                of, outcome = draw(st.sampled_from(mine)), draw(st.sampled_from(contract.OUTCOMES))
                records.append(mark(offset, of, outcome, partition))
                expected[LetterId(TOPIC, partition, of)].append(outcome)
            else:
                headers = letter_headers(MalformedRecord("no"), offset)
                records.append(record(offset, headers, partition=partition))
                expected[LetterId(TOPIC, partition, offset)] = []
                mine.append(offset)
    return records, expected


def histories(letters: list[Letter]) -> dict[LetterId, list[contract.Outcome]]:
    return {letter.id: [each.outcome for each in letter.history] for letter in letters}


@given(logs(), st.randoms(use_true_random=False))
def test_letters_and_their_states_follow_from_the_log_in_whatever_order_it_is_read(
    log: tuple[list[Record], dict[LetterId, list[contract.Outcome]]], random: object
) -> None:
    records, expected = log
    folded = fold(records)
    assert histories(folded) == expected
    assert folded == sorted(folded, key=lambda letter: letter.id)
    for letter in folded:
        assert letter.state == (expected[letter.id][-1] if expected[letter.id] else "open")
    shuffled = records + records[: len(records) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fold(shuffled) == folded


@given(logs(), st.integers(0, 61))
def test_retention_never_opens_a_settled_letter_again(
    log: tuple[list[Record], dict[LetterId, list[contract.Outcome]]], start: int
) -> None:
    records, _ = log
    kept = [letter for letter in fold(records) if letter.id.offset >= start]
    assert fold(each for each in records if each.offset >= start) == kept


def test_a_letter_says_what_its_headers_say() -> None:
    (letter,) = fold([record(5, letter_headers(MalformedRecord("no JSON")))])
    assert (letter.exception, letter.error) == (
        "infra.contracts.errors.MalformedRecord",
        "MalformedRecord",
    )
    assert (letter.message, letter.size, letter.source_partition, letter.source_offset) == (
        "no JSON",
        len(BROKEN),
        3,
        7,
    )


def test_a_settlement_says_who_when_and_why() -> None:
    place = LetterId(TOPIC, 0, 1)
    headers = settlement_headers(
        place,
        "replayed",
        by="ann",
        reason="fixed \udcff",
        replayed_to=RecordPosition(TOPIC, 4, 9),
        repaired=True,
    )
    (letter,) = fold([record(1, letter_headers(MalformedRecord("no"))), record(2, headers)])
    assert str(letter.history[0]) == (
        "replayed to generation.requests/4/9 with other bytes by ann at 2023-11-14T22:13:20Z: "
        "fixed ?"
    )


def test_an_upstream_cannot_settle_letters_with_headers_of_its_own() -> None:
    forged = settlement_headers(LetterId(TOPIC, 0, 1), "dropped", by="mallory")
    records = [
        record(1, letter_headers(MalformedRecord("no"))),
        record(2, letter_headers(MalformedRecord("no"), original=forged)),
    ]
    assert [letter.state for letter in fold(records)] == ["open", "open"]


@pytest.mark.parametrize(
    "headers",
    [
        [(contract.STATE, b"archived"), (contract.OFFSET, b"1")],
        [(contract.STATE, b"dropped"), (contract.OFFSET, b"x")],
        [(contract.STATE, b"dropped"), (contract.OFFSET, b"")],
        [(contract.STATE, b"dropped"), (contract.OFFSET, b"2")],
        [(contract.STATE, b"dropped"), (contract.OFFSET, b"9")],
        [(contract.STATE, b"dropped")],
    ],
)
def test_a_mark_that_makes_no_sense_changes_nothing(headers: Headers) -> None:
    (letter,) = fold([record(1, letter_headers(MalformedRecord("no"))), record(2, headers)])
    assert letter.history == ()


def test_a_record_that_somebody_else_put_there_is_seen_as_a_letter() -> None:
    (letter,) = fold([record(0, [(codec.DEAD_LETTER_PREFIX + "offset", b"-4")], value=None)])
    assert (letter.error, letter.source_offset, letter.size) == ("unknown", None, None)


def test_a_replay_carries_the_original_headers_and_one_mark_of_origin() -> None:
    again = [*ORIGINAL, (contract.REPLAYED_FROM, b"generation.requests/1")]
    failed = record(9, letter_headers(MalformedRecord("no"), original=again))
    assert contract.replay_headers(failed) == [
        *ORIGINAL,
        (contract.REPLAYED_FROM, b"generation.requests/9"),
    ]
    assert fold([failed])[0].replayed_from == "generation.requests/1"


# --- selecting ---

LETTERS = fold(
    [
        record(0, letter_headers(MalformedRecord("no"))),
        record(1, letter_headers(UnknownEventType("what"))),
        record(2, letter_headers(MalformedRecord("no"))),
        mark(3, 2),
    ]
)


def ids(*offsets: int) -> tuple[LetterId, ...]:
    return tuple(LetterId(TOPIC, 0, offset) for offset in offsets)


@pytest.mark.parametrize(
    ("selection", "offsets"),
    [
        (Selection(everything=True), [0, 1]),
        (Selection(everything=True, topic=TOPIC), [0, 1]),
        (Selection(everything=True, error="MalformedRecord"), [0]),
        (Selection(everything=True, error="infra.contracts.errors.UnknownEventType"), [1]),
        (Selection(ids=ids(1, 0, 1)), [0, 1]),
        (Selection(ids=ids(2), again=True), [2]),
    ],
)
def test_a_selection_picks(selection: Selection, offsets: list[int]) -> None:
    assert [letter.id.offset for letter in selection.pick(LETTERS)] == offsets


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "no letter is selected"),
        ({"topic": TOPIC}, "no letter is selected"),
        ({"ids": ids(0), "everything": True}, "not both"),
        ({"ids": ids(0), "error": "MalformedRecord"}, "not both"),
        ({"everything": True, "again": True}, "--again wants the ids"),
        ({"ids": ids(0, 3)}, "no letter generation.requests/3: it has expired or never was"),
        ({"ids": ids(0, 2)}, "generation.requests/2 is settled: dropped by ann at .* --again"),
        ({"everything": True, "error": "Malformed"}, "there are MalformedRecord, UnknownEventType"),
    ],
)
def test_a_selection_that_cannot_be_met_is_refused(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(DeadLetterRefused, match=message):
        Selection(**wanted).pick(LETTERS)  # type: ignore[arg-type]


def test_all_of_nothing_is_refused() -> None:
    with pytest.raises(DeadLetterRefused, match=r"no letter of generation\.requests is open"):
        Selection(everything=True, topic=TOPIC).pick([])


# --- on a bus ---


def make_bus(dlq_partitions: int = 1) -> InMemoryBus:
    counts = {spec.name: min(spec.partitions, 3) for spec in catalogue.all_topics()}
    return InMemoryBus(counts | {DLQ: dlq_partitions})


@pytest.fixture
def bus() -> InMemoryBus:
    return make_bus()


def add_letter(
    bus: InMemoryBus,
    number: int = 0,
    *,
    value: bytes | None = BROKEN,
    key: bytes | None = b"k",
    partition: int = 0,
    error: BaseException | None = None,
) -> LetterId:
    headers = letter_headers(error or MalformedRecord(f"no {number}"), number)
    written = (
        bus.publisher().publish(DLQ, key=key, value=value, headers=headers, partition=partition)
    ).result(0)
    return LetterId(TOPIC, partition, written.offset)


def states(bus: InMemoryBus) -> dict[LetterId, str]:
    return {letter.id: letter.state for letter in DeadLetters(bus).letters(contract.TOPICS)}


def test_a_replay_publishes_the_same_record_and_settles_the_letter(bus: InMemoryBus) -> None:
    letter = add_letter(bus)
    before = bus.records(DLQ)
    ((replayed, position),) = DeadLetters(bus).replay([letter], by="ann", reason="try")
    (sent,) = bus.records(TOPIC)
    assert (sent.key, sent.value) == (b"k", BROKEN)
    assert sent.headers == (*ORIGINAL, (contract.REPLAYED_FROM, str(letter).encode()))
    # The partitioner chose, not we: the same key goes to the same place.
    ordinary = bus.publisher().publish(TOPIC, key=b"k", value=b"").result(0)
    assert (replayed, position.partition) == (letter, ordinary.partition)
    assert bus.records(DLQ)[:1] == before
    (read,) = DeadLetters(bus).letters([TOPIC])
    (settlement,) = read.history
    assert (settlement.outcome, settlement.by, settlement.reason, settlement.repaired) == (
        "replayed",
        "ann",
        "try",
        False,
    )
    assert settlement.replayed_to == f"{TOPIC}/{sent.partition}/{sent.offset}"


def test_letters_on_every_partition_and_beyond_one_batch_are_replayed_in_order() -> None:
    bus = make_bus(3)
    letters = [
        add_letter(bus, number, value=b"%d" % number, partition=number % 3)
        for number in range(3 * BATCH)
    ]
    chosen = [letter for letter in letters if letter.offset % 2]
    assert len(DeadLetters(bus).replay(chosen, by="ann")) == len(chosen)
    found = states(bus)
    assert {each for each in letters if found[each] == "replayed"} == set(chosen)
    for partition in range(3):
        values = [
            int(each.value or b"")
            for each in bus.records(TOPIC)
            if int(each.value or b"") % 3 == partition
        ]
        assert values == sorted(values)
    for each in bus.records(DLQ):
        if (of := codec.header(each.headers, contract.OFFSET)) is not None:
            assert LetterId(TOPIC, each.partition, int(of)) in chosen


def test_dropping_only_marks(bus: InMemoryBus) -> None:
    first, second = add_letter(bus), add_letter(bus)
    DeadLetters(bus).drop([first], by="ann", reason="noise")
    assert states(bus) == {first: "dropped", second: "open"}
    assert bus.records(TOPIC) == []
    assert DeadLetters(bus).record(first).value == BROKEN


def test_a_tombstone_with_a_key_is_replayed_as_one(bus: InMemoryBus) -> None:
    DeadLetters(bus).replay([add_letter(bus, value=None)], by="ann")
    assert [(each.key, each.value) for each in bus.records(TOPIC)] == [(b"k", None)]


def test_what_no_client_can_write_stays_open_and_the_others_go(bus: InMemoryBus) -> None:
    letters = [add_letter(bus), add_letter(bus, key=None, value=None)]
    with pytest.raises(SettlingIncomplete, match=r"1 of 2 .* neither key nor value"):
        DeadLetters(bus).replay(letters, by="ann")
    assert states(bus) == {letters[0]: "replayed", letters[1]: "open"}
    DeadLetters(bus).replay(letters[1:], by="ann", value=b"{}")
    assert states(bus)[letters[1]] == "replayed"


class FailingBus(InMemoryBus):
    """Takes ``left`` records on one topic and refuses the rest, or breaks on them."""

    def __init__(self, topic: str, left: int, error: BaseException) -> None:
        super().__init__()
        self.failing, self.left, self.error = topic, left, error
        self.armed = False

    def publisher(self, *, client_id: str = "feedloom") -> InMemoryPublisher:
        return FailingPublisher(self)


class FailingPublisher(InMemoryPublisher):
    def __init__(self, bus: FailingBus) -> None:
        super().__init__(bus)
        self._failing = bus

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        bus = self._failing
        if bus.armed and topic == bus.failing:
            if bus.left == 0:
                if not isinstance(bus.error, RetryableError):
                    raise bus.error
                future: Future[RecordPosition] = Future()
                future.set_exception(bus.error)
                return future
            bus.left -= 1
        return super().publish(topic, key=key, value=value, headers=headers, partition=partition)


def test_letters_that_the_broker_refuses_stay_open_and_the_sent_ones_are_settled() -> None:
    bus = FailingBus(TOPIC, BATCH + 5, RetryableError("disk full"))
    letters = [add_letter(bus, number) for number in range(3 * BATCH)]
    bus.armed = True
    with pytest.raises(SettlingIncomplete, match=r"105 of 300 letters are replayed.*disk full"):
        DeadLetters(bus).replay(letters, by="ann")
    assert len(bus.records(TOPIC)) == BATCH + 5
    found = states(bus)
    assert [found[each] for each in letters[: BATCH + 5]] == ["replayed"] * (BATCH + 5)
    assert {found[each] for each in letters[BATCH + 5 :]} == {"open"}


def test_a_letter_that_was_sent_but_not_marked_is_named() -> None:
    bus = FailingBus(DLQ, 1, RetryableError("disk full"))
    letters = [add_letter(bus), add_letter(bus)]
    bus.armed = True
    with pytest.raises(SettlingIncomplete, match=r"still listed as open: generation\.requests/1 "):
        DeadLetters(bus).replay(letters, by="ann")
    assert states(bus) == {letters[0]: "replayed", letters[1]: "open"}


def test_a_crash_before_the_mark_replays_twice_and_loses_nothing() -> None:
    bus = FailingBus(DLQ, 0, KeyboardInterrupt())
    letter = add_letter(bus)
    bus.armed = True
    with pytest.raises(KeyboardInterrupt):
        DeadLetters(bus).replay([letter], by="ann")
    assert states(bus) == {letter: "open"}
    bus.armed = False
    DeadLetters(bus).replay([letter], by="ann")
    assert states(bus) == {letter: "replayed"}
    assert [each.value for each in bus.records(TOPIC)] == [BROKEN, BROKEN]


def test_a_drop_that_the_broker_refuses_says_how_far_it_came() -> None:
    bus = FailingBus(DLQ, 1, RetryableError("disk full"))
    letters = [add_letter(bus), add_letter(bus)]
    bus.armed = True
    with pytest.raises(SettlingIncomplete, match=r"1 of 2 letters are dropped.*disk full"):
        DeadLetters(bus).drop(letters, by="ann")
    assert states(bus) == {letters[0]: "dropped", letters[1]: "open"}


class HollowBus(InMemoryBus):
    """Says its dead-letter topic ends later than the records that can be read."""

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        return {position: end + 5 for position, end in super().end_offsets(topic).items()}


def test_a_gap_at_the_end_of_a_log_is_no_letter_and_no_wait() -> None:
    bus = HollowBus()
    letter = add_letter(bus)
    asked: list[Spans] = []

    def blank(spans: Spans) -> Collection[TopicPartition]:
        asked.append(dict(spans))
        return list(spans)

    (found,) = DeadLetters(bus, blank=blank, stall_timeout_s=0).letters([TOPIC])
    assert found.id == letter
    assert asked == [{TopicPartition(DLQ, 0): (1, 6)}]


def test_a_gap_on_one_partition_does_not_hide_what_comes_late_on_another() -> None:
    bus = make_bus(2)
    letter = add_letter(bus, partition=1)
    late = bus.logs[DLQ][1].pop()

    def blank(spans: Spans) -> Collection[TopicPartition]:
        # The broker was slow: the record comes now.
        bus.logs[DLQ][1].append(late)
        return [TopicPartition(DLQ, 0)]

    spans = {TopicPartition(DLQ, 0): 3, TopicPartition(DLQ, 1): 1}
    bus.end_offsets = lambda topic: spans  # type: ignore[method-assign]
    (found,) = DeadLetters(bus, blank=blank).letters([TOPIC])
    assert found.id == letter


def test_a_topic_that_is_written_all_the_time_does_not_hide_a_gap_on_another() -> None:
    bus = make_bus(2)
    letter = add_letter(bus, partition=1)
    polls = iter(range(50))

    class Busy(InMemoryReader):
        def poll(self, timeout_s: float, max_records: int = 500) -> Sequence[Record]:
            next(polls)
            add_letter(bus, partition=1)
            return super().poll(timeout_s, max_records)

    every = [TopicPartition(DLQ, 0), TopicPartition(DLQ, 1)]
    bus.reader = lambda *_, **__: Busy(bus, every, None, "earliest")  # type: ignore[method-assign]
    spans = dict.fromkeys(every, 1)
    bus.end_offsets = lambda topic: spans  # type: ignore[method-assign]
    (found,) = DeadLetters(bus, blank=lambda spans: list(spans)).letters([TOPIC])
    assert found.id == letter


def test_letters_that_do_not_come_are_an_error_and_not_an_empty_list() -> None:
    bus = HollowBus()
    add_letter(bus)
    with pytest.raises(DeadLettersUnreadable, match=r"no record of generation\.requests\.dlq/0"):
        DeadLetters(bus, stall_timeout_s=0.05).letters([TOPIC])


def test_a_letter_that_expired_after_it_was_listed_is_named(bus: InMemoryBus) -> None:
    letter = add_letter(bus)
    add_letter(bus)
    bus.logs[DLQ][0][0] = record(1, letter_headers(MalformedRecord("the next one")))
    with pytest.raises(DeadLetterRefused, match=r"no longer .*: generation\.requests/0"):
        DeadLetters(bus).replay([letter], by="ann")
    assert bus.records(TOPIC) == []


# --- the commands ---


class Run:
    """``feedloom dlq ...`` in this process."""

    def __call__(self, *arguments: str, stdin: str = "", status: int = 0) -> str:
        outcome = self.outcome(*arguments, stdin=stdin)
        assert outcome.exit_code == status, outcome.output
        return outcome.stdout

    def outcome(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(dlq, list(arguments), input=stdin)

    def refused(self, *arguments: str) -> str:
        """The message of the FeedloomError, which ``feedloom`` prints before it exits with 1."""
        error = self.outcome(*arguments).exception
        assert isinstance(error, DeadLetterRefused)
        return str(error)


@pytest.fixture
def run(bus: InMemoryBus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    @contextmanager
    def opened(settings: Settings) -> Iterator[DeadLetters]:
        yield DeadLetters(bus)

    monkeypatch.setattr("infra.kafka.dead_letters.open_dead_letters", opened)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.chdir(tmp_path)
    return Run()


def test_with_no_letter_list_says_so(run: Run, bus: InMemoryBus) -> None:
    assert run("list") == "no dead letters\n"
    assert json.loads(run("list", "--json")) == []
    add_letter(bus)
    run("drop", "--all", "--yes")
    assert run("list") == "no dead letters (1 settled: --all shows them)\n"


def test_list_shows_one_line_a_letter_and_counts_errors(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus, error=MalformedRecord("\x1b[31mred\nline " + "x" * 500))
    add_letter(bus, error=UnknownEventType("what"))
    add_letter(bus)
    run("drop", f"{TOPIC}/2", "--yes", "--reason", "seen")
    head, first, second, summary = run("list", "--topic", TOPIC).splitlines()
    assert head.split() == ["ID", "WHEN", "FROM", "BYTES", "ERROR", "MESSAGE"]
    assert first.split()[0] == f"{TOPIC}/0"
    assert first.split()[2:6] == ["3/0", str(len(BROKEN)), "MalformedRecord", "\\x1b[31mred\\nline"]
    assert first.endswith("xxx...")
    assert len(first) < 180
    assert second.endswith("what")
    assert summary == "2 letters (MalformedRecord 1, UnknownEventType 1)"
    everything = run("list", "--all").splitlines()
    assert everything[3].split()[:2] == [f"{TOPIC}/2", "dropped"]
    assert everything[-1] == "3 letters (MalformedRecord 2, UnknownEventType 1); 2 open"
    assert run("list", "--topic", catalogue.FEEDBACK.name) == "no dead letters\n"


def test_list_as_json_keeps_messages_whole(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus, error=MalformedRecord("y" * 500))
    run("drop", "--all", "--yes", "--reason", "seen")
    (letter,) = json.loads(run("list", "--json", "--all"))
    assert letter["id"] == f"{TOPIC}/0"
    assert letter["message"] == "y" * 500
    assert (letter["state"], letter["source_partition"], letter["size"]) == (
        "dropped",
        3,
        len(BROKEN),
    )
    assert letter["history"][0]["reason"] == "seen"


def test_show_dumps_bytes_that_are_no_text(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus, value=BROKEN + bytes(300), key=b"\xff\x00")
    lines = run("show", f"{TOPIC}/0").splitlines()
    assert f"from       {TOPIC}, partition 3, offset 0" in lines
    assert "error      infra.contracts.errors.MalformedRecord" in lines
    assert "message    no 0" in lines
    assert "key        hex ff 00" in lines
    assert "  mine: hex 00 fe" in lines
    assert "  traceparent: 00-1-2-01" in lines
    assert '00000000  7b 22 74 79 70 65 22 3a 20 22 47 65 6e 65 72 61  |{"type": "Genera|' in lines
    assert len([line for line in lines if line.endswith("|")]) == 16
    assert lines[-1] == f"... {len(BROKEN) + 300 - 256} more bytes; --raw FILE writes all"


def test_show_prints_text_and_json_without_terminal_escapes(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus, value=b'{"a":1.10,"a":2,"e":"\xc2\x9b2J"}')
    add_letter(bus, value="caf\u00e9 \x1b[2J\n{".encode())
    add_letter(bus, value=None)
    assert run("show", f"{TOPIC}/0").endswith('{\n  "a": 1.10,\n  "a": 2,\n  "e": "\\x9b2J"\n}\n')
    assert run("show", f"{TOPIC}/1").endswith("\ncaf\u00e9 \\x1b[2J\n{\n")
    assert run("show", f"{TOPIC}/2").endswith("\nvalue      none (a tombstone)\n")


def test_show_tells_what_became_of_a_letter(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus)
    run("replay", f"{TOPIC}/0", "--yes")
    run("replay", f"{TOPIC}/0", "--yes", "--again", "--reason", "once more")
    shown = run("show", f"{TOPIC}/0")
    assert "state      replayed\n" in shown
    assert shown.count(" by ann at ") == 2
    assert ": once more\n" in shown


def test_raw_writes_the_exact_bytes(run: Run, bus: InMemoryBus, tmp_path: Path) -> None:
    add_letter(bus)
    add_letter(bus, value=None)
    assert run("show", f"{TOPIC}/0", "--raw", "letter.bin") == ""
    assert (tmp_path / "letter.bin").read_bytes() == BROKEN
    piped = run.outcome("show", f"{TOPIC}/0", "--raw", "-")
    assert piped.stdout_bytes == BROKEN
    assert "nothing to write" in run.refused("show", f"{TOPIC}/1", "--raw", "none.bin")
    assert not (tmp_path / "none.bin").exists()
    unwritable = run.outcome("show", f"{TOPIC}/0", "--raw", "missing/letter.bin")
    assert (unwritable.exit_code, "missing/letter.bin" in unwritable.output) == (1, True)


def test_replay_asks_first_and_a_dry_run_publishes_nothing(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus)
    assert "[y/N]" in run("replay", "--all", stdin="n\n", status=1)
    run("replay", "--all", status=1)
    dry = run("replay", "--all", "--dry-run")
    assert (
        dry.splitlines()[-1] == "would replay 1 letter (MalformedRecord 1); nothing was published"
    )
    assert bus.records(TOPIC) == []
    assert (
        run("replay", "--all", stdin="y\n").splitlines()[-1].startswith(f"{TOPIC}/0 replayed to ")
    )
    assert len(bus.records(TOPIC)) == 1


def test_replay_of_one_error_leaves_the_others(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus)
    other = add_letter(bus, error=UnknownEventType("what"))
    run("replay", "--all", "--topic", TOPIC, "--error", "UnknownEventType", "--yes")
    assert [each for each, state in states(bus).items() if state == "replayed"] == [other]


def test_a_repaired_record_keeps_key_and_headers(
    run: Run, bus: InMemoryBus, tmp_path: Path
) -> None:
    add_letter(bus)
    add_letter(bus)
    good = codec.encode(
        GenerationRequest(request_id="r", submit_id="s", prompt="hello", created_at_ms=0)
    )
    (tmp_path / "good.json").write_bytes(good)
    (tmp_path / "bad.json").write_bytes(b"{")
    outcome = run.outcome("replay", f"{TOPIC}/0", "--value", "good.json", "--yes")
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    (sent,) = bus.records(TOPIC)
    assert (sent.key, sent.value, sent.headers[:2]) == (b"k", good, ORIGINAL)
    assert "with other bytes by ann" in run("show", f"{TOPIC}/0")
    outcome = run.outcome("replay", f"{TOPIC}/1", "--value", "bad.json", "--dry-run")
    assert outcome.stderr.startswith("warning: these bytes are unreadable too: ")
    for several in (["--all"], [f"{TOPIC}/1", f"{TOPIC}/0"]):
        assert "one letter" in run.refused("replay", *several, "--value", "good.json", "--yes")


def test_what_cannot_be_done_is_said_and_nothing_is_changed(run: Run, bus: InMemoryBus) -> None:
    add_letter(bus)
    add_letter(bus)
    run("drop", f"{TOPIC}/0", "--yes")
    before = bus.records(DLQ)
    for command in ("replay", "drop"):
        assert "no letter is selected" in run.refused(command, "--yes")
        assert "is settled: dropped by ann" in run.refused(
            command, f"{TOPIC}/1", f"{TOPIC}/0", "--yes"
        )
        assert f"no letter {TOPIC}/9" in run.refused(command, f"{TOPIC}/9", "--yes")
        assert "'nobody' has no dead letters" in run.refused(
            command, "--all", "--topic", "nobody", "--yes"
        )
    # The mark itself is no letter.
    assert f"no letter {TOPIC}/2" in run.refused("show", f"{TOPIC}/2")
    assert "'nobody' has no dead letters" in run.refused("list", "--topic", "nobody")
    assert bus.records(DLQ) == before
    assert bus.records(TOPIC) == []


def test_a_user_without_a_name_is_a_number(
    run: Run, bus: InMemoryBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    add_letter(bus)
    run("drop", "--all", "--yes")
    (letter,) = DeadLetters(bus).letters([TOPIC])
    assert letter.history[0].by.startswith("uid ")
