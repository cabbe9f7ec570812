"""Kafka takes what the compose file says of each broker.

The image's start script hands its environment to a class of Kafka's own jars, which writes the
configuration from it, checks it and formats the data folder. That class is run here.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from infra.kafka.jars import fetch_jars, locked_jars
from infra.kafka.java import find_java
from tests.compose import ROOT, THREE, services

pytestmark = pytest.mark.kafka


def properties(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if "=" in line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("options", [(), THREE], ids=["one broker", "three brokers"])
def test_kafka_takes_the_settings_of_every_broker(options: tuple[str, ...], tmp_path: Path) -> None:
    library, jars = ROOT / ".feedloom" / "kafka" / "lib", locked_jars()
    library.mkdir(parents=True, exist_ok=True)
    fetch_jars(library, jars)
    classes = os.pathsep.join(str(library / jar.filename) for jar in jars)
    given, mounted = tmp_path / "given", tmp_path / "mounted"
    for folder in (given, mounted):
        folder.mkdir()
    for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
        (given / name).touch()
    copies = 3 if options else 1
    clusters = set()
    for number in range(1, copies + 1):
        written, data = tmp_path / f"written-{number}", tmp_path / f"data-{number}"
        written.mkdir()
        environment = services(*options)[f"kafka-{number}"]["environment"]
        assert environment["KAFKA_LOG_DIRS"] == "/var/lib/kafka/data"
        command = [str(find_java().path), "-XX:TieredStopAtLevel=1", "-cp", classes]
        command += ["kafka.docker.KafkaDockerWrapper", "setup"]
        command += ["--default-configs-dir", str(given), "--mounted-configs-dir", str(mounted)]
        done = subprocess.run(
            [*command, "--final-configs-dir", str(written)],
            env={**environment, "PATH": os.environ["PATH"], "KAFKA_LOG_DIRS": str(data)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        settings = properties(written / "server.properties")
        assert settings["default.replication.factor"] == str(copies)
        assert settings["min.insync.replicas"] == ("2" if options else "1")
        formatted = properties(data / "meta.properties")
        assert formatted["node.id"] == str(number)
        clusters.add(formatted["cluster.id"])
    assert len(clusters) == 1
