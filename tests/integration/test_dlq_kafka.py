"""``feedloom dlq`` on a real broker: nothing of a record is lost on its way out and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from kafka import KafkaProducer
from kafka import TopicPartition as KafkaPartition

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.dead_letters import REPLAYED_FROM, STATE, TOPICS, DeadLetterRefused
from infra.contracts.errors import MalformedRecord
from infra.kafka.bus import KafkaBus
from infra.kafka.connection import admin_client, client_options
from infra.kafka.dlq_commands import dlq
from infra.settings import KafkaSettings

pytestmark = pytest.mark.kafka

TOPIC = catalogue.REQUESTS.name
DLQ = TOPICS[TOPIC]
BROKEN = b'{"type": "GenerationRequest", "prompt": \xff\xfe\x00'
KEY = b"\xf0key"
HEADERS = [("mine", b"\x00\xfe"), ("mine", b"twice"), ("empty", b""), ("traceparent", b"00-1-2-01")]


class Commands:
    """``feedloom dlq ...``, configured by the environment as an operator's is."""

    def outcome(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(dlq, list(arguments), input=stdin)

    def __call__(self, *arguments: str) -> str:
        outcome = self.outcome(*arguments)
        assert outcome.exit_code == 0, (outcome.output, outcome.exception)
        return outcome.stdout


@pytest.fixture
def run(kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    monkeypatch.setenv("FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS", str(kafka_settings.bootstrap_servers))
    monkeypatch.setenv("FEEDLOOM_KAFKA__TOPIC_PREFIX", kafka_settings.topic_prefix)
    monkeypatch.chdir(tmp_path)
    return Commands()


def dead_letter(bus: KafkaBus, count: int = 1, partition: int | None = None) -> None:
    """As a worker does it: a record that came from the source topic, and its error."""
    publisher = bus.publisher()
    try:
        for _ in range(count):
            came = publisher.publish(TOPIC, key=KEY, value=BROKEN, headers=HEADERS).result(30)
            headers = codec.dead_letter_headers(
                HEADERS,
                topic=TOPIC,
                partition=came.partition,
                offset=came.offset,
                error=MalformedRecord("not UTF-8"),
            )
            publisher.publish(
                DLQ, key=KEY, value=BROKEN, headers=headers, partition=partition
            ).result(30)
    finally:
        publisher.close()


def test_a_broken_record_is_listed_shown_replayed_and_then_settled(
    run: Commands, kafka_bus: KafkaBus, tmp_path: Path
) -> None:
    assert run("list") == "no dead letters\n"
    dead_letter(kafka_bus)
    (original,) = read_to_end(kafka_bus, TOPIC)

    (listed,) = json.loads(run("list", "--json"))
    letter = listed["id"]
    assert letter == f"{TOPIC}/0"
    assert (listed["source_partition"], listed["source_offset"]) == (original.partition, 0)
    assert f"{letter} " in run("list")
    shown = run("show", letter)
    assert "MalformedRecord" in shown
    assert "  mine: hex 00 fe\n  mine: twice\n" in shown
    assert "ff fe 00" in shown
    run("show", letter, "--raw", "letter.bin")
    assert (tmp_path / "letter.bin").read_bytes() == BROKEN

    run("replay", letter, "--yes")
    first, second = read_to_end(kafka_bus, TOPIC)
    assert first == original
    assert (second.key, second.value, second.partition) == (KEY, BROKEN, original.partition)
    assert second.headers == (*original.headers, (REPLAYED_FROM, letter.encode()))

    assert run("list") == "no dead letters (1 settled: --all shows them)\n"
    (settled,) = json.loads(run("list", "--json", "--all"))
    assert settled["state"] == "replayed"
    assert settled["history"][0]["replayed_to"] == f"{TOPIC}/{second.partition}/{second.offset}"
    # The letter itself stays, and is not sent again by mistake.
    assert "state      replayed\n" in run("show", letter)
    assert isinstance(run.outcome("replay", letter, "--yes").exception, DeadLetterRefused)
    assert isinstance(run.outcome("replay", "--all", "--yes").exception, DeadLetterRefused)
    assert len(read_to_end(kafka_bus, TOPIC)) == 2


def test_a_repaired_record_goes_with_the_original_key(
    run: Commands, kafka_bus: KafkaBus, tmp_path: Path
) -> None:
    dead_letter(kafka_bus)
    (tmp_path / "repaired").write_bytes(b"{}\xff")
    run("replay", f"{TOPIC}/0", "--value", "repaired", "--yes", "--reason", "quoted")
    sent = read_to_end(kafka_bus, TOPIC)[-1]
    assert (sent.key, sent.value) == (KEY, b"{}\xff")
    assert "with other bytes" in run("show", f"{TOPIC}/0")


def test_a_dropped_letter_leaves_the_list_and_stays_on_the_topic(
    run: Commands, kafka_bus: KafkaBus
) -> None:
    dead_letter(kafka_bus, 3)
    before = read_to_end(kafka_bus, DLQ)
    assert run.outcome("drop", f"{TOPIC}/1", stdin="n\n").exit_code == 1
    run("drop", f"{TOPIC}/1", "--yes", "--reason", "noise")
    assert [each["id"] for each in json.loads(run("list", "--json"))] == [
        f"{TOPIC}/0",
        f"{TOPIC}/2",
    ]
    assert ": noise\n" in run("show", f"{TOPIC}/1")
    assert read_to_end(kafka_bus, DLQ)[:3] == before
    assert len(read_to_end(kafka_bus, TOPIC)) == 3
    run("drop", "--all", "--yes")
    assert json.loads(run("list", "--json")) == []


def test_letters_beyond_the_first_partition_are_settled_on_their_own(
    run: Commands, kafka_bus: KafkaBus, kafka_settings: KafkaSettings
) -> None:
    with admin_client(kafka_settings) as admin:
        admin.create_partitions({kafka_settings.topic_prefix + DLQ: 2})
    dead_letter(kafka_bus, 120, partition=0)
    dead_letter(kafka_bus, 120, partition=1)
    run("replay", f"{TOPIC}/1/7", "--yes")
    run("replay", f"{TOPIC}/8", "--yes")
    replayed = run("replay", "--all", "--yes").splitlines()
    assert len(replayed) == 238
    assert json.loads(run("list", "--json")) == []
    for record in read_to_end(kafka_bus, DLQ):
        assert (codec.header(record.headers, STATE) is not None) == (record.offset >= 120)
    assert len(read_to_end(kafka_bus, TOPIC)) == 480


def test_a_topic_whose_letters_have_all_expired_is_empty_without_a_wait(
    run: Commands, kafka_bus: KafkaBus, kafka_settings: KafkaSettings
) -> None:
    dead_letter(kafka_bus, 3)
    partition = KafkaPartition(kafka_settings.topic_prefix + DLQ, 0)
    with admin_client(kafka_settings) as admin:
        admin.delete_records({partition: 2})
    assert [each["id"] for each in json.loads(run("list", "--json"))] == [f"{TOPIC}/2"]
    assert isinstance(run.outcome("show", f"{TOPIC}/0").exception, DeadLetterRefused)
    with admin_client(kafka_settings) as admin:
        admin.delete_records({partition: 3})
    assert run("list", "--all") == "no dead letters\n"
    dead_letter(kafka_bus)
    run("replay", f"{TOPIC}/3", "--yes")
    assert run("list") == "no dead letters (1 settled: --all shows them)\n"


def test_letters_written_in_transactions_are_read_past_their_markers(
    run: Commands, kafka_bus: KafkaBus, kafka_settings: KafkaSettings
) -> None:
    producer = KafkaProducer(
        **client_options(kafka_settings), transactional_id=f"{kafka_settings.topic_prefix}worker"
    )
    try:
        producer.init_transactions()
        for outcome in ("commit", "abort", "commit", "abort"):
            producer.begin_transaction()
            for topic in (DLQ, TOPICS[catalogue.FEEDBACK.name]):
                headers = codec.dead_letter_headers(
                    HEADERS, topic=topic, partition=0, offset=0, error=MalformedRecord(outcome)
                )
                producer.send(kafka_settings.topic_prefix + topic, BROKEN, KEY, headers)
            producer.flush()
            if outcome == "commit":
                producer.commit_transaction()
            else:
                producer.abort_transaction()
    finally:
        producer.close()
    letters = json.loads(run("list", "--json"))
    # Each transaction took two offsets: the record's and its marker's.
    assert [each["id"] for each in letters] == [
        f"{topic}/{offset}" for topic in (catalogue.FEEDBACK.name, TOPIC) for offset in (0, 4)
    ]
    assert {each["message"] for each in letters} == {"commit"}
    assert isinstance(run.outcome("show", f"{TOPIC}/2").exception, DeadLetterRefused)
    assert len(run("replay", "--all", "--yes").splitlines()) == 4
    assert run("list") == "no dead letters (4 settled: --all shows them)\n"
