"""``platform.keys``: writing and watching it, and ``feedloom keys``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import pytest
from click.testing import CliRunner, Result

from infra.contracts import catalogue, codec
from infra.contracts.bus import RecordPosition
from infra.contracts.codec import Headers
from infra.contracts.errors import FeedloomError
from infra.contracts.events.platform import ApiKeyChanged
from infra.identity import commands, hashing
from infra.identity.key_topic import (
    KeyIsOver,
    KeyOvertaken,
    KeyRefused,
    KeysWatcher,
    MadeKey,
    UnknownKey,
    create_key,
    publish_key,
    read_keys,
    revoke_key,
    rotate_key,
)
from infra.identity.keys import KeyState, parse_key, state_of
from infra.testing import InMemoryBus, InMemoryPublisher

TOPIC = catalogue.KEYS.name
DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> InMemoryBus:
    made = InMemoryBus()
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: made)
    monkeypatch.setenv("LOGNAME", "ann")
    return made


def create(
    bus: InMemoryBus, publisher: InMemoryPublisher | None = None, **fields: object
) -> MadeKey:
    given = {"tenant": "acme", "name": "app", "roles": ("caller",), "now_ms": NOW_MS, **fields}
    return create_key(publisher or bus.publisher(), KeysWatcher(bus), **given)  # type: ignore[arg-type]


def rotate(bus: InMemoryBus, key_id: str, *, now_ms: int = NOW_MS, overlap_ms: int = 1) -> MadeKey:
    return rotate_key(
        bus.publisher(), KeysWatcher(bus), key_id, overlap_ms=overlap_ms, now_ms=now_ms
    )


def state(bus: InMemoryBus, key_id: str, now_ms: int) -> KeyState:
    found = read_keys(bus).get(key_id)
    assert found is not None
    return state_of(found, now_ms=now_ms)


# The topic.


def test_a_key_is_on_the_topic_and_its_secret_is_not(bus: InMemoryBus) -> None:
    made = create(bus, roles=("feedback", "caller", "caller"), models=("b", "a"), actor="ann")
    (record,) = bus.records(TOPIC)
    assert record.key_text == made.key.key_id
    assert made.key.secret.encode() not in (record.value or b"")
    event = codec.decode(record.value or b"", ApiKeyChanged)
    assert event == made.event == read_keys(bus).get(made.key.key_id)
    assert hashing.parse(event.secret_hash).matches(made.key.secret)
    assert (event.roles, event.models, event.actor) == (("caller", "feedback"), ("a", "b"), "ann")


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": ""},
        {"tenant": "a/b"},
        {"tenant": " a"},
        {"tenant": "a\n"},
        {"tenant": "x" * 129},
        {"name": ""},
        {"name": "a\x1b[2J"},
        {"name": "x" * 101},
        {"roles": ()},
    ],
)
def test_a_key_that_cannot_be_is_not_made(bus: InMemoryBus, fields: dict[str, object]) -> None:
    with pytest.raises(KeyRefused):
        create(bus, **fields)
    assert bus.records(TOPIC) == []


def test_a_rotated_key_keeps_its_rights_and_lifetime_and_the_old_one_ends(
    bus: InMemoryBus,
) -> None:
    old = create(bus, models=("m",), expires_at_ms=NOW_MS + 90 * DAY_MS)
    later_ms = NOW_MS + 10 * DAY_MS
    new = rotate(bus, old.key.key_id, now_ms=later_ms, overlap_ms=DAY_MS)
    kept = ("tenant", "name", "roles", "models")
    assert [getattr(new.event, each) for each in kept] == [
        getattr(old.event, each) for each in kept
    ]
    assert new.key.secret != old.key.secret
    assert new.event.expires_at_ms == later_ms + 90 * DAY_MS
    ring = read_keys(bus)
    ending = ring.get(old.key.key_id)
    assert ending is not None
    assert (ending.expires_at_ms, ending.replaced_by) == (later_ms + DAY_MS, new.key.key_id)
    assert state(bus, old.key.key_id, later_ms + DAY_MS - 1) == "active"
    assert state(bus, old.key.key_id, later_ms + DAY_MS) == "expired"
    with pytest.raises(KeyIsOver, match=new.key.key_id):
        rotate(bus, old.key.key_id, now_ms=later_ms)


def test_an_overlap_does_not_lengthen_a_life(bus: InMemoryBus) -> None:
    old = create(bus, expires_at_ms=NOW_MS + 10)
    rotate(bus, old.key.key_id, overlap_ms=DAY_MS)
    assert state(bus, old.key.key_id, NOW_MS + 10) == "expired"


def test_a_key_without_an_end_is_replaced_by_one_without(bus: InMemoryBus) -> None:
    assert rotate(bus, create(bus).key.key_id).event.expires_at_ms is None


def test_what_is_over_is_not_rotated(bus: InMemoryBus) -> None:
    expired = create(bus, expires_at_ms=NOW_MS)
    with pytest.raises(KeyIsOver, match="expired"):
        rotate(bus, expired.key.key_id)
    revoked = create(bus)
    revoke_key(bus.publisher(), KeysWatcher(bus), revoked.key.key_id, now_ms=NOW_MS)
    with pytest.raises(KeyIsOver, match="revoked"):
        rotate(bus, revoked.key.key_id)
    with pytest.raises(UnknownKey):
        rotate(bus, "fl_000000000000")


def test_a_revocation_stands_and_the_first_one_is_told(bus: InMemoryBus) -> None:
    made = create(bus)
    publisher, watcher = bus.publisher(), KeysWatcher(bus)
    for moment, reason in ((5, "leaked"), (6, "again")):
        revoke_key(publisher, watcher, made.key.key_id, now_ms=moment, actor="bob", reason=reason)
    found = read_keys(bus).get(made.key.key_id)
    assert found is not None
    assert (found.revoked_at_ms, found.actor, found.reason) == (5, "bob", "leaked")
    assert len(bus.records(TOPIC)) == 2


class Rival(InMemoryPublisher):
    """Somebody who writes a change of his own, of the key as he found it, after each of ours."""

    def __init__(self, bus: InMemoryBus, events: list[ApiKeyChanged]) -> None:
        super().__init__(bus)
        self._events = events

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        future = super().publish(topic, key=key, value=value, headers=headers, partition=partition)
        if self._events:
            super().publish(topic, key=key, value=codec.encode(self._events.pop(0)))
        return future


def test_a_rotation_at_the_same_moment_does_not_undo_a_revocation(bus: InMemoryBus) -> None:
    made = create(bus)
    stale = msgspec.structs.replace(made.event, expires_at_ms=NOW_MS + 9, replaced_by="fl_x")
    revoke_key(Rival(bus, [stale]), KeysWatcher(bus), made.key.key_id, now_ms=NOW_MS, reason="out")
    last = codec.decode(bus.records(TOPIC)[-1].value or b"", ApiKeyChanged)
    assert (last.revoked_at_ms, last.replaced_by, last.reason) == (NOW_MS, "fl_x", "out")
    assert last == read_keys(bus).get(made.key.key_id)


def test_a_writer_does_not_try_for_ever(bus: InMemoryBus) -> None:
    made = create(bus)
    rivals = [
        msgspec.structs.replace(made.event, expires_at_ms=NOW_MS - number) for number in range(50)
    ]
    with pytest.raises(KeyOvertaken):
        publish_key(Rival(bus, rivals), KeysWatcher(bus), made.event)
    assert rivals


def test_records_that_are_no_keys_are_passed_over(
    bus: InMemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    made = create(bus)
    publisher, key_id = bus.publisher(), made.key.key_id
    stolen = msgspec.structs.replace(made.event, tenant="other")
    for written_as, value in (
        (key_id, b"{"),
        (key_id, codec.encode(stolen)),
        ("fl_other", codec.encode(made.event)),
        ("fl_gone", None),
    ):
        publisher.publish(TOPIC, key=written_as.encode(), value=value)
    last = create(bus, name="last")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        watcher = KeysWatcher(bus)
        watcher.catch_up()
    assert caplog.text.count("passed over") == 3
    assert watcher.ring.keys() == sorted(
        [made.event, last.event], key=lambda event: (event.created_at_ms, event.key_id)
    )
    publisher.publish(TOPIC, key=key_id.encode(), value=None)
    assert watcher.poll(1) == [key_id]
    assert watcher.ring.get(key_id) is None


# The command.


def run(*arguments: str) -> Result:
    return CliRunner().invoke(commands.keys, arguments)


def made_by(*more: str) -> Result:
    return run("create", "--tenant", "acme", "--name", "app", "--role", "caller", *more)


def test_create_prints_the_key_alone_on_standard_output(bus: InMemoryBus) -> None:
    outcome = made_by("--role", "feedback", "--model", "m", "--expires", "90d", "--reason", "r")
    key = parse_key(outcome.stdout.removesuffix("\n"))
    assert outcome.exit_code == 0
    found = read_keys(bus).get(key.key_id)
    assert found is not None
    assert hashing.parse(found.secret_hash).matches(key.secret)
    assert (found.roles, found.models) == (("caller", "feedback"), ("m",))
    assert found.expires_at_ms == found.created_at_ms + 90 * DAY_MS
    assert (found.actor, found.reason) == ("ann", "r")
    assert key.key_id in outcome.stderr
    assert "caller, feedback, only m; until 20" in outcome.stderr
    assert key.secret not in outcome.stderr


def test_list_tells_everything_but_the_secret_and_its_hash(bus: InMemoryBus) -> None:
    keys = [parse_key(made_by(*more).stdout.strip()) for more in ((), ("--expires", "0s"))]
    run("revoke", keys[0].key_id, "--reason", "left")
    other = create(bus, tenant="other")
    rows = json.loads(run("list", "--json").stdout)
    assert {row["key_id"]: row["state"] for row in rows} == {
        keys[0].key_id: "revoked",
        keys[1].key_id: "expired",
        other.key.key_id: "active",
    }
    (row,) = json.loads(run("list", "--json", "--tenant", "other").stdout)
    assert (row["tenant"], row["expires_at"], row["models"]) == ("other", None, [])
    assert row["created_at"] == "2023-11-14T22:13:20Z"
    for outcome in (run("list"), run("list", "--json")):
        assert "scrypt" not in outcome.output
        assert not any(key.secret in outcome.output for key in (*keys, other.key))
    table = run("list").stdout.splitlines()
    assert table[0].split() == [
        "KEY", "ID", "TENANT", "NAME", "ROLES", "MODELS", "STATE", "EXPIRES", "REASON",
    ]  # fmt: skip
    (line,) = [line for line in table if keys[0].key_id in line]
    assert line.split()[1:] == ["acme", "app", "caller", "all", "revoked", "never", "left"]


def test_a_list_obeys_nothing_that_somebody_wrote(bus: InMemoryBus) -> None:
    create(bus, reason="\x1b[2J" + "x" * 300)
    assert "\x1b" not in run("list").output
    assert "x…" in run("list").output


def test_an_empty_list_says_what_to_do(bus: InMemoryBus) -> None:
    outcome = run("list")
    assert outcome.stdout == ""
    assert "feedloom keys create" in outcome.stderr
    assert run("list", "--json").stdout == "[]\n"


def test_rotate_prints_the_new_key_alone(bus: InMemoryBus) -> None:
    old = create(bus)
    outcome = run("rotate", old.key.key_id, "--overlap", "2h")
    key = parse_key(outcome.stdout.removesuffix("\n"))
    ending = read_keys(bus).get(old.key.key_id)
    assert ending is not None
    assert ending.replaced_by == key.key_id
    assert f"{old.key.key_id} is good until" in outcome.stderr
    assert key.secret not in outcome.stderr


def test_revoke_says_that_a_replacement_stays_good(bus: InMemoryBus) -> None:
    old = create(bus)
    new = parse_key(run("rotate", old.key.key_id).stdout.strip())
    outcome = run("revoke", old.key.key_id, "--reason", "leaked")
    assert outcome.stdout.startswith(f"{old.key.key_id} was revoked at 20")
    assert new.key_id in outcome.stderr
    assert run("revoke", new.key_id).exit_code == 2


def test_a_whole_key_names_its_id_and_is_shown_nowhere(bus: InMemoryBus) -> None:
    made = create(bus)
    outcome = run("revoke", made.key.text, "--reason", "leaked")
    assert outcome.exit_code == 0
    assert made.key.secret not in outcome.output
    assert state(bus, made.key.key_id, NOW_MS) == "revoked"
    unknown = run("rotate", f"fl_000000000000_{made.key.secret}")
    assert isinstance(unknown.exception, FeedloomError)
    assert made.key.secret not in str(unknown.exception)
    for text in (made.key.secret, made.key.key_id + made.key.secret):
        broken = run("rotate", text)
        assert broken.exit_code == 2
        assert made.key.secret not in broken.output


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "1y", "36501d", "9" * 13 + "s"])
def test_a_length_of_time_that_is_none_is_refused(bus: InMemoryBus, text: str) -> None:
    outcome = made_by("--expires", text)
    assert outcome.exit_code == 2
    assert "such as 90d" in outcome.output
    assert bus.records(TOPIC) == []


@pytest.mark.parametrize(
    ("text", "length_ms"),
    [
        ("10s", 10_000),
        ("30m", 1_800_000),
        ("24h", DAY_MS),
        ("90d", 90 * DAY_MS),
        ("2w", 14 * DAY_MS),
    ],
)
def test_a_length_of_time(text: str, length_ms: int) -> None:
    assert commands.duration(text) == length_ms


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "--name", "a", "--role", "caller"],
        ["create", "--tenant", "a", "--name", "a"],
        ["create", "--tenant", "a", "--name", "a", "--role", "root"],
        ["revoke", "fl_000000000000"],
    ],
)
def test_what_is_left_out_is_named(bus: InMemoryBus, arguments: Sequence[str]) -> None:
    outcome = run(*arguments)
    assert outcome.exit_code == 2
    assert "--" in outcome.output
