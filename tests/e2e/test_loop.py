"""The whole loop, small: real broker, real vLLM, a model built on the spot, a version learnt.

Asserts on what stands on the topics.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import producers.client
import producers.feedback
from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import GenerationChunk, GenerationResult, SamplingParameters
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
from producers.handle import GenerationHandle
from tests import conventions
from tests.conftest import share_jars
from tests.otlp import OtlpReceiver
from tests.traces import Traces, links_of

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

REQUESTS = 80
EDIT = " is a short sentence that people would rather have read."


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """Where all processes send what they record; this one too, as the publishing service."""
    with OtlpReceiver() as receiver:
        provider = TracerProvider(resource=Resource({"service.name": "e2e"}))
        exporter = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
        monkeypatch.setattr(producers.client, "tracer", provider.get_tracer("feedloom.producers"))
        monkeypatch.setattr(producers.feedback, "tracer", provider.get_tracer("feedloom.producers"))
        yield receiver
        provider.shutdown()


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
        # Two would take turns with the engine's.
        "FEEDLOOM_TRAINER__THREADS": "1",
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
    settings: Settings, kafka_bus: KafkaBus, collector: OtlpReceiver
) -> None:
    # Of different lengths, so that no moment has all of them between two requests: the switch meets
    # some in flight whenever it comes.
    lengths = itertools.cycle(
        SamplingParameters(max_tokens=tokens, temperature=0.7, seed=1, ignore_eos=True)
        for tokens in (90, 130, 170, 210)
    )
    children = environment(settings) | collector.environment
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
                # Few beside the training, many once the version is there.
                wanted = 16 if ("default", "2") in platform.watch.versions else 4
                while len(running) < wanted:
                    running.append(client.submit("The module", sampling=next(lengths)))
                    handles.append(running[-1])
            after = client.submit("The module", sampling=short)
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
    assert {"process generation.requests", "text_completion default", "train default"} <= names
    _check_telemetry(collector, handles)


def _check_telemetry(collector: OtlpReceiver, handles: list[GenerationHandle]) -> None:
    """Every trace whole, all walkable from any one, every name by the conventions."""
    try:
        traces = collector.wait_for(lambda receiver: _whole(receiver, handles), 60)
    except TimeoutError:
        found = Traces(collector.spans)
        gaps = {one.request.request_id: found.gaps(one.trace_id) for one in handles}
        pytest.fail(str({name: wrong for name, wrong in gaps.items() if wrong})[:2000])
    rated = handles[:REQUESTS]
    for handle in handles:
        (result,) = traces.named("send generation.results", handle.trace_id)
        assert {span.name for span in traces.linked_from[result.span_id]} >= {
            "commit generation.requests"
        }
    # Feedback leads to what it is about, and the training run to the feedback.
    about = links_of(traces.named("process feedback.events"))
    assert {link.trace_id for link in about} >= {handle.trace_id for handle in rated}
    (training,) = traces.named("train default")
    consumed = links_of(traces.named("poll feedback.examples", training.trace_id))
    assert len(consumed) == REQUESTS
    assert {traces.spans[link.span_id].name for link in consumed} == {"send feedback.examples"}
    # And to what prepared the text that it replays.
    (prepared,) = traces.named("feedloom.pile.prepare")
    assert prepared.span_id in {link.span_id for link in training.links}
    # What the run published is in its trace, and the worker's switch leads there.
    (publication,) = traces.named("send model.registry", training.trace_id)
    switch = max(traces.named("switch default"), key=lambda span: span.start_ns)
    assert publication.span_id in {link.span_id for link in switch.links}
    for start in (switch, training, traces.named("send generation.requests", rated[0].trace_id)[0]):
        assert traces.reached(start) >= {
            *("send generation.requests", "llm_request", "commit generation.requests"),
            *("send feedback.events", "process feedback.events", "send feedback.examples"),
            *("train default", "send model.registry", "switch default"),
        }
    problems = {fault for span in traces.spans.values() for fault in conventions.problems(span)}
    problems |= {fault for metric in collector.metrics for fault in conventions.problems(metric)}
    assert problems == set()
    recorded = {metric.name for metric in collector.metrics}
    assert recorded >= {"gen_ai.server.time_to_first_token", "feedloom.worker.lag"}
    # From what was slow to whose request it was, or to the commit.
    ours = {handle.trace_id for handle in handles}
    commits = {span.trace_id for span in traces.named("commit generation.requests")}
    for name, shown in (
        ("gen_ai.server.time_to_first_token", ours),
        ("messaging.process.duration", ours),
        ("feedloom.worker.commit.duration", commits),
    ):
        found = {
            exemplar.trace_id
            for metric in collector.metrics
            if metric.name == name
            for point in metric.points
            for exemplar in point.exemplars
        }
        assert found & shown, name
    lines = [str(log.body) for log in collector.logs]
    assert lines
    assert not any(EDIT in line for line in lines)


def _whole(receiver: OtlpReceiver, handles: list[GenerationHandle]) -> Traces | None:
    traces = Traces(receiver.spans)
    if any(traces.gaps(handle.trace_id) for handle in handles):
        return None
    return traces


def test_the_demo_reports_every_key_on_a_small_setting(tmp_path: Path) -> None:
    """Through the command, on a broker of its own, as a user runs it."""
    home = tmp_path / "home"
    share_jars(home)
    report = tmp_path / "report.json"
    small = {
        "FEEDLOOM_HOME": str(home),
        "FEEDLOOM_BOOTSTRAP__SECONDS": "10",
        "FEEDLOOM_BOOTSTRAP__HIDDEN_SIZE": "128",
        "FEEDLOOM_BOOTSTRAP__LAYERS": "2",
        "FEEDLOOM_BOOTSTRAP__HEADS": "2",
        "FEEDLOOM_BOOTSTRAP__CORPUS_MB": "2",
        "FEEDLOOM_DEMO__PROMPTS": "20",
        "FEEDLOOM_DEMO__HELDOUT_PROMPTS": "8",
        "FEEDLOOM_TRAINER__NUM_TRAIN_EPOCHS": "1",
        "FEEDLOOM_TRAINER__MAX_TRAIN_SECONDS": "15",
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
