"""A trainer killed at any point: the next one loses no feedback and publishes nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.kafka.bus import KafkaBus
from infra.registry.store import ArtifactStore
from infra.settings import KafkaSettings
from tests.conftest import ROOT

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]


def in_a_process(home: Path, kafka: KafkaSettings) -> None:
    finished = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.killed_trainer",
            str(home),
            kafka.bootstrap_servers or "",
            kafka.topic_prefix,
        ],
        cwd=ROOT,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-6000:]


def test_a_trainer_killed_anywhere_neither_loses_feedback_nor_publishes_twice(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    from tests.integration.killed_trainer import FEEDBACK, POINTS

    assert len(POINTS) >= 10
    in_a_process(tmp_path, kafka_settings)

    versions = [
        codec.decode(record.value or b"", ModelVersionPublished)
        for record in read_to_end(kafka_bus, catalogue.REGISTRY.name)
    ]
    rollouts = [
        codec.decode(record.value or b"", RolloutChanged)
        for record in read_to_end(kafka_bus, catalogue.ROLLOUTS.name)
    ]
    examples = read_to_end(kafka_bus, catalogue.EXAMPLES.name)
    for point in POINTS:
        _, second = [version for version in versions if version.model == point]
        assert second.lineage.feedback_examples == FEEDBACK
        spans = {(span.topic, span.partition): span for span in second.lineage.feedback}
        for record in examples:
            if codec.decode(record.value or b"", FeedbackExample).model == point:
                span = spans[record.topic, record.partition]
                assert span.start <= record.offset < span.end
        assert [change.stable for change in rollouts if change.model == point] == ["1", "2"]
        ArtifactStore(tmp_path / "artifacts").resolve(second)
