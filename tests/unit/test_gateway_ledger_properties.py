"""The admission log's fold, beside a model that keeps everything and looks through it each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded
from producers.gateway import ledger as module
from producers.gateway.ledger import (
    CONCURRENT_RETRY_S,
    KEYS_MS,
    WINDOW_MS,
    AdmissionLedger,
    Admitted,
    Decision,
    Duplicate,
    Refused,
)

LIMIT = st.none() | st.integers(1, 4)
GAPS = (0, 1, 400, WINDOW_MS // 4, WINDOW_MS - 1, WINDOW_MS, KEYS_MS // 2)


@dataclass
class Taken:
    at_ms: int
    tokens: int
    event: AdmissionAsked
    ended: bool = False


@dataclass
class Model:
    """Everything ever admitted of one tenant. A record's age decides whether it still counts."""

    taken: list[Taken] = field(default_factory=list)

    def decide(self, event: AdmissionAsked, now: int) -> Decision:
        for one in reversed(self.taken):
            if one.event.idempotency_key == event.idempotency_key is not None and (
                one.at_ms > now - KEYS_MS
            ):
                same = one.event.fingerprint == event.fingerprint
                return Duplicate(one.event.request_id, same)
        recent = [one for one in self.taken if one.at_ms > now - WINDOW_MS]
        running = [
            one for one in self.taken if not one.ended and one.at_ms + one.event.lease_ms > now
        ]
        against: list[Refused] = []
        limit = event.tokens_per_minute
        if limit is not None and sum(one.tokens for one in recent) + event.tokens > limit:
            wait = None
            if event.tokens <= limit:
                moments = sorted(one.at_ms + WINDOW_MS for one in recent)
                wait = next(
                    (moment - now) / 1000
                    for moment in moments
                    if sum(one.tokens for one in recent if one.at_ms + WINDOW_MS > moment)
                    + event.tokens
                    <= limit
                )
            against.append(Refused("tokens_per_minute", limit, wait))
        limit = event.requests_per_minute
        if limit is not None and len(recent) >= limit:
            wait = (sorted(one.at_ms for one in recent)[-limit] + WINDOW_MS - now) / 1000
            against.append(Refused("requests_per_minute", limit, wait))
        limit = event.concurrent_requests
        if limit is not None and len(running) >= limit:
            against.append(Refused("concurrent_requests", limit, CONCURRENT_RETRY_S))
        if against:
            # What no waiting helps first, then the longest wait.
            return next(
                (one for one in against if one.retry_after_s is None),
                max(against, key=lambda one: one.retry_after_s or 0.0),
            )
        self.taken.append(Taken(now, event.tokens, event))
        return Admitted()

    def end(self, request_id: str, tokens: int | None, now: int) -> None:
        for one in self.taken:
            if one.event.request_id == request_id:
                one.ended = True
                if tokens is not None:
                    one.tokens = tokens


ASK = st.tuples(
    st.sampled_from(["a", "b"]),
    st.integers(0, 9),  # tokens
    st.sampled_from([500, 30_000, 200_000]),  # lease
    LIMIT,
    st.none() | st.integers(1, 12),
    LIMIT,
    st.none() | st.sampled_from(["k", "l"]),
    st.sampled_from(["f", "g"]),
)
END = st.tuples(st.integers(0, 30), st.none() | st.integers(0, 12))


@given(st.lists(st.tuples(st.sampled_from(GAPS), ASK | END), max_size=30), st.data())
def test_every_decision_is_that_of_the_whole_history(
    steps: list[tuple[int, tuple[object, ...]]], data: st.DataObject
) -> None:
    ledger, models = AdmissionLedger(), {"a": Model(), "b": Model()}
    now = 0
    for number, (gap, step) in enumerate(steps):
        now += gap
        if data.draw(st.booleans()):
            ledger.sweep(now)
        if len(step) == 2:
            request, tokens = step
            for name, model in models.items():
                ended = AdmissionEnded(
                    tenant=name,
                    request_id=f"r{request}",
                    tokens=tokens,  # type: ignore[arg-type]
                )
                assert ledger.apply(ended, now) is None
                model.end(f"r{request}", tokens, now)  # type: ignore[arg-type]
            continue
        tenant, tokens, lease, requests, budget, concurrent, key, mark = step
        event = AdmissionAsked(
            tenant=tenant,  # type: ignore[arg-type]
            request_id=f"r{number}",
            tokens=tokens,  # type: ignore[arg-type]
            lease_ms=lease,  # type: ignore[arg-type]
            requests_per_minute=requests,  # type: ignore[arg-type]
            tokens_per_minute=budget,  # type: ignore[arg-type]
            concurrent_requests=concurrent,  # type: ignore[arg-type]
            idempotency_key=key,  # type: ignore[arg-type]
            fingerprint=mark if key is not None else None,  # type: ignore[arg-type]
        )
        assert ledger.apply(event, now) == models[tenant].decide(event, now)  # type: ignore[index]


def ask(number: int, **more: object) -> AdmissionAsked:
    return AdmissionAsked(
        tenant="t",
        request_id=f"r{number}",
        tokens=1,
        lease_ms=10,
        **more,  # type: ignore[arg-type]
    )


def test_the_oldest_key_makes_place_and_no_younger_one() -> None:
    ledger = AdmissionLedger()
    for number in range(module.KEYS_PER_TENANT):
        event = ask(number, idempotency_key=f"k{number}", fingerprint="f")
        assert ledger.apply(event, number) == Admitted()
    now = module.KEYS_PER_TENANT
    again = ask(now, idempotency_key="k0", fingerprint="f")
    assert ledger.apply(again, now) == Duplicate("r0", same=True)
    more = ask(now, idempotency_key="more", fingerprint="f")
    assert ledger.apply(more, now) == Admitted()
    second = ask(now + 1, idempotency_key="k1", fingerprint="f")
    assert ledger.apply(second, now) == Duplicate("r1", same=True)
    assert ledger.apply(again, now) == Admitted()


def test_a_tenant_is_kept_while_anything_of_it_counts() -> None:
    ledger = AdmissionLedger()
    ledger.apply(ask(1), 0)
    long = AdmissionAsked(tenant="leased", request_id="r", tokens=1, lease_ms=WINDOW_MS + 5)
    ledger.apply(long, 0)
    keyed = AdmissionAsked(
        tenant="keyed", request_id="r", tokens=1, lease_ms=0, idempotency_key="k"
    )
    ledger.apply(keyed, 0)
    ledger.sweep(WINDOW_MS - 1)
    assert set(ledger._tenants) == {"t", "leased", "keyed"}
    ledger.sweep(WINDOW_MS)
    assert set(ledger._tenants) == {"leased", "keyed"}
    ledger.sweep(WINDOW_MS + 5)
    assert set(ledger._tenants) == {"keyed"}
    ledger.sweep(KEYS_MS)
    assert not ledger._tenants


def test_one_id_asked_twice_is_settled_at_its_newest() -> None:
    """A gateway that came back asks again under the same id: the end is of the second one."""
    ledger = AdmissionLedger()
    again = WINDOW_MS // 2
    ledger.apply(ask(1), 0)
    ledger.apply(ask(1), again)
    # The first is a minute old and forgotten; the second still knows its id.
    ledger.apply(AdmissionEnded(tenant="t", request_id="r1", tokens=7), WINDOW_MS)
    assert ledger.apply(ask(2, tokens_per_minute=7), WINDOW_MS) == Refused(
        "tokens_per_minute", 7, again / 1000
    )


def test_it_waits_for_just_as_many_tokens_as_it_needs() -> None:
    ledger = AdmissionLedger()
    for number, at in enumerate((0, 1_000, 2_000)):
        ledger.apply(AdmissionAsked(tenant="t", request_id=f"r{number}", tokens=4, lease_ms=10), at)
    for tokens, wait in ((1, 60_000), (4, 60_000), (5, 61_000), (8, 61_000), (9, 62_000)):
        event = AdmissionAsked(
            tenant="t", request_id="r", tokens=tokens, lease_ms=10, tokens_per_minute=12
        )
        expected = Refused("tokens_per_minute", 12, (wait - 2_000) / 1000)
        assert ledger.apply(event, 2_000) == expected


def test_of_two_keys_the_older_is_free_a_day_after_it_was_taken() -> None:
    ledger = AdmissionLedger()
    for number, at in ((0, 0), (1, 1_000)):
        keyed = ask(number, idempotency_key=f"k{number}", fingerprint="f")
        assert ledger.apply(keyed, at) == Admitted()
    younger = ask(2, idempotency_key="k1", fingerprint="f")
    assert ledger.apply(younger, KEYS_MS) == Duplicate("r1", same=True)
    older = ask(3, idempotency_key="k0", fingerprint="f")
    assert ledger.apply(older, KEYS_MS) == Admitted()


def test_one_too_many_at_once_may_ask_again_in_a_second() -> None:
    ledger = AdmissionLedger()
    ledger.apply(ask(1), 0)
    refused = Refused("concurrent_requests", 1, CONCURRENT_RETRY_S)
    assert ledger.apply(ask(2, concurrent_requests=1), 0) == refused
    # Of two limits the one that stands for longer is named.
    both = ask(3, concurrent_requests=1, requests_per_minute=1)
    assert ledger.apply(both, 0) == Refused("requests_per_minute", 1, 60.0)


def test_of_a_tenant_that_always_asks_only_the_last_minute_is_kept() -> None:
    ledger = AdmissionLedger()
    for number in range(100):
        ledger.apply(ask(number), number * WINDOW_MS // 2)
    (tenant,) = ledger._tenants.values()
    assert len(tenant.recent) == len(tenant.by_id) == 2
