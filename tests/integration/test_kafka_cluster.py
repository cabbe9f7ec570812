"""Three real brokers: one is killed, all are restarted in turn, and nothing is lost or stuck.

Load comes from processes of its own and over HTTP: kafka-python leaks sockets when a broker that it
is connected to goes away.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.generation import GenerationResult
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.broker_node import NodeStatus
from infra.kafka.bus import KafkaBus
from infra.kafka.connection import admin_client
from infra.kafka.lag import GroupLag
from infra.kafka.topics import await_in_sync, behind
from infra.local.watch import PlatformWatch
from infra.settings import KafkaSettings, WorkerSettings
from tests.conftest import embedded_broker, new_deployment

from .callers import Callers, Replicas
from .conftest import Gateways, Workers
from .steady import Publisher

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]

BROKERS = 3
IN_FLIGHT = 8
TOKENS = 60
TOKEN_S = 0.02


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    home = tmp_path_factory.mktemp("cluster")
    with embedded_broker(home, brokers=BROKERS, heap_mb=320) as kafka:
        yield kafka


@pytest.fixture
def settings(cluster: EmbeddedKafka) -> KafkaSettings:
    return new_deployment(cluster.start(attached=True).bootstrap_servers)


def finals(bus: KafkaBus) -> dict[str, str]:
    """Texts by request, of exactly one final each."""
    found = [
        codec.decode(record.value or b"", GenerationResult)
        for record in read_to_end(bus, catalogue.RESULTS.name)
    ]
    assert set(Counter(one.request_id for one in found).values()) <= {1}
    assert {one.finish_reason for one in found} <= {"length", "stop"}
    return {one.request_id: one.text for one in found}


def lag(settings: KafkaSettings) -> int:
    measured = GroupLag(settings, group=WorkerSettings().group, topic=catalogue.REQUESTS.name)
    try:
        return measured.measure()
    finally:
        measured.close()


def test_every_topic_is_on_three_brokers_and_needs_two(settings: KafkaSettings) -> None:
    ours = [settings.topic_prefix + spec.name for spec in catalogue.all_topics()]
    with admin_client(settings) as admin:
        # Of a topic that is new a broker may hear a little later than another.
        admin.wait_for_topics(ours)
        topics = {one["name"]: one["partitions"] for one in admin.describe_topics(ours)}
    for name in ours:
        assert {len(one["replica_nodes"]) for one in topics[name]} == {BROKERS}, name
    assert behind(settings) == []


def test_a_cluster_keeps_its_number_of_brokers(cluster: EmbeddedKafka) -> None:
    with pytest.raises(ConfigurationError, match=r"was made with 3 brokers, not 1: .* reset"):
        EmbeddedKafka(cluster.root.parent, brokers=1).start()


def test_killed_brokers_lose_and_hold_up_nothing(
    cluster: EmbeddedKafka, settings: KafkaSettings, tmp_path: Path
) -> None:
    """Every record needs two of three brokers, so one may die at any moment."""
    workers = Workers(KafkaBus(settings), settings, tmp_path)
    publisher: Publisher | None = None
    try:
        workers.start_several(2, token_interval_s=TOKEN_S)
        workers.watch.close()
        publisher = Publisher(
            tmp_path, settings, in_flight=IN_FLIGHT, tokens=TOKENS, asked=workers.children
        )
        publisher.await_more(2 * IN_FLIGHT)
        for number in (1, 3):
            os.kill(node(cluster, number).pid, signal.SIGKILL)
            publisher.await_more(4 * IN_FLIGHT)
            cluster.start(attached=True)
            await_in_sync(settings)
        answered = publisher.results()
        assert finals(workers.bus) == answered
        assert all(child.exit_status is None for child in workers.children)
        assert lag(settings) == 0
    finally:
        if publisher is not None:
            publisher.child.stop(10)
        workers.close()


def test_everything_is_restarted_in_turn_under_load_and_no_request_fails(
    cluster: EmbeddedKafka, settings: KafkaSettings, tmp_path: Path
) -> None:
    """The upgrade drill: brokers, then workers, then gateways, each replaced one at a time."""
    bus = KafkaBus(settings)
    workers, gateways = Workers(bus, settings, tmp_path), Gateways(settings, tmp_path)
    publisher: Publisher | None = None
    callers: Callers | None = None
    try:
        first = gateways.launch()
        workers.start_several(2, token_interval_s=TOKEN_S)
        workers.watch.close()
        key = gateways.key("acme", "caller")
        started = [(gateways.wait_ready(first), first), gateways.start()]
        replicas = Replicas([url for url, _ in started])
        callers = Callers(replicas, key, threads=4, max_tokens=TOKENS)
        publisher = Publisher(
            tmp_path, settings, in_flight=IN_FLIGHT, tokens=TOKENS, asked=workers.children
        )
        publisher.await_more(2 * IN_FLIGHT)

        cluster.restart(attached=True)

        workers.watch = PlatformWatch(bus)
        for old in list(workers.children):
            workers.start(token_interval_s=TOKEN_S)
            assert old.stop(60) == 0, old.log_tail()
        workers.watch.close()

        for url, old in started:
            replicas.add(gateways.start()[0])
            replicas.remove(url)
            assert old.stop(60) == 0, old.log_tail()

        callers.stop()
        assert callers.errors == []
        assert [answer for answer in callers.answers.values() if answer[0] != 200] == []
        assert len(callers.answers) > 50
        published = publisher.results()
        answered = finals(bus)
        called = {request_id for _, request_id in callers.answers.values()}
        assert set(answered) == set(published) | called
        assert {one: answered[one] for one in published} == published
        assert lag(settings) == 0
    finally:
        if callers is not None:
            callers.stop()
        if publisher is not None:
            publisher.child.stop(10)
        gateways.close()
        workers.close()


def node(cluster: EmbeddedKafka, number: int) -> NodeStatus:
    status = cluster.status()
    assert status is not None
    (found,) = [one for one in status.nodes if one.number == number]
    return found
