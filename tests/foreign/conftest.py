"""A platform for clients that share no code with it: two workers, and a gateway if one asks.

The engine is the one without a model: what is tried here is the contract, on Kafka and over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from infra.kafka.bus import KafkaBus
from infra.settings import KafkaSettings
from tests.conftest import new_deployment
from tests.integration.conftest import Gateways, Workers

TOKEN_INTERVAL_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a client is told: the broker's address, and what topics' names begin with."""

    kafka: KafkaSettings
    workers: Workers

    @property
    def broker(self) -> str:
        assert self.kafka.bootstrap_servers is not None
        return self.kafka.bootstrap_servers

    def topic(self, name: str) -> str:
        return self.kafka.topic_prefix + name


@dataclass(frozen=True, kw_only=True)
class Gateway:
    """Its address, without a slash at its end, and a key of a caller."""

    url: str
    key: str


@pytest.fixture(scope="session")
def platform(kafka_bootstrap: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Two workers, so that what is keyed wrongly lies with the wrong one."""
    kafka = new_deployment(kafka_bootstrap)
    workers = Workers(KafkaBus(kafka), kafka, tmp_path_factory.mktemp("platform"))
    try:
        workers.start_several(2, token_interval_s=TOKEN_INTERVAL_S)
        yield Platform(kafka=kafka, workers=workers)
    finally:
        workers.close()


@pytest.fixture(scope="session")
def gateway(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    gateways = Gateways(platform.kafka, tmp_path_factory.mktemp("gateway"))
    try:
        child = gateways.launch()
        key = gateways.key("acme", "caller")
        yield Gateway(url=gateways.wait_ready(child), key=key)
    finally:
        gateways.close()
