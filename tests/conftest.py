"""One Kafka broker a run: an address given by option, Docker's, or the embedded one.

The same integration tests run on each. With no broker to be had the run fails.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.kafka.broker import EmbeddedBroker
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.settings import KafkaSettings

ROOT = Path(__file__).resolve().parent.parent
KAFKA_IMAGE = "apache/kafka:4.2.2"
PARTITIONS = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kafka-bootstrap", help="host:port of a Kafka to test against, instead of a new one"
    )


@pytest.fixture(scope="session")
def kafka_bootstrap(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    given = request.config.getoption("--kafka-bootstrap")
    if given:
        yield str(given)
    elif _docker_answers():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer(KAFKA_IMAGE).with_kraft() as container:
            yield container.get_bootstrap_server()
    else:
        home = tmp_path_factory.mktemp("kafka-home")
        jars = ROOT / ".feedloom" / "kafka" / "lib"
        jars.mkdir(parents=True, exist_ok=True)
        (home / "kafka").mkdir()
        (home / "kafka" / "lib").symlink_to(jars, target_is_directory=True)
        broker = EmbeddedBroker(home)
        try:
            yield broker.start(attached=True).bootstrap_servers
        finally:
            broker.stop()


def _docker_answers() -> bool:
    # The client leaks its socket when there is nothing to connect to.
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


@pytest.fixture
def kafka_settings(kafka_bootstrap: str) -> KafkaSettings:
    """Topics of its own for each test, with three partitions."""
    settings = KafkaSettings(
        bootstrap_servers=kafka_bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:8]}."
    )
    apply_catalogue(settings, partitions=PARTITIONS)
    return settings


@pytest.fixture
def kafka_bus(kafka_settings: KafkaSettings) -> KafkaBus:
    return KafkaBus(kafka_settings)
