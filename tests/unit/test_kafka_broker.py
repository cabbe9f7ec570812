"""What the embedded Kafka's brokers are configured with; processes are tried in integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.contracts.errors import ConfigurationError
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.broker_node import Layout, server_properties
from infra.settings import KafkaSettings


def properties(brokers: int, number: int, password: str | None = None) -> dict[str, str]:
    layout = Layout(
        cluster_id="c",
        ports=tuple(range(9001, 9001 + brokers)),
        controller_ports=tuple(range(9101, 9101 + brokers)),
    )
    text = server_properties(layout, number, data=Path("/data"), admin_password=password)
    lines = text.replace("\\\n", "").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_one_broker_replicates_nothing() -> None:
    found = properties(1, 1)
    assert found["controller.quorum.voters"] == "1@127.0.0.1:9101"
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:9001,CONTROLLER://127.0.0.1:9101"
    assert {value for key, value in found.items() if "replication.factor" in key} == {"1"}
    assert found["min.insync.replicas"] == found["transaction.state.log.min.isr"] == "1"


@pytest.mark.parametrize(("brokers", "number"), [(3, 2), (5, 5)])
def test_of_several_brokers_every_record_is_on_three_and_needs_two(
    brokers: int, number: int
) -> None:
    found = properties(brokers, number)
    assert found["node.id"] == str(number)
    assert found["controller.quorum.voters"].count("@") == brokers
    assert found["advertised.listeners"] == f"PLAINTEXT://127.0.0.1:{9000 + number}"
    assert {value for key, value in found.items() if "replication.factor" in key} == {"3"}
    assert {found[key] for key in found if key.endswith(("min.isr", "insync.replicas"))} == {"2"}


def test_secured_brokers_log_in_to_one_another() -> None:
    found = properties(3, 1, password="secret")
    assert found["inter.broker.listener.name"] == "SASL_PLAINTEXT"
    assert found["listener.security.protocol.map"].endswith("CONTROLLER:SASL_PLAINTEXT")
    assert 'password="secret"' in found["listener.name.controller.plain.sasl.jaas.config"]


def test_an_even_number_of_brokers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="odd number, as of 4 no more may fail than of 3"):
        EmbeddedKafka(tmp_path, brokers=4)


def test_more_copies_than_brokers_hold_are_not_asked_for() -> None:
    with pytest.raises(ValueError, match="nothing could be written"):
        KafkaSettings(replication_factor=2, min_insync_replicas=3)
