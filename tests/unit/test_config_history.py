"""The history of dynamic settings, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue, codec
from infra.contracts.bus import RecordPosition
from infra.contracts.codec import Headers
from infra.contracts.config_keys import InvalidSetting
from infra.contracts.errors import RetryableError
from infra.contracts.events.platform import ConfigChanged
from infra.registry import commands
from infra.registry.config import HISTORY, TOPIC, ConfigOvertaken, ConfigWatcher, publish_config
from infra.registry.config_history import (
    NoSuchRevision,
    PastChange,
    fold_history,
    newest_revision,
    read_history,
    revert_config,
    revision_to_restore,
)
from infra.testing import InMemoryBus, InMemoryPublisher

KEY, OTHER = "worker.max_waiting", "worker.log_level"


def change(value: str, revision: int, at_ms: int = 0, key: str = KEY) -> ConfigChanged:
    return ConfigChanged(key=key, value=value, revision=revision, changed_at_ms=at_ms)


def publish(bus: InMemoryBus, key: str, json_text: str, now_ms: int = 0) -> ConfigChanged:
    watcher = ConfigWatcher(bus)
    return publish_config(bus.publisher(), watcher, key, json_text, now_ms=now_ms)


def put(bus: InMemoryBus, event: ConfigChanged) -> None:
    """As a writer does that knows of no history."""
    bus.publisher().publish(TOPIC, key=event.key.encode(), value=codec.encode(event))


def compact(bus: InMemoryBus) -> None:
    """What log compaction does: only the last record of each key stays."""
    bus.logs[TOPIC] = [
        list({record.key: record for record in log}.values()) for log in bus.logs[TOPIC]
    ]


def revert(bus: InMemoryBus, to: int | None = None, reason: str = "") -> ConfigChanged:
    return revert_config(
        bus, bus.publisher(), ConfigWatcher(bus), KEY, to=to, now_ms=0, actor="ann", reason=reason
    )


def told(changes: Sequence[PastChange]) -> list[tuple[int, str, str]]:
    return [(past.event.revision, past.event.value, past.outcome) for past in changes]


def test_the_history_is_kept_for_ever() -> None:
    assert catalogue.CONFIG_HISTORY.config == {"cleanup.policy": "delete", "retention.ms": "-1"}


@given(
    st.lists(
        st.tuples(st.sampled_from([KEY, OTHER]), st.integers(1, 3), st.booleans()), max_size=12
    )
)
def test_compaction_takes_nothing_out_of_the_history(
    steps: list[tuple[str, int, bool]],
) -> None:
    bus = InMemoryBus()
    published = []
    for moment, (key, number, compacted) in enumerate(steps):
        text = str(number) if key == KEY else "null"
        published.append(publish(bus, key, text, now_ms=moment))
        if compacted:
            compact(bus)
    told = read_history(bus)
    assert [past.event for past in told] == published
    newest = {event.key: event for event in published}
    assert {past.event.key: past.event for past in told if past.outcome == "in force"} == newest
    assert all(past.outcome in ("in force", "replaced") for past in told)
    assert read_history(bus, KEY) == [past for past in told if past.event.key == KEY]


def test_what_a_foreign_writer_set_is_in_the_history_once_it_is_replaced() -> None:
    bus = InMemoryBus()
    put(bus, change("7", 1))
    put(bus, change("0", 2))
    publish(bus, KEY, "8")
    compact(bus)
    assert told(read_history(bus)) == [
        (1, "7", "replaced"),
        (2, "0", "not valid"),
        (3, "8", "in force"),
    ]


class _Interrupted(InMemoryPublisher):
    """Its process dies before it comes to the topic itself."""

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        if topic == TOPIC:
            raise RetryableError("cut off")
        return super().publish(topic, key=key, value=value, headers=headers)


def test_a_change_that_was_announced_and_never_made_is_told_from_the_others() -> None:
    bus = InMemoryBus()
    publish(bus, KEY, "5")
    with pytest.raises(RetryableError, match="cut off"):
        publish_config(_Interrupted(bus), ConfigWatcher(bus), KEY, "6", now_ms=1)
    assert told(read_history(bus)) == [(1, "5", "in force"), (2, "6", "not made")]
    with pytest.raises(NoSuchRevision, match=r"no valid revision 2 .* has: 1$"):
        revert(bus, to=2)
    publish(bus, KEY, "7", now_ms=2)
    compact(bus)
    assert told(read_history(bus)) == [
        (1, "5", "replaced"),
        (2, "6", "overtaken"),
        (2, "7", "in force"),
    ]


def test_of_rivals_the_history_says_which_stood_after_compaction_too() -> None:
    # Both wrote revision 2; on the topic b came last, in the history a did.
    first, a, b, third = change("1", 1), change("2", 2), change("3", 2), change("4", 3)
    history = [first, b, first, a]
    expected = [(1, "1", "replaced"), (2, "2", "overtaken"), (2, "3", "in force")]
    assert told(fold_history(history, [first, a, b])) == expected
    expected = [*expected[:2], (2, "3", "replaced"), (3, "4", "in force")]
    assert told(fold_history([*history, b, third], [third])) == expected


def test_within_a_key_no_clock_runs_against_the_revisions() -> None:
    slow = [change("1", 1, 90), change("2", 2, 10), change("null", 1, 50, OTHER)]
    assert [past.event.value for past in fold_history(slow, slow)] == ["null", "1", "2"]


def test_a_bad_record_in_the_history_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    bus = InMemoryBus()
    publish(bus, KEY, "5")
    publisher = bus.publisher()
    publisher.publish(HISTORY, key=KEY.encode(), value=b"{")
    publisher.publish(HISTORY, key=b"elsewhere", value=codec.encode(change("6", 1)))
    assert told(read_history(bus)) == [(1, "5", "in force")]
    assert "unreadable record" in caplog.text


# Going back.


def test_a_revert_is_a_new_revision_and_a_second_one_undoes_it() -> None:
    bus = InMemoryBus()
    for text in ("5", "6", "7"):
        publish(bus, KEY, text)
        compact(bus)
    event = revert(bus)
    assert (event.value, event.revision, event.actor) == ("6", 4, "ann")
    assert event.reason == "revert to revision 2"
    event = revert(bus, reason="no")
    assert (event.value, event.revision) == ("7", 5)
    assert event.reason == "revert to revision 3: no"
    event = revert(bus, to=1)
    assert (event.value, event.revision) == ("5", 6)


@pytest.mark.parametrize("compacted", [False, True])
def test_a_revert_from_a_value_that_is_not_valid_goes_to_what_it_left_in_force(
    compacted: bool,
) -> None:
    bus = InMemoryBus()
    publish(bus, KEY, "5")
    publish(bus, KEY, "6")
    put(bus, change("0", 3))
    if compacted:
        compact(bus)
    with pytest.raises(NoSuchRevision, match="no valid revision 3"):
        revert(bus, to=3)
    event = revert(bus)
    assert (event.value, event.revision) == ("6", 4)
    watcher = ConfigWatcher(bus)
    watcher.catch_up()
    assert watcher.state.refusals() == []


def test_without_an_older_change_there_is_nothing_to_go_back_to() -> None:
    bus = InMemoryBus()
    for _ in range(2):
        with pytest.raises(NoSuchRevision, match=f"config unset {KEY}"):
            revert(bus)
        if not bus.records(TOPIC):
            publish(bus, KEY, "5")
    with pytest.raises(NoSuchRevision, match=r"no valid revision 9 .* has: 1$"):
        revert(bus, to=9)
    assert newest_revision([]) == 0
    with pytest.raises(NoSuchRevision, match="has: none"):
        revision_to_restore(KEY, [], 1)


def test_a_change_between_reading_and_reverting_is_not_run_over() -> None:
    bus = InMemoryBus()
    publish(bus, KEY, "5")
    publish(bus, KEY, "6")
    with pytest.raises(ConfigOvertaken, match="is now 6"):
        publish_config(bus.publisher(), ConfigWatcher(bus), KEY, "7", now_ms=0, after=1)
    assert len(bus.records(TOPIC)) == 2


# The commands.


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> InMemoryBus:
    made = InMemoryBus()
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: made)
    monkeypatch.setenv("LOGNAME", "ann")
    return made


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands.config, arguments, catch_exceptions=True)


def test_history_prints_the_newest_last_and_revert_goes_back(bus: InMemoryBus) -> None:
    assert run("history").output == "nothing was changed yet\n"
    run("set", KEY, "5", "--reason", "a\tload\x1b[1m test")
    run("set", OTHER, "DEBUG")
    run("set", KEY, "6")
    put(bus, ConfigChanged(key=KEY, value="0", revision=3, changed_at_ms=10**18))
    said = run("revert", KEY, "--reason", "too slow").output
    assert said.endswith(f"{KEY} is 6 (revision 4)\n")
    lines = run("history", KEY).output.splitlines()
    assert lines[0].split() == ["REVISION", "TIME", "ACTOR", "VALUE", "OUTCOME", "REASON"]
    rows = [line.split(maxsplit=3) for line in lines[1:]]
    assert [(row[0], row[2]) for row in rows] == [
        ("1", "ann"),
        ("2", "ann"),
        ("3", "-"),
        ("4", "ann"),
    ]
    assert [row[3].split() for row in rows] == [
        ["5", "replaced", "a�load�[1m", "test"],
        ["6", "replaced"],
        ["0", "not", "valid"],
        ["6", "in", "force", "revert", "to", "revision", "2:", "too", "slow"],
    ]
    assert rows[2][1] == "9999-12-31T23:59:59Z"
    everything = run("history").output.splitlines()
    assert "KEY" in everything[0]
    assert sum(OTHER in line for line in everything) == 1
    (last,) = run("history", KEY, "--limit", "1").output.splitlines()[1:]
    assert last.startswith("4 ")
    assert run("revert", KEY, "--to", "1").output == f"{KEY} is 5 (revision 5)\n"


@pytest.mark.parametrize("arguments", [("history", "worker.nothing"), ("revert", "worker.nothing")])
def test_unknown_keys_are_named(bus: InMemoryBus, arguments: tuple[str, ...]) -> None:
    assert isinstance(run(*arguments).exception, InvalidSetting)


def test_text_needs_no_quotes_and_bad_values_are_listed(bus: InMemoryBus) -> None:
    for text in ("DEBUG", '"DEBUG"'):
        assert run("set", OTHER, text).output.startswith(f'{OTHER} is "DEBUG" (revision')
    assert isinstance(run("set", OTHER, "LOUD").exception, InvalidSetting)
    put(bus, change('"LOUD"', 7, key=OTHER))
    put(bus, change("1", 1, key="worker.later"))
    put(bus, change("0", 1, key="workers.w-1.max_waiting"))
    lines = run("list").output.splitlines()
    (at,) = [index for index, line in enumerate(lines) if line.startswith(f"* {OTHER}")]
    assert "set by ann, revision 2" in lines[at + 1]
    assert "revision 7 by somebody is not valid and not in force: " in lines[at + 2]
    assert "one of DEBUG" in lines[at + 2]
    (at,) = [index for index, line in enumerate(lines) if line == "! worker.later"]
    assert "there is no setting 'worker.later'" in lines[at + 1]
    (at,) = [index for index, line in enumerate(lines) if "workers.w-1.max_waiting" in line][:1]
    assert lines[at].startswith("  workers.w-1.max_waiting")
    assert "revision 1 by somebody is not valid" in lines[at + 1]
