"""A worker whose engine dies: it ends, and another goes on with its answers. Real vLLM."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from infra.contracts import catalogue
from infra.contracts.events.generation import SamplingParameters
from infra.kafka.bus import KafkaBus
from infra.settings import KafkaSettings
from producers.client import GenerationClient
from tests.conftest import WORDS, Weights

from .conftest import Workers, engine_process

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]

REQUESTS = 96
TOKENS = 200


def test_a_worker_without_an_engine_ends_and_another_goes_on(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path, weights: Weights
) -> None:
    workers = Workers(kafka_bus, kafka_settings, tmp_path, weights.first)
    sampling = SamplingParameters(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    try:
        first = workers.start(kv_cache_gb=0.25)
        with GenerationClient(workers.bus, source="test") as client:
            handles = [client.submit(f"{WORDS} {n}", sampling=sampling) for n in range(REQUESTS)]
            next(iter(handles[0].stream(60)))
            engine_process(first).kill()
            assert first.wait(60) != 0
            workers.children.remove(first)
            workers.start(kv_cache_gb=0.25)
            results = [handle.result(120) for handle in handles]
        assert {result.output_tokens for result in results} == {TOKENS}
        assert all(result.error is None for result in results)
        finals = Counter(record.key for record in workers.records(catalogue.RESULTS.name))
        assert finals == {handle.request.request_id.encode(): 1 for handle in handles}
        assert {result.request_id: result.text for result in results} == {
            request_id: answer.text for request_id, answer in workers.answers().items()
        }
        # Greedy: had it not been continued exactly, one prompt would have two answers.
        assert any(result.resumed_tokens for result in results)
    finally:
        workers.close()
