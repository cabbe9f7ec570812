"""Tokens of an issuer that serves its keys on this machine's loopback, signed with real keys."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from infra.identity import jwks
from infra.identity.authenticator import PlatformAuthenticator
from infra.identity.jwks import IssuerKeys, IssuerRefused, checked_url, signing_keys
from infra.identity.jwt import TokenVerifier, claim, roles, token_verifier
from infra.identity.principal import (
    AuthenticationUnavailable,
    Principal,
    Unauthenticated,
)
from infra.settings import GatewaySettings
from infra.testing import InMemoryBus, ManualClock

AUDIENCE = "feedloom"
LEEWAY_S = 30
KEYS: dict[str, Any] = {
    "first": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "second": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "curve": ec.generate_private_key(ec.SECP256R1()),
    "edwards": ed25519.Ed25519PrivateKey.generate(),
}
ALGORITHMS = {"first": "RS256", "second": "RS256", "curve": "ES256", "edwards": "EdDSA"}


def jwk(name: str, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(ALGORITHMS[name])
    public = algorithm.to_jwk(KEYS[name].public_key(), as_dict=True)
    return {**public, "kid": name, "use": "sig", **more}


class Issuer:
    """Serves a discovery document and a key set, and counts who asked."""

    def __init__(self) -> None:
        self.published: list[dict[str, Any]] = [jwk("first")]
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.free = threading.Event()
        self.free.set()
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked[self.path] += 1
                assert issuer.free.wait(30)
                status, headers, body = issuer.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                # A reader who has had enough hangs up.
                try:
                    self.wfile.write(body)
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Not on standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/realm"
        self.jwks_url = f"{self.url}/keys"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self._thread.start()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path in self.answers:
            return self.answers[path]
        if path == "/realm/.well-known/openid-configuration":
            document: dict[str, Any] = {"issuer": self.url, "jwks_uri": self.jwks_url}
        elif path == "/realm/keys":
            document = {"keys": self.published}
        else:
            return 404, {}, b""
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    @property
    def fetches(self) -> int:
        return self.asked["/realm/keys"]

    def stop(self) -> None:
        self.free.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def token(
        self, name: str = "first", *, headers: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """Claims that are ``None`` are left out."""
        now_s = int(time.time())
        every = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "auth0|ann",
            "iat": now_s,
            "exp": now_s + 300,
            "tenant": "acme",
            "roles": ["caller", "feedback"],
            **claims,
        }
        return jwt.encode(
            {claim: value for claim, value in every.items() if value is not None},
            KEYS[name],
            algorithm=ALGORITHMS[name],
            headers={"kid": name} if headers is None else headers,
        )


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    running = Issuer()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(0)


def settings_of(issuer: Issuer, **more: Any) -> GatewaySettings:
    chosen = {
        "jwt_issuer": issuer.url,
        "jwt_audience": AUDIENCE,
        "jwt_algorithms": ("RS256", "ES256", "EdDSA"),
        "jwt_leeway_s": LEEWAY_S,
        **more,
    }
    return GatewaySettings(**chosen)


@pytest.fixture
def verifier(issuer: Issuer, clock: ManualClock) -> TokenVerifier:
    return make(issuer, clock)


def make(issuer: Issuer, clock: ManualClock, **more: Any) -> TokenVerifier:
    settings = settings_of(issuer, **more)
    keys = IssuerKeys(issuer.url, settings.jwks_url, settings.jwt_algorithms, clock=clock)
    return TokenVerifier(settings, issuer=issuer.url, keys=keys)


async def refused(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await verifier.principal(token)
    return str(caught.value)


# What is accepted.


@pytest.mark.parametrize("name", ["first", "curve", "edwards"])
async def test_a_token_names_its_tenant_subject_and_roles(
    issuer: Issuer, verifier: TokenVerifier, name: str
) -> None:
    issuer.published = [jwk(each) for each in KEYS]
    assert await verifier.principal(issuer.token(name)) == Principal(
        tenant="acme",
        subject="auth0|ann",
        roles=frozenset({"caller", "feedback"}),
        credential="token of auth0|ann",
    )
    assert issuer.asked == {"/realm/.well-known/openid-configuration": 1, "/realm/keys": 1}


async def test_the_gateways_authenticator_takes_tokens_beside_keys(issuer: Issuer) -> None:
    authenticator = PlatformAuthenticator(InMemoryBus(), settings_of(issuer))
    assert (await authenticator.authenticate(issuer.token())).tenant == "acme"
    with pytest.raises(Unauthenticated, match="neither"):
        await authenticator.authenticate("x.y")
    authenticator.close()


async def test_a_given_address_of_the_keys_needs_no_discovery(
    issuer: Issuer, clock: ManualClock
) -> None:
    verifier = make(issuer, clock, jwks_url=issuer.jwks_url)
    await verifier.principal(issuer.token())
    assert issuer.asked == {"/realm/keys": 1}


async def test_claims_have_the_names_that_the_settings_say(
    issuer: Issuer, clock: ManualClock
) -> None:
    verifier = make(
        issuer, clock, jwt_tenant_claim="https://feedloom/tenant", jwt_roles_claim="realm.roles"
    )
    token = issuer.token(
        tenant=None,
        roles=None,
        realm={"roles": ["operator", "offline_access"]},
        **{"https://feedloom/tenant": "umbrella"},
    )
    principal = await verifier.principal(token)
    assert (principal.tenant, principal.roles) == ("umbrella", frozenset({"operator"}))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (["caller", "root", 7, None], {"caller"}),
        ("caller  trainer openid", {"caller", "trainer"}),
        ("callers", set()),
        (None, set()),
        ({"caller": True}, set()),
        ([["caller"]], set()),
        (7, set()),
    ],
)
def test_roles_are_a_list_or_a_text_and_others_are_dropped(value: Any, found: set[str]) -> None:
    assert roles(value) == found


@given(
    st.text(max_size=9),
    st.recursive(
        st.none() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
    ),
)
def test_no_claim_does_more_than_be_ignored(name: str, value: Any) -> None:
    assert claim({name: value}, name) == value
    claim({"a": value}, f"a.{name}")
    assert roles(value) <= {"caller", "feedback", "operator", "trainer"}


# The clock.


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"exp": -LEEWAY_S + 10}, None),
        ({"exp": -LEEWAY_S - 10}, "has expired"),
        ({"nbf": LEEWAY_S - 10}, None),
        ({"nbf": LEEWAY_S + 10}, "not valid yet"),
        ({"iat": LEEWAY_S - 10}, None),
        ({"iat": LEEWAY_S + 10}, "not valid yet"),
    ],
)
async def test_clocks_may_differ_by_the_leeway_either_way(
    issuer: Issuer, verifier: TokenVerifier, claims: dict[str, int], says: str | None
) -> None:
    now_s = int(time.time())
    token = issuer.token(**{name: now_s + offset for name, offset in claims.items()})
    if says is None:
        assert (await verifier.principal(token)).tenant == "acme"
    else:
        assert says in await refused(verifier, token)


# What is refused.


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"exp": None}, "no claim 'exp'"),
        ({"sub": None}, "no claim 'sub'"),
        ({"aud": None}, "no claim 'aud'"),
        ({"iss": None}, "no claim 'iss'"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other", "others"]}, "another audience"),
        ({"iss": "https://other.example"}, "another issuer"),
        ({"tenant": None}, "'tenant' must name a tenant"),
        ({"tenant": ""}, "'tenant' must name a tenant"),
        ({"tenant": ["acme"]}, "'tenant' must name a tenant"),
        ({"tenant": "a/b"}, "'tenant' must name a tenant"),
        ({"sub": "x" * 257}, "'sub' must be"),
        ({"sub": "a\nb"}, "'sub' must be"),
        ({"exp": "soon"}, "not valid"),
        ({"exp": float("inf")}, "not valid"),
        ({"jti": 7}, "not valid"),
    ],
)
async def test_a_token_that_is_not_for_this_service_is_refused(
    issuer: Issuer, verifier: TokenVerifier, claims: dict[str, Any], says: str
) -> None:
    assert says in await refused(verifier, issuer.token(**claims))


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token put together by hand, as PyJWT refuses to make such."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    signed = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    signature = b"" if secret is None else hmac.digest(secret, signed, hashlib.sha256)
    return (signed + b"." + part(signature)).decode()


async def test_the_token_does_not_choose_how_it_is_checked(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    public = KEYS["first"].public_key()
    pem = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for algorithm, secret in (("none", None), ("None", None), ("HS256", pem), ("", pem)):
        token = forged({"alg": algorithm, "kid": "first", "typ": "JWT"}, claims, secret)
        assert "algorithm is not accepted" in await refused(verifier, token)
    for header in ({"kid": "first"}, {"alg": ["RS256"], "kid": "first"}):
        assert "algorithm is not accepted" in await refused(verifier, forged(header, claims, pem))
    # An accepted algorithm does not make an HMAC of the public key a signature either.
    token = forged({"alg": "RS256", "kid": "first"}, claims, pem)
    assert await refused(verifier, token) == "the token is not valid"


async def test_an_algorithm_is_accepted_only_if_it_was_set(
    issuer: Issuer, clock: ManualClock
) -> None:
    issuer.published = [jwk("first"), jwk("curve")]
    verifier = make(issuer, clock, jwt_algorithms=("ES256",))
    await verifier.principal(issuer.token("curve"))
    assert "accepted: ES256" in await refused(verifier, issuer.token("first"))


async def test_a_key_is_used_only_for_its_own_algorithm(issuer: Issuer, clock: ManualClock) -> None:
    issuer.published = [jwk("first", alg="PS256"), jwk("second")]
    verifier = make(issuer, clock, jwt_algorithms=("RS256", "PS256"))
    assert "does not publish" in await refused(verifier, issuer.token("first"))
    await verifier.principal(issuer.token("second"))


async def test_a_key_that_the_token_brings_along_is_not_looked_at(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    brought = {"kid": "second", "jwk": jwk("second"), "jku": issuer.jwks_url}
    assert "does not publish" in await refused(verifier, issuer.token("second", headers=brought))
    brought["kid"] = "first"
    token = issuer.token("second", headers=brought)
    assert await refused(verifier, token) == "the token is not valid"


async def test_a_changed_token_is_refused(issuer: Issuer, verifier: TokenVerifier) -> None:
    head, _, signature = issuer.token().split(".")
    _, other, _ = issuer.token(tenant="umbrella").split(".")
    assert await refused(verifier, f"{head}.{other}.{signature}") == "the token is not valid"


async def test_what_is_no_token_is_refused_without_asking_the_issuer(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    for token in (
        "a.b.c",
        "..",
        "é.ü.ß",
        "eyJ9.e30.AA",
        forged({"alg": "RS256", "kid": 7}, {}, b"k"),
    ):
        assert await refused(verifier, token) == "the token is not valid"
    assert "longer than 8192 bytes" in await refused(verifier, issuer.token(more="x" * 9000))
    assert issuer.asked == {}


async def test_no_error_says_anything_of_the_token(issuer: Issuer, verifier: TokenVerifier) -> None:
    for token in (issuer.token(aud="other"), issuer.token("second"), issuer.token()[:-9]):
        said = await refused(verifier, token)
        assert not any(part in said for part in token.split("."))


# Keys: which are used.


def test_a_key_set_gives_its_public_signing_keys_and_nothing_else() -> None:
    private = jwt.get_algorithm_by_name("RS256").to_jwk(KEYS["first"], as_dict=True)
    listed: list[Any] = [
        jwk("first"),
        jwk("second", use="enc"),
        jwk("second", key_ops=["encrypt"]),
        {**private, "kid": "private"},
        {"kty": "oct", "k": "AAAA", "kid": "secret"},
        {"kty": "RSA", "kid": "broken", "n": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "off the curve"},
        {**jwk("curve"), "kid": 7},
        "text",
    ]
    found = signing_keys({"keys": listed}, ("RS256", "PS256", "ES256"))
    assert set(found) == {("first", "RS256"), ("first", "PS256")}


@pytest.mark.parametrize("document", [{}, {"keys": {}}, {"keys": []}, {"keys": [jwk("curve")]}])
def test_a_key_set_without_a_key_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(IssuerRefused):
        signing_keys(document, ("RS256",))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["kty", "n", "e", "crv", "x", "y", "alg", "use", "key_ops"]),
                inner,
                max_size=6,
            )
        ),
    )
)
def test_no_key_set_does_more_than_be_refused(value: Any) -> None:
    for each in (
        value,
        [value],
        [
            {"kty": kind, "n": value, "e": value, "crv": "P-256", "x": value, "y": value}
            for kind in ("RSA", "EC", "OKP")
        ],
    ):
        try:
            signing_keys({"keys": each}, ("RS256", "ES256", "EdDSA"))
        except IssuerRefused:
            continue


async def test_a_weak_key_is_not_used(
    issuer: Issuer, verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    monkeypatch.setitem(KEYS, "weak", weak)
    monkeypatch.setitem(ALGORITHMS, "weak", "RS256")
    issuer.published = [jwk("weak")]
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token("weak")
    assert await refused(verifier, token) == "the token is not valid"


async def test_without_a_key_id_the_only_key_is_meant(
    issuer: Issuer, clock: ManualClock, verifier: TokenVerifier
) -> None:
    token = issuer.token(headers={})
    await verifier.principal(token)
    issuer.published = [jwk("first"), jwk("second")]
    assert "does not publish" in await refused(make(issuer, clock), token)


# Keys: when they are fetched.


async def test_a_new_key_is_fetched_when_a_token_names_it(
    issuer: Issuer, verifier: TokenVerifier, clock: ManualClock
) -> None:
    await verifier.principal(issuer.token())
    issuer.published = [jwk("second")]
    clock.advance(jwks.REFETCH_S)
    await verifier.principal(issuer.token("second"))
    assert "does not publish" in await refused(verifier, issuer.token("first"))
    assert issuer.fetches == 2


async def test_made_up_key_ids_fetch_no_more_than_once_in_thirty_seconds(
    issuer: Issuer, verifier: TokenVerifier, clock: ManualClock
) -> None:
    await verifier.principal(issuer.token())
    for _ in range(3):
        for second in range(int(jwks.REFETCH_S)):
            token = issuer.token("second", headers={"kid": f"made up {second}"})
            assert "does not publish" in await refused(verifier, token)
            clock.advance(1)
    assert issuer.fetches == 1 + 2


async def test_all_who_ask_at_once_wait_for_one_fetch(
    issuer: Issuer, verifier: TokenVerifier
) -> None:
    issuer.free.clear()
    calls = [asyncio.create_task(verifier.principal(issuer.token())) for _ in range(20)]
    unknown = asyncio.create_task(verifier.principal(issuer.token("second")))
    await asyncio.to_thread(until_asked, issuer)
    calls[0].cancel()
    issuer.free.set()
    found = await asyncio.gather(*calls[1:])
    assert {each.tenant for each in found} == {"acme"}
    assert calls[0].cancelled()
    with pytest.raises(Unauthenticated):
        await unknown
    assert issuer.fetches == 1


def until_asked(issuer: Issuer) -> None:
    deadline = time.monotonic() + 30
    waiting = threading.Event()
    while not issuer.asked:
        assert time.monotonic() < deadline
        waiting.wait(0.01)


async def test_keys_are_fetched_again_after_ten_minutes(
    issuer: Issuer, verifier: TokenVerifier, clock: ManualClock
) -> None:
    await verifier.principal(issuer.token())
    clock.advance(jwks.KEEP_S - 1)
    await verifier.principal(issuer.token())
    assert issuer.fetches == 1
    issuer.published = [jwk("second")]
    clock.advance(1)
    assert "does not publish" in await refused(verifier, issuer.token())
    assert issuer.fetches == 2


async def test_known_keys_are_used_while_the_issuer_is_down(
    issuer: Issuer, verifier: TokenVerifier, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    await verifier.principal(issuer.token())
    issuer.stop()
    for _ in range(3):
        clock.advance(jwks.KEEP_S)
        assert (await verifier.principal(issuer.token())).tenant == "acme"
    with pytest.raises(AuthenticationUnavailable, match="try again later"):
        await verifier.principal(issuer.token("second"))
    assert "1 known ones stay in use" in caplog.text


async def test_an_issuer_that_was_down_at_the_start_is_asked_again_soon(
    issuer: Issuer, verifier: TokenVerifier, clock: ManualClock
) -> None:
    issuer.answers["/realm/keys"] = (503, {}, b"")
    for _ in range(3):
        with pytest.raises(AuthenticationUnavailable):
            await verifier.principal(issuer.token())
    assert issuer.fetches == 1
    issuer.answers.clear()
    clock.advance(jwks.RETRY_S)
    await verifier.principal(issuer.token())
    assert issuer.fetches == 2


async def test_an_issuer_that_does_not_answer_holds_nobody_up_twice(
    issuer: Issuer,
    verifier: TokenVerifier,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await verifier.principal(issuer.token())
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.05)
    issuer.free.clear()
    clock.advance(jwks.KEEP_S)
    await verifier.principal(issuer.token())
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal(issuer.token("second"))
    # From now on the issuer is asked on the side.
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 60)
    clock.advance(jwks.REFETCH_S)
    async with asyncio.timeout(20):
        await verifier.principal(issuer.token())
    issuer.published.append(jwk("second"))
    issuer.free.set()
    assert (await verifier.principal(issuer.token("second"))).tenant == "acme"


HUGE = json.dumps({"keys": [jwk("first")]}).encode() + b" " * jwks.MAX_DOCUMENT_BYTES


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/realm/keys", (200, {}, b"{")),
        ("/realm/keys", (200, {}, b"[]")),
        ("/realm/keys", (200, {}, b"[" * 100_000)),
        ("/realm/keys", (200, {}, b"\xff")),
        ("/realm/keys", (200, {}, HUGE)),
        ("/realm/keys", (302, {"Location": "/elsewhere"}, b"")),
        ("/realm/.well-known/openid-configuration", (404, {}, b"")),
        ("/realm/.well-known/openid-configuration", (200, {}, b'{"issuer": "http://127.0.0.1/x"}')),
    ],
)
async def test_documents_that_are_not_what_they_must_be_give_no_keys(
    issuer: Issuer,
    verifier: TokenVerifier,
    path: str,
    answer: tuple[int, dict[str, str], bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    issuer.answers[path] = answer
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal(issuer.token())
    assert "IssuerRefused" in caplog.text
    assert issuer.asked["/elsewhere"] == 0


@pytest.mark.parametrize("uri", [7, "http://keys.example/keys", "file:///keys", "https://[x", ""])
async def test_discovery_leads_to_no_place_that_is_not_safe(
    issuer: Issuer, verifier: TokenVerifier, uri: object
) -> None:
    document = json.dumps({"issuer": issuer.url, "jwks_uri": uri}).encode()
    issuer.answers["/realm/.well-known/openid-configuration"] = (200, {}, document)
    with pytest.raises(AuthenticationUnavailable):
        await verifier.principal(issuer.token())
    assert issuer.fetches == 0


# Settings.


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"jwt_issuer": "https://a.example"}, "JWT_AUDIENCE"),
        ({"jwks_url": "https://a.example/keys"}, "JWT_ISSUER"),
        ({"jwt_audience": "feedloom"}, "JWT_ISSUER"),
        ({"jwt_issuer": "http://a.example", "jwt_audience": "f"}, "JWT_ISSUER.*must be https"),
        ({"jwt_issuer": "a.example", "jwt_audience": "f"}, "not an https address"),
        (
            {"jwt_issuer": "a", "jwt_audience": "f", "jwks_url": "http://a.example/keys"},
            "JWKS_URL.*must be https",
        ),
        (
            {"jwt_issuer": "https://a.example", "jwt_audience": "f", "jwt_algorithms": ()},
            "JWT_ALGORITHMS",
        ),
    ],
)
def test_settings_that_would_let_others_in_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        token_verifier(GatewaySettings(**settings))


def test_tokens_are_off_until_an_issuer_is_set() -> None:
    assert token_verifier(GatewaySettings()) is None


@pytest.mark.parametrize("url", ["https://a.example/x", "http://127.0.0.1:1/x", "http://[::1]/x"])
def test_addresses_that_keys_may_come_from(url: str) -> None:
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "ftp://a.example",
        "https://",
        "https://u:p@a.example",
        "//a",
        "https://[a",
    ],
)
def test_addresses_that_keys_may_not_come_from(url: str) -> None:
    with pytest.raises(IssuerRefused):
        checked_url(url)
