"""The console's figures: buckets of seconds, quantiles and the waterfall. Pure."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.spans import SpanRecord
from producers.gateway.console import traces
from producers.gateway.console.window import LiveWindow, bin_of, quantile

TIMES = st.floats(min_value=1.01, max_value=1e7)


@given(st.lists(TIMES, min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_quantile_is_that_of_the_times_to_within_a_bin(times: list[float], share: float) -> None:
    found = quantile(Counter(map(bin_of, times)), share)
    rank = max(1, -int(-share * len(times) // 1))
    exact = sorted(times)[rank - 1]
    assert found is not None
    assert abs(found / exact - 1) < 0.06


def test_times_that_are_not_above_a_millisecond_share_a_bin() -> None:
    assert {bin_of(0), bin_of(0.3), bin_of(1)} == {0}
    assert quantile(Counter({0: 3}), 0.5) == 1.0
    assert quantile(Counter(), 0.5) is None


ENDED = st.tuples(
    st.integers(min_value=10_000, max_value=10_400),
    st.integers(min_value=0, max_value=500),
    st.booleans(),
)


@given(st.lists(ENDED, max_size=60), st.sampled_from([1, 5]))
def test_every_request_of_the_window_is_counted_once(
    ended: list[tuple[int, int, bool]], step_s: int
) -> None:
    window = LiveWindow(seconds=100)
    newest = 0
    kept = []
    for at_s, tokens, failed in ended:
        newest = max(newest, at_s)
        if at_s > newest - 100:
            kept.append((at_s, tokens, failed))
        window.add(at_s, tokens=tokens, failed=failed, ttft_ms=None)
    now_s = 10_399 if newest <= 10_399 else 10_404
    series = window.series(now_s, step_s=step_s)
    first = series["times"][0] - step_s
    within = [one for one in kept if one[0] >= first and one[0] > newest - 100]
    assert sum(rate or 0 for rate in series["requests_per_s"]) * step_s == pytest.approx(
        len(within)
    )
    assert sum(rate or 0 for rate in series["tokens_per_s"]) * step_s == pytest.approx(
        sum(tokens for _, tokens, _ in within)
    )


def test_rates_are_of_the_seconds_that_have_passed_and_gaps_stay_gaps() -> None:
    window = LiveWindow(seconds=20)
    for at_s in (100, 101):
        for _ in range(4):
            window.add(at_s, tokens=10, failed=at_s == 101, ttft_ms=50)
    window.sample_lag(101, 7)
    window.sample_lag(100, 9)
    series = window.series(101, step_s=5)
    assert series["times"] == [90, 95, 100, 105]
    assert series["requests_per_s"] == [None, None, None, 4.0]
    assert series["tokens_per_s"][-1] == 40.0
    assert series["failed_share"] == [None, None, None, 0.5]
    assert series["lag"] == [None, None, None, 9]
    assert series["ttft_p50_ms"][-1] == pytest.approx(50, rel=0.06)
    assert window.totals(102, 2) == (8, 4)
    assert window.totals(101, 1) == (4, 0)


def test_a_second_that_comes_round_again_begins_anew() -> None:
    window = LiveWindow(seconds=10)
    window.add(100, tokens=1, failed=False, ttft_ms=None)
    window.add(110, tokens=1, failed=False, ttft_ms=None)
    window.add(100, tokens=1, failed=False, ttft_ms=None)
    assert statistics.fsum(r or 0 for r in window.series(110, step_s=1)["requests_per_s"]) == 1


def span(
    span_id: str,
    parent: str | None,
    start: int,
    end: int,
    *,
    trace: str = "t",
    status: str = "unset",
    links: tuple[str, ...] = (),
) -> SpanRecord:
    return SpanRecord(
        service=f"service-{trace}",
        name=f"span {span_id}",
        kind="internal",
        trace_id=trace,
        span_id=span_id,
        parent_id=parent,
        start_ns=start * 1_000_000,
        end_ns=end * 1_000_000,
        status=status,
        attributes={traces.REQUEST_ATTRIBUTE: "r1"} if span_id == "b" else {},
        links=links,
    )


def test_a_waterfall_has_children_after_their_parent_and_what_links_to_it() -> None:
    spans = [
        span("c", "b", 30, 40, status="error"),
        span("b", "a", 20, 90),
        span("a", None, 10, 100),
        span("d", "a", 95, 99),
        span("x", None, 200, 210, trace="u", links=("t",)),
        span("y", None, 0, 1, trace="other"),
    ]
    rows = traces.waterfall(spans, "t")
    assert [(row["span_id"], row["depth"]) for row in rows] == [
        ("a", 0),
        ("b", 1),
        ("c", 2),
        ("d", 1),
        ("x", 0),
    ]
    assert [row["offset_ms"] for row in rows] == [0, 10, 20, 85, 190]
    assert [row["failed"] for row in rows] == [False, False, True, False, False]
    assert [row["linked"] for row in rows] == [False, False, False, False, True]
    assert traces.waterfall(spans, "nothing") == []
    newest, *_, oldest = traces.summaries(spans)
    assert (newest["trace_id"], oldest["trace_id"]) == ("u", "other")
    (summary,) = [one for one in traces.summaries(spans) if one["trace_id"] == "t"]
    assert summary["name"] == "span a"
    assert summary["duration_ms"] == 90
    assert (summary["spans"], summary["failed"], summary["request_id"]) == (4, True, "r1")
    assert len(traces.summaries(spans, limit=2)) == 2


@given(
    st.lists(
        st.tuples(st.integers(0, 8), st.none() | st.integers(0, 8), st.integers(0, 50)),
        max_size=12,
    )
)
def test_a_waterfall_ends_whatever_the_parents_are(
    drawn: list[tuple[int, int | None, int]],
) -> None:
    spans = [
        span(str(name), None if parent is None else str(parent), start, start + 1)
        for name, parent, start in drawn
    ]
    rows = traces.waterfall(spans, "t")
    names = [row["span_id"] for row in rows]
    assert len(names) == len(set(names))
    for row in rows:
        assert row["depth"] == 0 or row["depth"] <= names.index(row["span_id"])


def test_only_the_ends_of_large_span_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "TAIL_BYTES", 1000)
    row = {
        "service": "s",
        "name": "n",
        "kind": "internal",
        "trace_id": "t",
        "parent_id": None,
        "start_ns": 1,
        "end_ns": 2,
        "status": "ok",
        "attributes": {},
        "links": [],
    }
    lines = [json.dumps({**row, "span_id": f"{number:03}"}) for number in range(40)]
    (tmp_path / "s-1.jsonl").write_text("\n".join(lines) + '\n{"cut')
    (tmp_path / "notes.txt").write_text("none of ours")
    found = [one.span_id for one in traces.recent_spans(tmp_path)]
    assert found[-1] == "039"
    assert found == [f"{number:03}" for number in range(40 - len(found), 40)]
    assert 1 < len(found) < 8
