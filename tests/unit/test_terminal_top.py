"""The fold behind `feedloom top`, its page, and the tables of `feedloom lag`."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from infra.contracts import catalogue, codec
from infra.contracts.bus import Record
from infra.contracts.events.base import Event
from infra.contracts.events.generation import GenerationResult, Timings
from infra.contracts.events.model import Lineage, ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import (
    GatewayStatusReported,
    VersionSwitch,
    WorkerStatusReported,
)
from infra.kafka.commit_times import Commit, decode_commit, offsets_partition
from infra.kafka.partition_lag import GroupReport, PartitionLag
from infra.registry.workers import SILENT_MS
from infra.terminal import lag_view, top_view
from infra.terminal.top_model import STOPPED_SHOWN_MS, TopModel, quantile

NOW = 1_800_000_000_000
RESULTS = catalogue.RESULTS.name
REQUESTS = catalogue.REQUESTS.name
BATCH = catalogue.REQUESTS_BATCH.name


def record(
    topic: str, event: Event | bytes | None, *, key: str = "k", at_ms: int = NOW, offset: int = 0
) -> Record:
    value = codec.encode(event) if isinstance(event, Event) else event
    return Record(
        topic=topic,
        partition=0,
        offset=offset,
        timestamp_ms=at_ms,
        key=key.encode(),
        value=value,
    )


def result(**fields: Any) -> GenerationResult:
    return GenerationResult(
        **{
            "request_id": "r",
            "submit_id": "s",
            "model": "default",
            "prompt": "p",
            "text": "t",
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "output_tokens": 120,
            "model_versions": ("default@1",),
            "created_at_ms": NOW,
            "finished_at_ms": NOW,
            "worker_id": "w1",
            "timings": Timings(ttft_ms=40.0),
            **fields,
        }
    )


def worker(worker_id: str = "w1", **fields: Any) -> WorkerStatusReported:
    return WorkerStatusReported(
        **{
            "worker_id": worker_id,
            "state": "ready",
            "versions": {"default": "1"},
            "reported_at_ms": NOW - 4000,
            **fields,
        }
    )


def version(name: str, **fields: Any) -> ModelVersionPublished:
    return ModelVersionPublished(
        **{
            "model": "default",
            "version": name,
            "kind": "full",
            "artifact_uri": "file:///x",
            "manifest": (),
            "created_at_ms": NOW - 60_000,
            **fields,
        }
    )


def rollout(**fields: Any) -> RolloutChanged:
    return RolloutChanged(
        **{"model": "default", "revision": 1, "stable": "1", "changed_at_ms": NOW, **fields}
    )


def ended(model: TopModel, *results: GenerationResult, at_ms: int = NOW) -> None:
    for offset, one in enumerate(results):
        model.apply(record(RESULTS, one, at_ms=at_ms, offset=offset))


def test_rates_and_quantiles_are_of_the_window() -> None:
    model = TopModel(window_s=60)
    old = record(RESULTS, result(), at_ms=NOW - 60_000)
    model.apply(old)
    for offset, ttft in enumerate((10.0, 20.0, 30.0, 400.0), start=1):
        model.apply(
            record(
                RESULTS, result(timings=Timings(ttft_ms=ttft)), at_ms=NOW - 59_999, offset=offset
            )
        )
    late = result(finish_reason="deadline_exceeded", output_tokens=0, timings=Timings())
    model.apply(record(RESULTS, late, offset=5))
    rates = model.frame(NOW).rates
    assert (rates.requests_per_s, rates.tokens_per_s, rates.failed) == (5 / 60, 480 / 60, 1)
    assert (rates.ttft_p50_ms, rates.ttft_p95_ms) == (20.0, 400.0)
    assert model.frame(NOW + 60_000).rates.requests_per_s == 0


def test_a_result_that_is_read_again_counts_once() -> None:
    model = TopModel()
    for _ in range(2):
        ended(model, result(), result())
    assert model.frame(NOW).rates.requests_per_s == 2 / 60


values = st.lists(st.floats(0, 1e6), min_size=1, max_size=60)


@given(values, st.floats(0.01, 1))
def test_a_quantile_is_a_value_and_enough_of_them_do_not_exceed_it(
    measured: list[float], share: float
) -> None:
    found = quantile(measured, share)
    assert found in measured
    assert found is not None
    assert sum(one <= found for one in measured) >= share * len(measured) - 1e-9
    assert sum(one < found for one in measured) < share * len(measured) + 1e-9


reports = st.lists(
    st.builds(
        worker,
        st.sampled_from(["w1", "w2"]),
        state=st.sampled_from(["starting", "ready", "draining"]),
        reported_at_ms=st.integers(NOW - 20_000, NOW),
    ),
    max_size=8,
    unique_by=lambda one: (one.worker_id, one.reported_at_ms),
)


@given(reports, st.randoms())
def test_the_newest_report_stands_in_whatever_order_they_come(
    told: list[WorkerStatusReported], random: Any
) -> None:
    rows = []
    for order in (sorted(told, key=lambda one: one.reported_at_ms), random.sample(told, len(told))):
        model = TopModel()
        for one in [*order, *order[:2]]:
            model.apply(record(catalogue.WORKERS.name, one, key=one.worker_id))
        rows.append(model.frame(NOW).workers)
    assert rows[0] == rows[1]


def test_a_worker_is_silent_then_forgotten_and_goes_with_its_tombstone() -> None:
    model = TopModel()
    said = NOW - 4000
    model.apply(record(catalogue.WORKERS.name, worker(), key="w1"))
    model.apply(record(catalogue.WORKERS.name, worker("w2", state="stopped"), key="w2"))
    assert [(one.state, one.silent) for one in model.frame(NOW).workers] == [
        ("ready", False),
        ("stopped", False),
    ]
    (first, _) = model.frame(said + SILENT_MS + 1).workers
    assert first.silent
    assert model.frame(said + STOPPED_SHOWN_MS + 1).workers == ()
    model.apply(record(catalogue.WORKERS.name, None, key="w1"))
    assert [one.worker_id for one in model.frame(NOW).workers] == ["w2"]


def test_each_worker_has_what_it_answered_and_its_last_pause() -> None:
    model = TopModel(window_s=10)
    switch = VersionSwitch(
        model="default",
        from_version="1",
        to_version="2",
        switched_at_ms=NOW,
        pause_ms=25.0,
        in_flight=3,
    )
    model.apply(record(catalogue.WORKERS.name, worker(last_switch=switch), key="w1"))
    model.apply(record(catalogue.WORKERS.name, worker("w2", failure="no such file"), key="w2"))
    ended(model, result(), result(), result(worker_id="w2", output_tokens=50))
    first, second = model.frame(NOW).workers
    assert (first.requests_per_s, first.tokens_per_s, first.last_pause_ms) == (0.2, 24.0, 25.0)
    assert (second.tokens_per_s, second.failure) == (5.0, "no such file")
    assert (second.in_flight, second.queued) == (None, None)


@pytest.mark.parametrize(("state", "weights"), [("canary", [0.75, 0.25]), ("shadow", [1.0, 0.25])])
def test_arms_have_their_share_and_their_answers(state: str, weights: list[float]) -> None:
    model = TopModel()
    for name in ("1", "2"):
        model.apply(record(catalogue.REGISTRY.name, version(name)))
    changed = rollout(candidate="2", candidate_weight=0.25, state=state)
    model.apply(record(catalogue.ROLLOUTS.name, changed))
    ended(
        model,
        result(),
        result(model_versions=("default@1", "default@2"), timings=Timings(ttft_ms=7.0)),
        result(model_versions=("default@0",)),
    )
    arms = model.frame(NOW).arms
    assert [(one.version, one.arm, one.requests) for one in arms] == [
        ("1", "stable", 1),
        ("2", "candidate", 1),
        ("0", "other", 1),
    ]
    assert [one.weight for one in arms[:2]] == weights
    assert arms[1].ttft_p50_ms == 7.0


def test_training_counts_the_rounds_that_learnt_from_feedback() -> None:
    model = TopModel()
    learnt = Lineage(parent="1", feedback_examples=12, objective="sft")
    model.apply(record(catalogue.REGISTRY.name, version("1")))
    model.apply(record(catalogue.REGISTRY.name, version("2", lineage=learnt)))
    model.apply(record(catalogue.ROLLOUTS.name, rollout(stable="2")))
    (row,) = model.frame(NOW).training
    assert (row.rounds, row.newest, row.stage, row.examples, row.age_s) == (
        1,
        "2",
        "stable",
        12,
        60.0,
    )


def test_what_cannot_be_read_is_counted_and_passed_over() -> None:
    model = TopModel()
    model.apply(record(catalogue.WORKERS.name, b"{"))
    model.apply(record(RESULTS, b"[]"))
    model.apply(record(RESULTS, None, offset=1))
    assert model.frame(NOW).unreadable == 2


GROUP = GroupReport(
    group="feedloom-workers",
    state="Stable",
    members=2,
    partitions=(
        PartitionLag(
            topic=REQUESTS, partition=0, committed=10, end=13, lag=3, owner="a", moved_ms=NOW - 5000
        ),
        PartitionLag(topic=REQUESTS, partition=1, committed=4, end=12, lag=8, owner="b"),
        PartitionLag(topic=REQUESTS, partition=2, committed=None, end=0, lag=0, owner="b"),
        PartitionLag(topic=BATCH, partition=0, committed=None, end=2, lag=2, owner="a"),
        PartitionLag(topic=BATCH, partition=1, committed=None, end=1, lag=1),
        PartitionLag(topic="feedback.events", partition=0, committed=2, end=2, lag=0, owner="a"),
    ),
)


def test_unanswered_requests_are_summed_by_reader_and_lag_by_topic() -> None:
    model = TopModel()
    model.sample([GROUP], {"generation.requests.dlq": 4, "feedback.events.dlq": 0})
    frame = model.frame(NOW)
    assert [
        (one.owner, one.partitions, one.unanswered, one.unanswered_batch) for one in frame.owners
    ] == [
        ("", 1, 0, 1),
        ("a", 2, 3, 2),
        ("b", 2, 8, 0),
    ]
    assert [(one.topic, one.lag, one.worst_partition) for one in frame.lag] == [
        ("feedback.events", 0, None),
        (REQUESTS, 11, 1),
        (BATCH, 3, 0),
    ]
    assert frame.dead_letters == {"generation.requests.dlq": 4}


def printed(page: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(page)
    return [line.rstrip() for line in console.export_text().splitlines()]


def busy() -> TopModel:
    model = TopModel()
    gateway = GatewayStatusReported(
        gateway_id="g1", state="ready", reply_partition=3, reported_at_ms=NOW - 2000, url="http://g"
    )
    model.apply(record(catalogue.WORKERS.name, worker(in_flight=32, queued=7), key="w1"))
    model.apply(record(catalogue.GATEWAYS.name, gateway, key="g1"))
    model.apply(record(catalogue.REGISTRY.name, version("1")))
    model.apply(record(catalogue.ROLLOUTS.name, rollout()))
    ended(model, *[result()] * 30)
    model.sample([GROUP], {"generation.requests.dlq": 4})
    return model


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_shows_every_section_within_the_terminal(width: int) -> None:
    lines = printed(top_view.page(busy().frame(NOW)), width)
    assert max(map(len, lines)) <= width
    page = "\n".join(lines)
    assert "2027-01-15 08:00:00 UTC" in page
    assert "0.5 requests/s  60 tokens/s  TTFT p50 40.0 ms, p95 40.0 ms  0 failed" in page
    if width == 120:
        rows = {tuple(line.split()) for line in lines}
        assert ("feedloom-workers", REQUESTS, "11", "1", "(8)") in rows
        assert ("b", "2", "8", "0") in rows
        figures = ("32", "7", "0.5", "60", "-", "-")
        assert ("w1", "ready", "4", "s", "ago", "default@1", *figures) in rows
        assert ("default", "1", "stable", "100", "%", "steady", "30", "60", "40.0", "ms") in rows
        assert ("g1", "ready", "2", "s", "ago", "partition", "3", "http://g") in rows
        assert ("generation.requests.dlq", "4") in rows


def test_an_empty_platform_is_said_to_be_empty() -> None:
    page = "\n".join(printed(top_view.page(TopModel().frame(NOW)), 80))
    for said in ("no worker has reported", "no version serves", "dead letters  none"):
        assert said in page


def test_lag_lists_what_moves_or_waits_and_counts_the_rest() -> None:
    lines = printed(lag_view.page([GROUP], now_ms=NOW, every=False), 120)
    rows = [line.split() for line in lines]
    assert "feedloom-workers  Stable, 2 members, lag 14" in lines
    assert [REQUESTS, "0", "10", "13", "3", "5", "s", "ago", "a"] in rows
    assert [REQUESTS, "1", "4", "12", "8", ">", "10", "min", "ago", "b"] in rows
    assert [REQUESTS, "1", "more", "0"] in rows
    assert [BATCH, "1", "-", "1", "1", "-", "nobody"] in rows
    assert ["feedback.events", "all", "1", "0"] in rows
    everything = printed(lag_view.page([GROUP], now_ms=NOW, every=True), 120)
    assert [REQUESTS, "2", "-", "0", "0", "-", "b"] in [line.split() for line in everything]


def test_lag_says_where_times_cannot_be_read() -> None:
    lines = printed(
        lag_view.page([replace(GROUP, times_known=False)], now_ms=NOW, every=False), 120
    )
    assert any("may not be read" in line for line in lines)
    assert not any("min ago" in line for line in lines)


def test_lag_as_json_has_every_partition() -> None:
    (group,) = lag_view.as_json([GROUP], now_ms=NOW)["groups"]
    assert json.loads(json.dumps(group))["lag"] == 14
    assert [one["moved_s"] for one in group["partitions"]] == [5.0, *[None] * 5]
    assert group["partitions"][4]["owner"] is None


@pytest.mark.parametrize(
    # Java: Utils.abs(group.hashCode()) % 50.
    ("group", "partition"),
    [("a", 47), ("feedloom-workers", 43), ("polygenelubricants", 0), ("grüße", 23)],
)
def test_a_group_has_its_partition_of_the_log_of_offsets(group: str, partition: int) -> None:
    assert offsets_partition(group, 50) == partition


def test_keys_of_the_log_of_offsets_are_read_and_others_passed_over() -> None:
    key = b"\x00\x01" + b"\x00\x01g" + b"\x00\x02tt" + b"\x00\x00\x00\x07"
    assert decode_commit(key) == Commit("g", "tt", 7)
    assert decode_commit(b"\x00\x02\x00\x01g") is None
    assert decode_commit(None) is None
