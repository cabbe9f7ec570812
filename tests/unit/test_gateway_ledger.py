"""The admission log's fold: limits hold over any interleaving of replicas."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded
from producers.gateway.ledger import (
    KEYS_MS,
    WINDOW_MS,
    AdmissionLedger,
    Admitted,
    Duplicate,
    Refused,
)


def asked(number: int, tokens: int = 10, tenant: str = "acme", **limits: object) -> AdmissionAsked:
    return AdmissionAsked(
        tenant=tenant,
        request_id=f"r{number}",
        tokens=tokens,
        lease_ms=1_000_000,
        **limits,  # type: ignore[arg-type]
    )


steps = st.lists(
    st.tuples(
        st.integers(0, 30_000),  # milliseconds since the step before
        st.integers(1, 40),  # tokens reserved
        st.one_of(st.none(), st.integers(0, 40)),  # tokens used, if it ends at once
    ),
    max_size=60,
)


@given(steps, st.integers(1, 5), st.integers(1, 100))
def test_no_window_of_a_minute_holds_more_than_the_limits(
    steps: list[tuple[int, int, int | None]], requests: int, tokens: int
) -> None:
    ledger = AdmissionLedger()
    now, admitted = 0, list[tuple[int, int]]()
    for number, (gap, reserved, used) in enumerate(steps):
        now += gap
        event = asked(number, reserved, requests_per_minute=requests, tokens_per_minute=tokens)
        if not isinstance(ledger.apply(event, now), Admitted):
            continue
        if used is not None:
            used = min(used, reserved)
            ledger.apply(AdmissionEnded(tenant="acme", request_id=f"r{number}", tokens=used), now)
        admitted.append((now, reserved if used is None else used))
    for at, _ in admitted:
        window = [cost for when, cost in admitted if at <= when < at + WINDOW_MS]
        assert len(window) <= requests
        assert sum(window) <= tokens


@given(steps, st.integers(1, 4))
def test_a_refused_request_is_admitted_after_the_time_that_it_was_told(
    steps: list[tuple[int, int, int | None]], requests: int
) -> None:
    ledger = AdmissionLedger()
    now = 0
    for number, (gap, reserved, _) in enumerate(steps):
        now += gap
        event = asked(number, reserved, requests_per_minute=requests, tokens_per_minute=80)
        decision = ledger.apply(event, now)
        if isinstance(decision, Refused):
            assert decision.retry_after_s is not None
            now += round(1000 * decision.retry_after_s)
            assert isinstance(ledger.apply(event, now), Admitted)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=80), st.integers(1, 4))
def test_never_more_at_once_than_may_be(moves: list[tuple[bool, int]], limit: int) -> None:
    ledger = AdmissionLedger()
    running = set[int]()
    for begins, number in moves:
        if begins and number not in running:
            decision = ledger.apply(asked(number, concurrent_requests=limit), 0)
            assert isinstance(decision, Admitted) == (len(running) < limit)
            if isinstance(decision, Admitted):
                running.add(number)
        elif not begins:
            ledger.apply(AdmissionEnded(tenant="acme", request_id=f"r{number}", tokens=1), 0)
            running.discard(number)


def test_one_whose_replica_died_does_not_run_for_ever() -> None:
    ledger = AdmissionLedger()
    first = asked(1, concurrent_requests=1)
    assert ledger.apply(first, 0) == Admitted()
    assert isinstance(ledger.apply(asked(2, concurrent_requests=1), first.lease_ms - 1), Refused)
    assert ledger.apply(asked(3, concurrent_requests=1), first.lease_ms) == Admitted()


def test_waiting_does_not_help_what_is_larger_than_the_whole_quota() -> None:
    decision = AdmissionLedger().apply(asked(1, 101, tokens_per_minute=100), 0)
    assert decision == Refused("tokens_per_minute", 100, None)


def test_a_key_is_the_first_ones_for_a_day() -> None:
    ledger = AdmissionLedger()
    key = {"idempotency_key": "k", "fingerprint": "f"}
    assert ledger.apply(asked(1, **key), 0) == Admitted()
    assert ledger.apply(asked(2, **key), 5) == Duplicate("r1", same=True)
    other = {"idempotency_key": "k", "fingerprint": "g"}
    assert ledger.apply(asked(3, **other), 5) == Duplicate("r1", same=False)
    assert ledger.apply(asked(4, tenant="other", **key), 5) == Admitted()
    assert ledger.apply(asked(5, **key), KEYS_MS) == Admitted()


def test_a_limit_of_none_at_all_refuses_for_good() -> None:
    decision = AdmissionLedger().apply(asked(1, requests_per_minute=0), 0)
    assert decision == Refused("requests_per_minute", 0, None)


def test_a_key_without_a_fingerprint_is_repeated_honestly() -> None:
    ledger = AdmissionLedger()
    ledger.apply(asked(1, idempotency_key="k"), 0)
    assert ledger.apply(asked(2, idempotency_key="k"), 5) == Duplicate("r1", same=True)


def test_a_refused_request_takes_no_key() -> None:
    ledger = AdmissionLedger()
    ledger.apply(asked(1), 0)
    keyed = asked(2, requests_per_minute=1, idempotency_key="k", fingerprint="f")
    assert isinstance(ledger.apply(keyed, 1), Refused)
    assert ledger.apply(asked(3, idempotency_key="k", fingerprint="f"), 2) == Admitted()


def test_what_is_over_is_forgotten() -> None:
    ledger = AdmissionLedger()
    for number in range(1000):
        ledger.apply(asked(number, tenant=f"t{number}"), 0)
    ledger.sweep(2_000_000)
    assert not ledger._tenants


@settings(max_examples=50)
@given(steps)
def test_sweeping_changes_no_decision(steps: list[tuple[int, int, int | None]]) -> None:
    swept, kept = AdmissionLedger(), AdmissionLedger()
    now = 0
    for number, (gap, reserved, _) in enumerate(steps):
        now += gap
        event = asked(number, reserved, requests_per_minute=3, tokens_per_minute=60)
        assert swept.apply(event, now) == kept.apply(event, now)
        swept.sweep(now)
