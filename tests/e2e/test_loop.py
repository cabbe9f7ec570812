"""The whole loop, small: real broker, real vLLM, a model built on the spot, a version learnt.

Asserts on what stands on the topics.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.events import (
    FeedbackExample,
    GenerationChunk,
    GenerationResult,
    SamplingParameters,
)
from infra.kafka.bus import KafkaBus
from infra.local.platform import LocalPlatform
from infra.local.supervisor import feedloom_command
from infra.settings import (
    BootstrapSettings,
    KafkaSettings,
    Settings,
    TelemetrySettings,
    TrainerSettings,
    WorkerSettings,
)
from observability.spans import read_spans
from producers.client import GenerationClient
from producers.feedback import FeedbackClient

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

REQUESTS = 24
EDIT = " is a short sentence that people would rather have read."


@pytest.fixture
def settings(kafka_settings: KafkaSettings, tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        kafka=kafka_settings,
        worker=WorkerSettings(worker_id="w1", kv_cache_gb=0.25, max_num_seqs=32),
        trainer=TrainerSettings(block_size=64),
        bootstrap=BootstrapSettings(
            seconds=8, hidden_size=64, layers=2, heads=2, corpus_mb=1.0, compile=False, context=256
        ),
        telemetry=TelemetrySettings(span_directory=tmp_path / "spans"),
    )


def environment(settings: Settings) -> dict[str, str]:
    """The settings above for the platform's child processes."""
    return {
        "FEEDLOOM_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "FEEDLOOM_WORKER__WORKER_ID": "w1",
        "FEEDLOOM_WORKER__KV_CACHE_GB": "0.25",
        "FEEDLOOM_TRAINER__MIN_EXAMPLES": str(REQUESTS),
        "FEEDLOOM_TRAINER__NUM_TRAIN_EPOCHS": "1",
        "FEEDLOOM_TRAINER__BLOCK_SIZE": "64",
        "FEEDLOOM_TRAINER__PER_DEVICE_TRAIN_BATCH_SIZE": "8",
        "FEEDLOOM_TRAINER__MAX_FORGETTING": "5",
        "FEEDLOOM_TRAINER__HELDOUT_FRACTION": "0",
        "FEEDLOOM_TRAINER__ROLLOUT_DELAY_S": "2",
        "FEEDLOOM_BOOTSTRAP__SECONDS": "8",
        "FEEDLOOM_BOOTSTRAP__HIDDEN_SIZE": "64",
        "FEEDLOOM_BOOTSTRAP__LAYERS": "2",
        "FEEDLOOM_BOOTSTRAP__HEADS": "2",
        "FEEDLOOM_BOOTSTRAP__CORPUS_MB": "1.0",
        "FEEDLOOM_BOOTSTRAP__COMPILE": "false",
        "FEEDLOOM_BOOTSTRAP__CONTEXT": "256",
        "FEEDLOOM_TELEMETRY__SPAN_DIRECTORY": str(settings.telemetry.span_directory),
    }


def test_feedback_makes_a_version_that_the_worker_switches_to(
    settings: Settings, kafka_bus: KafkaBus
) -> None:
    sampling = SamplingParameters(max_tokens=200, temperature=0.7, seed=1, ignore_eos=True)
    children = environment(settings)
    with LocalPlatform(settings, lambda line: None, environment=children, quiet=True) as platform:
        with (
            GenerationClient(platform.bus, source="e2e") as client,
            FeedbackClient(platform.bus, source="e2e") as feedback,
        ):
            short = SamplingParameters(max_tokens=8, temperature=0.7, seed=1)
            handles = [client.submit(f"Module {n}", sampling=short) for n in range(REQUESTS)]
            for handle in handles:
                assert handle.result(120).model_versions == ("default@1",)
            for handle in handles:
                feedback.rate(handle.request.request_id, "down")
                feedback.edit(handle.request.request_id, EDIT)
            running = []
            while not platform.watch.serving("default", "2"):
                platform.check()
                platform.watch.poll(0.05)
                running = [handle for handle in running if not handle.done]
                # Many and long ones once the version is there, so that the switch meets some.
                wanted = 16 if ("default", "2") in platform.watch.versions else 1
                while len(running) < wanted:
                    running.append(client.submit("The module", sampling=sampling))
                    handles.append(running[-1])
            after = client.submit("The module", sampling=sampling)
            handles.append(after)
            assert after.result(120).model_versions == ("default@2",)
            assert all(handle.result(120).error is None for handle in handles)
        published = platform.watch.versions["default", "2"]
        report = platform.watch.workers["w1"]

    finals = [
        codec.decode(record.value or b"", GenerationResult)
        for record in read_to_end(kafka_bus, catalogue.RESULTS.name)
    ]
    assert Counter(final.request_id for final in finals) == Counter(
        handle.request.request_id for handle in handles
    )
    texts: dict[str, str] = {}
    for record in read_to_end(kafka_bus, catalogue.CHUNKS.name):
        chunk = codec.decode(record.value or b"", GenerationChunk)
        texts[chunk.request_id] = texts.get(chunk.request_id, "") + chunk.text
    assert texts == {final.request_id: final.text for final in finals}

    examples = {
        (record.key or b"").decode(): codec.decode(record.value or b"", FeedbackExample)
        for record in read_to_end(kafka_bus, catalogue.EXAMPLES.name)
    }
    assert len(examples) == REQUESTS
    assert {example.edited_text for example in examples.values()} == {EDIT}

    assert published.lineage.parent == "1"
    assert published.lineage.feedback_examples == REQUESTS
    assert published.lineage.replay_fraction > 0
    spans = {(span.topic, span.end - span.start) for span in published.lineage.feedback}
    assert {topic for topic, _ in spans} == {catalogue.EXAMPLES.name}
    assert published.manifest
    assert {"heldout_loss_before", "heldout_loss_after"} <= set(published.metrics)
    assert report.last_switch is not None
    assert report.last_switch.in_flight > 0
    assert read_to_end(kafka_bus, f"{catalogue.REQUESTS.name}.dlq") == []

    directory = settings.telemetry.span_directory
    assert directory is not None
    names = {span.name for span in read_spans(directory)}
    assert {"process generation.requests", "generate default", "train default"} <= names


def test_the_demo_reports_every_key_on_a_small_setting(tmp_path: Path) -> None:
    """Through the command, on a broker of its own, as a user runs it."""
    root = Path(__file__).resolve().parents[2]
    home = tmp_path / "home"
    (home / "kafka").mkdir(parents=True)
    jars = root / ".feedloom" / "kafka" / "lib"
    jars.mkdir(parents=True, exist_ok=True)
    (home / "kafka" / "lib").symlink_to(jars, target_is_directory=True)
    report = tmp_path / "report.json"
    small = {
        "FEEDLOOM_HOME": str(home),
        "FEEDLOOM_BOOTSTRAP__SECONDS": "15",
        "FEEDLOOM_BOOTSTRAP__COMPILE": "false",
        "FEEDLOOM_BOOTSTRAP__CORPUS_MB": "3",
        "FEEDLOOM_DEMO__PROMPTS": "20",
        "FEEDLOOM_DEMO__HELDOUT_PROMPTS": "8",
        "FEEDLOOM_TRAINER__NUM_TRAIN_EPOCHS": "1",
        "FEEDLOOM_TRAINER__MAX_FORGETTING": "5",
        "FEEDLOOM_WORKER__KV_CACHE_GB": "0.25",
    }
    finished = subprocess.run(
        feedloom_command(["demo", "--quiet", "--json", str(report)]),
        env={**os.environ, **small},
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    found = json.loads(report.read_text())
    assert (found["lost"], found["duplicate_finals"]) == (0, 0)
    assert found["sent"] == found["answered"] > 20
    assert set(found["versions"]) == {"default@1", "default@2"}
    for key in ("ttft_ms", "itl_ms"):
        assert set(found[key]) == {"p50", "p95"}
    for key in ("heldout_loss", "win_rate"):
        assert set(found[key]) == {"before", "after"}
    assert found["swap_pause_ms"] > 0
    assert found["output_tokens_per_s"] > 0
    assert len(found["trace"]["id"]) == 32
    assert len(found["trace"]["hops"]) >= 3
