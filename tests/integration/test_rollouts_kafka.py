"""The rollout controller on a real broker, as a process: it reads, decides, acts and stops."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import Arm, Assignment, GenerationResult, Timings
from infra.contracts.events.model import ModelVersionPublished
from infra.kafka.bus import KafkaBus
from infra.local.supervisor import Child, feedloom_command
from infra.local.watch import PlatformWatch
from infra.registry.client import RegistryWatcher, change_rollout, publish_version
from infra.registry.transitions import promoted, tried
from infra.rollouts.controller import ACTOR
from infra.rollouts.decisions import read_decisions
from infra.settings import KafkaSettings

from .conftest import child_environment

pytestmark = pytest.mark.kafka

UNITS = 120


def serve(bus: KafkaBus, experiment: str, arm: Arm, *, liked: float) -> None:
    """A request of each of so many users, and what each thought of the answer."""
    publisher = bus.publisher()
    for number in range(UNITS):
        request_id = f"{arm}-{number}"
        up = number < liked * UNITS
        result = GenerationResult(
            request_id=request_id,
            submit_id="s",
            model="default",
            prompt="p",
            text="an answer",
            finish_reason="stop",
            prompt_tokens=1,
            output_tokens=10,
            model_versions=("default@1",),
            created_at_ms=number,
            finished_at_ms=number,
            timings=Timings(ttft_ms=20.0 + number % 5, itl_ms=5.0 + number % 3),
            assignment=Assignment(experiment=experiment, arm=arm, unit=f"user:{request_id}"),
        )
        example = FeedbackExample(
            request_id=request_id,
            prompt="p",
            output="an answer",
            model="default",
            model_versions=("default@1",),
            feedback_ids=("f",),
            updated_at_ms=number,
            ups=int(up),
            downs=int(not up),
        )
        for topic, event in ((catalogue.RESULTS, result), (catalogue.EXAMPLES, example)):
            publisher.publish(topic.name, key=request_id.encode(), value=codec.encode(event))
    publisher.close()


def test_a_much_worse_candidate_is_rolled_back(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    registry, publisher = RegistryWatcher(kafka_bus), kafka_bus.publisher()
    for name in "12":
        publish_version(
            publisher,
            ModelVersionPublished(
                model="default",
                version=name,
                kind="full",
                artifact_uri="file:///x",
                manifest=(),
                created_at_ms=0,
            ),
        )
    who = {"now_ms": time.time_ns() // 1_000_000, "actor": "ada", "reason": "a try"}
    change_rollout(publisher, registry, lambda s: promoted(s, "default", "1", **who))
    canary = change_rollout(
        publisher,
        registry,
        lambda s: tried(s, "default", "2", mode="canary", weight=0.5, unit="user", **who),
    )
    publisher.close()
    registry.close()
    # Some of it is there before the controller is, some comes later.
    serve(kafka_bus, canary.experiment, "stable", liked=0.8)
    child = Child(
        "rollouts",
        feedloom_command(["rollouts", "run", "--interval", "0.2"]),
        log=tmp_path / "rollouts.log",
        environment=child_environment(tmp_path, kafka_settings),
    )
    watch = PlatformWatch(kafka_bus)
    try:
        watch.wait_for(
            "a first decision",
            lambda: bool(read_decisions(kafka_bus)),
            timeout_s=60,
            check=child.check,
        )
        serve(kafka_bus, canary.experiment, "candidate", liked=0.1)
        watch.wait_for(
            "a rollback",
            lambda: watch.rollouts["default"].state == "rolled_back",
            timeout_s=60,
            check=child.check,
        )
    finally:
        watch.close()
        status = child.stop(20)
    assert status == 0, child.log_tail()
    rollout = watch.rollouts["default"]
    assert (rollout.stable, rollout.candidate, rollout.rolled_back) == ("1", None, ("2",))
    assert (rollout.revision, rollout.actor) == (3, ACTOR)
    first, *_, last = read_decisions(kafka_bus)
    assert (first.verdict, first.stable.requests, first.candidate.requests) == ("hold", UNITS, 0)
    assert (last.verdict, last.acted, last.revision) == ("rollback", True, 2)
    assert last.reason == rollout.reason
    assert last.candidate.labels >= 20
    assert "Traceback" not in child.log.read_text()
