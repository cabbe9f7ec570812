"""API keys: how one reads, what is stored of it, and the fold of their topic."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ContractError
from infra.contracts.events.platform import ApiKeyChanged
from infra.identity import hashing
from infra.identity.hashing import InvalidHash, ScryptHash
from infra.identity.keys import (
    InvalidApiKey,
    KeyRedefined,
    KeyRing,
    make_key,
    parse_key,
    state_of,
)

HASH = ScryptHash(14, 8, 1, b"s" * 16, b"d" * 32).text
ALPHABET = string.digits + string.ascii_letters


def key(key_id: str = "fl_a", **fields: object) -> ApiKeyChanged:
    given = {
        "tenant": "acme",
        "name": "app",
        "roles": ("caller",),
        "secret_hash": HASH,
        "created_at_ms": 1,
        **fields,
    }
    return ApiKeyChanged(key_id=key_id, **given)  # type: ignore[arg-type]


# How a key reads.


def test_a_key_is_its_id_a_secret_of_256_bits_and_a_checksum() -> None:
    made = make_key()
    assert parse_key(made.text) == made
    assert made.text.startswith(f"{made.key_id}_{made.secret}")
    assert len(made.key_id) == 3 + 12
    assert 62 ** len(made.secret) >= 2**256
    assert set(made.secret) <= set(ALPHABET)
    assert len({make_key().text for _ in range(100)}) == 100


def test_a_key_shows_its_secret_only_when_asked() -> None:
    made = make_key()
    assert made.secret not in repr(made)
    assert made.secret not in str(made)


def test_the_checksum_is_what_other_programs_can_compute() -> None:
    made = make_key(lambda letters: letters[0])
    assert made.text == "fl_000000000000_" + "0" * 43 + "1OLO5o"


@given(st.data())
def test_a_mistyped_key_is_told_without_any_work(data: st.DataObject) -> None:
    text = make_key(lambda letters: data.draw(st.sampled_from(letters))).text
    at = data.draw(st.integers(3, len(text) - 1))
    other = data.draw(st.sampled_from(ALPHABET).filter(lambda letter: letter != text[at]))
    with pytest.raises(InvalidApiKey) as caught:
        parse_key(text[:at] + other + text[at + 1 :])
    assert text[16:59] not in str(caught.value)


@pytest.mark.parametrize("change", [str.swapcase, lambda t: t[:-1], lambda t: t + "\n"])
def test_a_key_must_be_whole(change: Callable[[str], str]) -> None:
    with pytest.raises(InvalidApiKey):
        parse_key(change(make_key().text))


@given(st.text(max_size=80))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    for each in (text, f"fl_{text}", f"fl_000000000000_{text}"):
        with pytest.raises(InvalidApiKey):
            parse_key(each)


# What is stored.


def test_only_a_hash_is_stored_and_every_hash_has_a_salt_of_its_own() -> None:
    secret = make_key().secret
    first, second = hashing.hashed(secret), hashing.hashed(secret)
    assert first != second
    assert secret not in first
    assert first.startswith("$scrypt$ln=14,r=8,p=1$")
    assert hashing.parse(first).matches(secret)
    assert not hashing.parse(first).matches(secret[:-1] + "!")


def test_the_hash_is_scrypt_with_the_parameters_that_it_names() -> None:
    salt = b"NaCl" * 4
    digest = hashlib.scrypt(b"password", salt=salt, n=1024, r=8, p=4, dklen=32)
    assert ScryptHash(10, 8, 4, salt, digest).matches("password")
    for log2_n, r, p in ((11, 8, 4), (10, 4, 4), (10, 8, 3)):
        assert not ScryptHash(log2_n, r, p, salt, digest).matches("password")


@given(
    st.integers(1, 16),
    st.integers(1, 16),
    st.integers(1, 4),
    st.binary(min_size=16, max_size=40),
    st.binary(min_size=32, max_size=32),
)
def test_the_stored_form_is_read_back(n: int, r: int, p: int, salt: bytes, digest: bytes) -> None:
    made = ScryptHash(n, r, p, salt, digest)
    assert hashing.parse(made.text) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        HASH + "=",
        HASH.replace("ln=14", "ln=40"),
        HASH.replace("ln=14", "ln=017"),
        HASH.replace("r=8", "r=99"),
        HASH.replace("p=1", "p=9"),
        HASH.replace("$scrypt", "$md5"),
        HASH[:-4],
        ScryptHash(14, 8, 1, b"short", b"d" * 32).text,
        ScryptHash(14, 8, 1, b"s" * 16, b"d" * 31).text,
        HASH[:-1] + "l",
    ],
)
def test_a_hash_that_cannot_be_checked_or_costs_too_much_is_refused(text: str) -> None:
    with pytest.raises(InvalidHash):
        hashing.parse(text)


@given(st.text(max_size=120))
def test_no_text_for_a_hash_does_more_than_be_refused(text: str) -> None:
    for each in (text, f"$scrypt$ln=14,r=8,p=1${text}"):
        try:
            assert hashing.parse(each).text == each
        except InvalidHash:
            continue


# The fold.

CHANGES = st.lists(
    st.builds(
        lambda key_id, expires, revoked, replaced: key(
            key_id, expires_at_ms=expires, revoked_at_ms=revoked, replaced_by=replaced
        ),
        st.sampled_from(["fl_a", "fl_b"]),
        st.none() | st.integers(0, 5),
        st.none() | st.integers(0, 5),
        st.none() | st.sampled_from(["fl_c", "fl_d"]),
    ),
    max_size=12,
)


def folded(events: list[ApiKeyChanged]) -> list[ApiKeyChanged]:
    ring = KeyRing()
    for event in events:
        ring.apply(event)
    return ring.keys()


@given(CHANGES.filter(bool), st.data())
def test_neither_order_nor_redelivery_changes_what_keys_may_do(
    events: list[ApiKeyChanged], data: st.DataObject
) -> None:
    redelivered = data.draw(st.lists(st.sampled_from(events), max_size=6))
    shuffled = data.draw(st.permutations(events + redelivered))
    assert folded(shuffled) == folded(events)


@given(CHANGES)
def test_what_was_taken_away_stays_so(events: list[ApiKeyChanged]) -> None:
    ring = KeyRing()
    for event in events:
        before = ring.get(event.key_id)
        changed = ring.apply(event)
        after = ring.get(event.key_id)
        assert after is not None
        assert changed == (after != before)
        assert not ring.apply(event)
        for now_ms in range(7):
            good = [state_of(each, now_ms=now_ms) == "active" for each in (before, event) if each]
            assert (state_of(after, now_ms=now_ms) == "active") == all(good)


@given(CHANGES)
def test_a_compacted_topic_tells_the_same(events: list[ApiKeyChanged]) -> None:
    """Writers write the whole as they found it; compaction keeps the last record of a key."""
    ring = KeyRing()
    written: list[ApiKeyChanged] = []
    for event in events:
        ring.apply(event)
        standing = ring.get(event.key_id)
        assert standing is not None
        written.append(standing)
    last = {event.key_id: event for event in written}
    assert folded(list(last.values())) == folded(events)


def test_who_changed_a_key_last_is_told_and_who_revoked_it_for_ever() -> None:
    ring = KeyRing()
    ring.apply(key(actor="ann", reason="new"))
    ring.apply(key(actor="bob", reason="rotated", expires_at_ms=9))
    ring.apply(key(actor="ann", reason="new"))
    assert (found := ring.get("fl_a")) is not None
    assert (found.actor, found.reason) == ("bob", "rotated")
    ring.apply(key(actor="cat", reason="leaked", revoked_at_ms=5))
    ring.apply(key(actor="dan", reason="rotated", expires_at_ms=2))
    assert ring.get("fl_a") == key(actor="cat", reason="leaked", revoked_at_ms=5, expires_at_ms=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "other"},
        {"roles": ("caller", "operator")},
        {"models": ("m",)},
        {"secret_hash": ScryptHash(14, 8, 1, b"t" * 16, b"d" * 32).text},
        {"name": "other"},
        {"created_at_ms": 2},
    ],
)
def test_the_rights_of_a_key_never_change(fields: dict[str, object]) -> None:
    ring = KeyRing()
    ring.apply(key())
    with pytest.raises(KeyRedefined, match=next(iter(fields))) as caught:
        ring.apply(key(**fields))
    assert isinstance(caught.value, ContractError)
    assert ring.keys() == [key()]


def test_a_key_whose_hash_cannot_be_checked_is_none() -> None:
    ring = KeyRing()
    with pytest.raises(InvalidHash):
        ring.apply(key(secret_hash="plain"))
    assert ring.keys() == []


def test_a_tombstone_forgets_a_key() -> None:
    ring = KeyRing()
    ring.apply(key())
    assert ring.forget("fl_a")
    assert not ring.forget("fl_a")
    assert ring.get("fl_a") is None


def test_a_key_is_good_until_the_moment_it_expires() -> None:
    assert state_of(key(expires_at_ms=10), now_ms=9) == "active"
    assert state_of(key(expires_at_ms=10), now_ms=10) == "expired"
    assert state_of(key(), now_ms=10**15) == "active"
    assert state_of(key(revoked_at_ms=10**15), now_ms=0) == "revoked"
