"""Credentials to principals: API keys, what is remembered of them, and no authentication at all."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import get_args

import pytest

from infra.contracts import catalogue
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.platform import Role
from infra.identity import authenticator as module
from infra.identity.authenticator import PlatformAuthenticator, SecretChecks
from infra.identity.key_topic import KeysWatcher, MadeKey, create_key, revoke_key, rotate_key
from infra.identity.keys import ApiKey, make_key
from infra.identity.loopback import is_loopback
from infra.identity.principal import (
    AuthenticationUnavailable,
    Forbidden,
    Principal,
    Unauthenticated,
)
from infra.settings import GatewaySettings
from infra.testing import InMemoryBus, ManualClock

NOW_MS = 1_700_000_000_000


class Platform:
    """An authenticator over the bus in memory, and somebody who changes keys."""

    def __init__(self) -> None:
        self.bus = InMemoryBus()
        self.clock = ManualClock(NOW_MS / 1000)
        self.writer = KeysWatcher(self.bus)
        self.publisher = self.bus.publisher()
        self.authenticator = PlatformAuthenticator(self.bus, GatewaySettings(), clock=self.clock)

    def create(self, **fields: object) -> MadeKey:
        given = {"tenant": "acme", "name": "app", "roles": ("caller",), "now_ms": NOW_MS, **fields}
        made = create_key(self.publisher, self.writer, **given)  # type: ignore[arg-type]
        self.authenticator.poll(1)
        return made

    def revoke(self, made: MadeKey) -> None:
        revoke_key(self.publisher, self.writer, made.key.key_id, now_ms=NOW_MS)
        self.authenticator.poll(1)


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch, platform: Platform) -> list[str]:
    """The secrets that scrypt was asked about."""
    asked: list[str] = []
    checks = platform.authenticator._checks
    matches = checks._matches
    monkeypatch.setattr(
        checks, "_matches", lambda text, secret: (asked.append(secret), matches(text, secret))[1]
    )
    return asked


# API keys.


async def test_a_key_names_its_tenant_and_what_it_may_do(platform: Platform) -> None:
    made = platform.create(roles=("caller", "feedback"), models=("m",))
    principal = await platform.authenticator.authenticate(made.key.text)
    assert principal == Principal(
        tenant="acme",
        subject="app",
        roles=frozenset({"caller", "feedback"}),
        credential=made.key.key_id,
        models=frozenset({"m"}),
    )
    principal.require("operator", "feedback")
    principal.require_model("m")
    with pytest.raises(Forbidden, match="operator or trainer"):
        principal.require("operator", "trainer")
    with pytest.raises(Forbidden, match="'other'"):
        principal.require_model("other")


async def test_only_the_first_call_pays_and_calls_at_once_pay_together(
    platform: Platform, hashes: list[str]
) -> None:
    text = platform.create().key.text
    once = await platform.authenticator.authenticate(text)
    assert len(hashes) == 1
    text = platform.create().key.text
    found = await asyncio.gather(*(platform.authenticator.authenticate(text) for _ in range(50)))
    assert {each.credential for each in found} == {text[:15]} != {once.credential}
    assert len(hashes) == 2


async def test_a_remembered_key_is_refused_as_soon_as_it_is_revoked(
    platform: Platform, hashes: list[str]
) -> None:
    made = platform.create()
    await platform.authenticator.authenticate(made.key.text)
    platform.revoke(made)
    with pytest.raises(Unauthenticated, match="was revoked"):
        await platform.authenticator.authenticate(made.key.text)
    assert len(hashes) == 1


async def test_a_key_that_is_revoked_while_it_is_checked_is_refused(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = platform.create()
    checks = platform.authenticator._checks
    matches = checks._matches

    def revoked_meanwhile(text: str, secret: str) -> bool:
        platform.revoke(made)
        return matches(text, secret)

    monkeypatch.setattr(checks, "_matches", revoked_meanwhile)
    with pytest.raises(Unauthenticated, match="was revoked"):
        await platform.authenticator.authenticate(made.key.text)


async def test_a_remembered_key_is_refused_as_soon_as_it_expires(platform: Platform) -> None:
    made = platform.create(expires_at_ms=NOW_MS + 5_000)
    platform.clock.advance(4.9)
    await platform.authenticator.authenticate(made.key.text)
    platform.clock.advance(0.1)
    with pytest.raises(Unauthenticated, match="has expired"):
        await platform.authenticator.authenticate(made.key.text)


async def test_both_keys_of_a_rotation_are_good_until_the_overlap_ends(platform: Platform) -> None:
    old = platform.create()
    new = rotate_key(
        platform.publisher, platform.writer, old.key.key_id, overlap_ms=1_000, now_ms=NOW_MS
    )
    platform.authenticator.poll(1)
    found = [await platform.authenticator.authenticate(each.key.text) for each in (old, new)]
    assert found[0].subject == found[1].subject
    platform.clock.advance(1)
    with pytest.raises(Unauthenticated, match="expired"):
        await platform.authenticator.authenticate(old.key.text)
    await platform.authenticator.authenticate(new.key.text)


async def test_what_is_refused_does_not_tell_whether_a_key_exists(
    platform: Platform, hashes: list[str]
) -> None:
    made, revoked = platform.create(), platform.create(name="old")
    platform.revoke(revoked)
    guess = make_key()
    said = set()
    for key_id in (made.key.key_id, revoked.key.key_id, guess.key_id):
        with pytest.raises(Unauthenticated) as caught:
            await platform.authenticator.authenticate(ApiKey(key_id, guess.secret).text)
        said.add(str(caught.value))
    assert said == {"the API key is not valid"}
    assert len(hashes) == 2


async def test_a_wrong_secret_is_remembered_and_a_typo_costs_nothing(
    platform: Platform, hashes: list[str]
) -> None:
    made = platform.create()
    wrong = ApiKey(made.key.key_id, make_key().secret).text
    for text in (wrong, wrong, made.key.text[:-1], made.key.text + "x", "fl_"):
        with pytest.raises(Unauthenticated):
            await platform.authenticator.authenticate(text)
    assert len(hashes) == 1
    await platform.authenticator.authenticate(made.key.text)
    assert len(hashes) == 2


async def test_a_credential_of_no_kind_is_told_what_to_send(platform: Platform) -> None:
    for text, says in (("abc", "neither an API key nor a token"), ("a.b.c", "send an API key")):
        with pytest.raises(Unauthenticated, match=says):
            await platform.authenticator.authenticate(text)
    assert platform.authenticator.required
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        platform.authenticator.anonymous()


async def test_no_credential_is_logged(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        made = platform.create()
        await platform.authenticator.authenticate(made.key.text)
        with pytest.raises(Unauthenticated):
            await platform.authenticator.authenticate(made.key.text[:-1])
        platform.revoke(made)
    assert made.key.key_id in caplog.text
    assert made.key.secret not in caplog.text
    assert made.event.secret_hash not in caplog.text


def test_keys_that_were_there_before_are_known_at_once() -> None:
    first = Platform()
    made = first.create()
    late = PlatformAuthenticator(first.bus, GatewaySettings(), clock=first.clock)
    assert asyncio.run(late.authenticate(made.key.text)).tenant == "acme"
    late.close()


# What is worked out, and how often.


class Scrypt:
    """Stands in for it: each call waits to be let go, and says how many ran at once."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.begun = threading.Semaphore(0)
        self.running = 0
        self.most = 0
        self.calls: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, text: str, secret: str) -> bool:
        with self._lock:
            self.calls.append(secret)
            self.running += 1
            self.most = max(self.most, self.running)
        self.begun.release()
        assert self.free.wait(30)
        with self._lock:
            self.running -= 1
        return secret == text


async def until_begun(scrypt: Scrypt) -> None:
    """Until one call more has begun."""
    assert await asyncio.to_thread(scrypt.begun.acquire, timeout=30)


async def test_two_hashes_at_once_at_most_and_one_for_each_key() -> None:
    scrypt = Scrypt()
    checks = SecretChecks(scrypt)
    guesses = [
        asyncio.create_task(checks.match(ApiKey("fl_a", f"guess{n}"), "right"))
        for n in range(module.WAITING_SECRETS)
    ]
    await until_begun(scrypt)
    others = [
        asyncio.create_task(checks.match(ApiKey(f"fl_{n}", "right"), "right")) for n in range(4)
    ]
    await until_begun(scrypt)
    assert sum(secret.startswith("guess") for secret in scrypt.calls) == 1
    with pytest.raises(AuthenticationUnavailable, match="try again"):
        await checks.match(ApiKey("fl_a", "right"), "right")
    scrypt.free.set()
    assert not any(await asyncio.gather(*guesses))
    assert all(await asyncio.gather(*others))
    assert scrypt.most == module.HASHES_AT_ONCE
    assert await checks.match(ApiKey("fl_a", "right"), "right")
    assert (checks._pending, checks._waiting, checks._lanes) == ({}, {}, {})


async def test_a_caller_who_hangs_up_does_not_end_the_check_of_the_others() -> None:
    scrypt = Scrypt()
    checks, key = SecretChecks(scrypt), ApiKey("fl_a", "right")
    first, second = (asyncio.create_task(checks.match(key, "right")) for _ in range(2))
    await until_begun(scrypt)
    first.cancel()
    scrypt.free.set()
    assert await second
    assert first.cancelled()
    assert scrypt.calls == ["right"]


async def test_what_is_remembered_is_bounded_and_guesses_do_not_push_out_what_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    scrypt = Scrypt()
    scrypt.free.set()
    checks = SecretChecks(scrypt)
    assert await checks.match(ApiKey("fl_a", "right"), "right")
    for number in range(10):
        assert not await checks.match(ApiKey("fl_a", f"guess{number}"), "right")
    assert await checks.match(ApiKey("fl_a", "right"), "right")
    assert scrypt.calls.count("right") == 1
    assert (len(checks._right), len(checks._wrong)) == (1, 3)
    await checks.match(ApiKey("fl_a", "guess0"), "right")
    assert scrypt.calls.count("guess0") == 2


async def test_a_secret_that_was_right_for_another_hash_is_worked_out_again() -> None:
    scrypt = Scrypt()
    scrypt.free.set()
    checks, key = SecretChecks(scrypt), ApiKey("fl_a", "right")
    assert await checks.match(key, "right")
    assert not await checks.match(key, "other")


async def test_the_secrets_themselves_are_not_kept() -> None:
    scrypt = Scrypt()
    scrypt.free.set()
    checks, again = SecretChecks(scrypt), SecretChecks(scrypt)
    for each in (checks, again):
        await each.match(ApiKey("fl_a", "right"), "right")
    (kept,), (kept_again,) = checks._right, again._right
    assert len(kept) == 32
    assert kept != kept_again


# No authentication.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
async def test_without_authentication_everybody_is_the_default_tenant(host: str) -> None:
    settings = GatewaySettings(authentication=False, host=host)
    open_to_all = PlatformAuthenticator(InMemoryBus(topics={}), settings)
    assert not open_to_all.required
    anybody = open_to_all.anonymous()
    assert (anybody.tenant, anybody.roles) == ("default", frozenset(get_args(Role)))
    assert await open_to_all.authenticate("whatever") == anybody
    open_to_all.poll(0)
    open_to_all.close()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.nip.io", ""]
)
def test_without_authentication_nobody_from_elsewhere_is_served(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ConfigurationError, match="FEEDLOOM_GATEWAY__HOST"):
        PlatformAuthenticator(InMemoryBus(), GatewaySettings(authentication=False, host=host))


def test_the_topic_must_be_there() -> None:
    with pytest.raises(ConfigurationError, match=catalogue.KEYS.name):
        PlatformAuthenticator(InMemoryBus(topics={"other": 1}), GatewaySettings())
