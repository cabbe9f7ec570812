"""What Prometheus fetches of worker processes on the real broker: lag, and whose partitions."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from infra.contracts import catalogue
from infra.contracts.events.generation import SamplingParameters
from producers.client import GenerationClient

from .conftest import Workers

pytestmark = pytest.mark.kafka

Series = dict[tuple[str, str], float]


def samples(log: Path, metric: str) -> list[Sample]:
    """Of a metric, from the endpoint that the log names."""
    (url,) = re.findall(r"metrics at (http://\S+)", log.read_text())
    return [
        sample
        for family in text_string_to_metric_families(httpx.get(url).text)
        for sample in family.samples
        if sample.name == metric
    ]


def scraped(log: Path, metric: str) -> Series:
    """A metric by topic and partition."""
    return {
        (
            sample.labels["messaging_destination_name"],
            sample.labels["messaging_destination_partition_id"],
        ): sample.value
        for sample in samples(log, metric)
    }


def test_lag_is_seen_while_the_worker_is_busy_and_goes_with_the_partition(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDLOOM_TELEMETRY__PROMETHEUS_PORT", "0")
    # One request at a time: the others wait, and are seen to.
    logs = [workers.start(token_interval_s=0.05, max_inflight_tokens=100, max_queued=1).log]

    def lags(worker: int = 0) -> Series:
        return scraped(logs[worker], "feedloom_worker_lag")

    partitions = {
        (topic, str(each.partition))
        for topic in (catalogue.REQUESTS.name, catalogue.REQUESTS_BATCH.name)
        for each in workers.bus.end_offsets(topic)
    }
    workers.wait("every partition", lambda: set(lags()) == partitions, 120)
    assert set(lags().values()) == {0}
    with GenerationClient(workers.bus, source="test", cancel_on_close=True) as client:
        sampling = SamplingParameters(max_tokens=99)
        handles = [client.submit(f"one two {n}", sampling=sampling) for n in range(40)]
        workers.wait("what waits", lambda: sum(lags().values()) > 20, 120)
        workers.wait(
            "a stall",
            lambda: max(scraped(logs[0], "feedloom_worker_partition_stalled_seconds").values()) > 0,
        )
        for handle in handles:
            client.cancel(handle.request.request_id)
        workers.wait("nothing that waits", lambda: set(lags().values()) == {0}, 120)
    sent = {
        sample.labels["messaging_destination_name"]: sample.value
        for sample in samples(logs[0], "messaging_client_sent_messages_total")
    }
    assert sent[catalogue.RESULTS.name] == 40
    assert sent[catalogue.CHUNKS.name] >= 1
    assert sent[catalogue.WORKERS.name] >= 2
    logs.append(workers.start().log)
    workers.wait(
        "each partition at one of them", lambda: shared_out(lags(0), lags(1), partitions), 120
    )


def shared_out(one: Series, other: Series, partitions: set[tuple[str, str]]) -> bool:
    return set(one) | set(other) == partitions and not set(one) & set(other) and bool(other)
