"""Logins, TLS and ACLs on a real broker that allows nothing by itself."""

from __future__ import annotations

import json
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import aiokafka
import pytest
from click.testing import CliRunner
from kafka.errors import TopicAuthorizationFailedError

from infra.contracts import catalogue, codec
from infra.contracts.bus import TopicPartition, read_to_end
from infra.contracts.catalogue import all_topics
from infra.contracts.dead_letters import TOPICS as SOURCES
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.kafka.access import OPERATIONS, apply_grants, secure, set_passwords
from infra.kafka.acls import COMPONENTS, Component, grants
from infra.kafka.bus import KafkaBus, resolve_kafka
from infra.kafka.commands import topics
from infra.kafka.connection import AccessRefused, LoginRefused, admin_client
from infra.kafka.credentials import ADMIN
from infra.kafka.dead_letters import DeadLetters
from infra.kafka.lag import GroupLag
from infra.kafka.topics import apply_catalogue, describe_topics, missing_topics
from infra.registry.client import publish_rollout, publish_version, read_registry
from infra.registry.config import ConfigWatcher, publish_config, read_config
from infra.rollouts.controller import Controller
from infra.settings import KafkaSettings, Settings
from producers.client import GenerationClient
from producers.feedback import FeedbackClient
from stream_workers.app import aiokafka_options
from stream_workers.transactions import (
    Committed,
    GroupMember,
    Outgoing,
    TransactionalProducer,
)
from tests.conftest import share_jars
from trainer.intake import FeedbackIntake

from .conftest import Workers
from .secured_broker import DEPLOYMENT, PREFIX, Secured, TlsBroker, make_certificates

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

NAMES = [spec.name for spec in all_topics()]
PROBE = b"probe"
SENSITIVE = {
    *("generation.requests", "generation.results", "generation.chunks", "feedback.examples"),
    *("model.registry", "model.rollouts", "platform.config", "platform.keys"),
    *("generation.results.dlq", "gateway.admissions"),
}


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Every component has its user and its rights; the operator made the topics."""
    home, files = tmp_path_factory.mktemp("secured"), tmp_path_factory.mktemp("certificates")
    make_certificates(files)
    share_jars(home)
    broker = TlsBroker(home, files)
    try:
        running = Secured(broker, broker.start(attached=True))
        secure(running.admin, broker.credentials, DEPLOYMENT)
        apply_catalogue(running.scram("operator"), partitions=2)
        yield running
    finally:
        broker.stop()


def allowed(component: Component, operation: str) -> set[str]:
    return {
        grant.name.removeprefix(PREFIX)
        for grant in grants(component, DEPLOYMENT)
        if grant.resource == "topic" and operation in grant.operations
    } & set(NAMES)


def publish(bus: KafkaBus, *names: str) -> None:
    """Raises the first error."""
    publisher = bus.publisher()
    try:
        for future in [publisher.publish(name, key=b"k", value=PROBE) for name in names]:
            future.result(60)
    finally:
        publisher.close()


def read(bus: KafkaBus, *names: str) -> None:
    """Until a record of each has come, or the first error."""
    reader, unseen = bus.reader(sorted(names)), set(names)
    try:
        while unseen:
            unseen -= {record.topic for record in reader.poll(0.2)}
    finally:
        reader.close()


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_broker_allows_on_every_topic_what_is_listed_and_no_more(
    secured: Secured, component: Component
) -> None:
    """By its own judgement of each operation."""
    listed = {
        one.name: set(one.operations)
        for one in grants(component, DEPLOYMENT)
        if one.resource == "topic"
    }
    with admin_client(secured.scram(component)) as admin:
        described = admin.describe_topics([PREFIX + name for name in NAMES])
    for topic in described:
        wanted = {OPERATIONS[one].name for one in listed.get(topic["name"], ())}
        if not wanted:
            assert topic["error_code"] == TopicAuthorizationFailedError.errno
            continue
        # Whoever may read or write a topic may know of it.
        assert set(topic["authorized_operations"]) == wanted | {"DESCRIBE"}
    assert len(described) == len(NAMES)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_writes_its_topics_and_no_others(
    secured: Secured, component: Component
) -> None:
    bus, writable = KafkaBus(secured.scram(component)), allowed(component, "Write")
    publish(bus, *sorted(writable))
    for name in sorted(SENSITIVE - writable):
        with pytest.raises(AccessRefused) as refused:
            publish(bus, name)
        assert f"User:{component} may not write topic {PREFIX}{name} " in str(refused.value)
        assert "feedloom topics acls" in str(refused.value)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_reads_its_topics_and_no_others(secured: Secured, component: Component) -> None:
    publish(KafkaBus(secured.admin), *NAMES)
    bus, readable = KafkaBus(secured.scram(component)), allowed(component, "Read")
    if readable:
        read(bus, *readable)
    for name in sorted(SENSITIVE - readable):
        with pytest.raises(AccessRefused, match=f"User:{component} may not read .*{name}"):
            read(bus, name)


def test_a_refused_record_ends_a_publisher_and_is_named(secured: Secured) -> None:
    publisher = KafkaBus(secured.scram("worker")).publisher()
    refused = publisher.publish("generation.requests", key=b"k", value=PROBE)
    with pytest.raises(AccessRefused, match=r"write topic sec\.generation\.requests "):
        refused.result(60)
    after = publisher.publish("platform.workers", key=b"k", value=PROBE)
    with pytest.raises(AccessRefused, match=r"write topic sec\.generation\.requests "):
        after.result(60)
    publisher.close()


def test_what_must_not_be_is_not(secured: Secured) -> None:
    """In so many words, whatever the table says."""
    assert {one for one in COMPONENTS if "platform.keys" in allowed(one, "Write")} == {"operator"}
    assert not allowed("publisher", "Read")
    for component, name in (
        ("worker", "model.registry"),
        ("worker", "model.rollouts"),
        ("trainer", "platform.config"),
        ("trainer", "generation.results"),
        ("gateway", "generation.results"),
        ("gateway", "model.rollouts"),
        ("rollouts", "model.registry"),
    ):
        assert name not in allowed(component, "Write")


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_name_or_password_is_refused_by_one_line(secured: Secured, mechanism: str) -> None:
    right = secured.scram("client", mechanism)
    assert KafkaBus(right).end_offsets("generation.results")
    wrong = {"sasl_password_file": None, "sasl_password": "guessed"}
    for update in (wrong, {"sasl_username": "nobody"}):
        settings = right.model_copy(update=update)
        bus = KafkaBus(settings)
        for connect in (
            bus.publisher,
            lambda bus=bus: bus.reader(["generation.results"]),
            lambda settings=settings: missing_topics(settings),
        ):
            with pytest.raises(LoginRefused, match=f"User:{settings.sasl_username} in with SCRAM"):
                connect()


def test_a_group_is_its_components_own(secured: Secured) -> None:
    group = DEPLOYMENT.worker_group
    reader = KafkaBus(secured.scram("worker")).reader(["generation.requests"], group=group)
    while not reader.poll(0.2):
        pass
    reader.commit({TopicPartition("generation.requests", 0): 1})
    reader.close()
    for component in ("gateway", "operator"):
        lag = GroupLag(secured.scram(component), group="workers", topic="generation.requests")
        assert lag.measure() > 0
        lag.close()
    lag = GroupLag(secured.scram("client"), group="workers", topic="generation.requests")
    with pytest.raises(AccessRefused, match=r"describe group sec\.workers"):
        lag.measure()
    lag.close()
    stranger = KafkaBus(secured.scram("client")).reader(["generation.results"], group=group)
    with pytest.raises(AccessRefused, match=r"results as group sec\.workers"):
        stranger.poll(20)
    stranger.close()


def test_the_cluster_is_the_operators_and_the_super_users(secured: Secured) -> None:
    operator = secured.scram("operator")
    assert "to 3 partitions" in str(apply_catalogue(operator, partitions=3))
    assert not apply_catalogue(operator, partitions=3)
    assert describe_topics(operator).keys() == set(NAMES)
    for component in ("worker", "trainer", "gateway", "console"):
        with pytest.raises(AccessRefused, match=f"User:{component} may not create and configure"):
            apply_catalogue(secured.scram(component), partitions=3)
    # A topic that may not be seen does not count as missing.
    assert missing_topics(secured.scram("publisher")) == []
    for component in COMPONENTS:
        mine = secured.scram(component)
        with pytest.raises(AccessRefused, match="alter access rights"):
            apply_grants(mine, f"User:{component}", grants("operator", DEPLOYMENT))
        with pytest.raises(ConfigurationError, match=f"User:{component} could not set passwords"):
            set_passwords(mine, {ADMIN: "taken over"})


def test_rights_are_only_added_and_once(secured: Secured) -> None:
    who, found = "User:upstream", grants("publisher", DEPLOYMENT)
    changes = apply_grants(secured.admin, who, found)
    assert len(changes) == len(found)
    assert changes[0] == f"{who}: Write on topic {PREFIX}feedback.events"
    assert apply_grants(secured.admin, who, found) == []


@pytest.mark.parametrize("way", ["SCRAM-SHA-256", "SCRAM-SHA-512", "PLAIN over TLS", "mTLS"])
async def test_the_workers_clients_get_in_every_way(secured: Secured, way: str) -> None:
    settings = _worker(secured, way)
    group, partition = DEPLOYMENT.group, aiokafka.TopicPartition(f"{PREFIX}generation.requests", 0)
    consumer = aiokafka.AIOKafkaConsumer(
        f"{PREFIX}generation.requests", group_id=group, **aiokafka_options(settings)
    )
    await consumer.start()
    producer = TransactionalProducer(
        transactional_id=f"{group}.w1", timeout_s=10, client_options=aiokafka_options(settings)
    )
    try:
        await producer.start()
        coordinator = consumer._coordinator
        member = GroupMember(group, coordinator.generation, coordinator.member_id)
        await producer.commit(
            [Outgoing(f"{PREFIX}generation.results", b"by", way.encode())],
            {partition: Committed(0, way)},
            member,
        )
        stored = await producer.committed(group, [partition], timeout_s=20)
    finally:
        await producer.stop()
        await consumer.stop()
    assert stored == {partition: Committed(0, way)}
    bus = KafkaBus(settings)
    assert way.encode() in {record.value for record in read_to_end(bus, "generation.results")}
    publisher = bus.publisher()
    publisher.publish("platform.workers", key=b"w", value=PROBE).result(30)
    publisher.close()
    with admin_client(settings) as admin:
        assert admin.describe_cluster()["brokers"]


def _worker(secured: Secured, way: str) -> KafkaSettings:
    if way == "mTLS":
        return secured.mutual()
    return secured.plain("worker") if "TLS" in way else secured.scram("worker", way)


@pytest.mark.parametrize(
    ("component", "transactional_id"), [("trainer", "sec.workers.w1"), ("worker", "other.w1")]
)
async def test_a_transactional_id_is_the_workers_own(
    secured: Secured, component: Component, transactional_id: str
) -> None:
    producer = TransactionalProducer(
        transactional_id=transactional_id,
        timeout_s=10,
        client_options=aiokafka_options(secured.scram(component)),
    )
    with pytest.raises(ConfigurationError, match=f"transactional id {transactional_id}"):
        await producer.start()
    await producer.stop()


def test_tls_is_checked_on_both_sides(secured: Secured) -> None:
    files = secured.broker.files
    for wrong, complaint in (
        (secured.plain("client", ssl_cafile=files / "other-ca.pem"), "verify failed"),
        (secured.mutual(ssl_cafile=files / "other-ca.pem"), "verify failed"),
        (_as_localhost(secured.plain("client")), "Hostname mismatch"),
        (
            secured.mutual(
                ssl_certfile=files / "stranger.pem", ssl_keyfile=None, ssl_key_password=None
            ),
            "alert",
        ),
        (secured.mutual(ssl_certfile=None, ssl_keyfile=None, ssl_key_password=None), "alert"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            missing_topics(wrong)
    unchecked = _as_localhost(secured.plain("client", ssl_check_hostname=False))
    assert missing_topics(unchecked) == []
    with pytest.raises(ConfigurationError, match="cannot be used together"):
        missing_topics(secured.mutual(ssl_key_password=None))


def _as_localhost(settings: KafkaSettings) -> KafkaSettings:
    servers = str(settings.bootstrap_servers).replace("127.0.0.1", "localhost")
    return settings.model_copy(update={"bootstrap_servers": servers})


def test_passwords_are_in_files_of_their_owner_and_in_no_log(secured: Secured) -> None:
    root, credentials = secured.broker.node(1).folder, secured.broker.credentials
    assert stat.S_IMODE(credentials.folder.stat().st_mode) == 0o700
    private = [credentials.path(one) for one in (ADMIN, *COMPONENTS)]
    private += [root / "server.properties"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE((root / "data").stat().st_mode) == 0o700
    logs = "".join(path.read_text() for path in (root / "logs").iterdir())
    assert "StandardAuthorizer" in logs
    for user in (ADMIN, *COMPONENTS):
        assert credentials.create(user) not in logs


def test_a_home_whose_broker_is_secured_stays_so(secured: Secured) -> None:
    home = secured.broker.root.parent
    kafka = resolve_kafka(Settings(home=home))
    assert (kafka.sasl_username, kafka.security_protocol) == ("operator", "SASL_PLAINTEXT")
    chosen = resolve_kafka(Settings(home=home, kafka=KafkaSettings(local_user="trainer")))
    assert chosen.sasl_username == "trainer"
    with pytest.raises(ConfigurationError, match=r"no user 'root'.* admin, client, console"):
        resolve_kafka(Settings(home=home, kafka=KafkaSettings(local_user="root")))


def test_the_command_line_applies_what_it_prints(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDLOOM_HOME", str(secured.broker.root.parent))
    monkeypatch.setenv("FEEDLOOM_KAFKA__LOCAL_USER", ADMIN)
    monkeypatch.setenv("FEEDLOOM_KAFKA__TOPIC_PREFIX", "cli.")
    one = ["acls", "--component", "trainer", "--principal", "User:learner"]
    printed = json.loads(CliRunner().invoke(topics, [*one, "--format", "json"]).output)
    applied = CliRunner().invoke(topics, [*one, "--apply"])
    assert applied.exit_code == 0, applied.output
    assert len(applied.output.splitlines()) == len(printed)
    assert {entry["principal"] for entry in printed} == {"User:learner"}
    assert "cli.model.registry" in applied.output
    assert "already" in CliRunner().invoke(topics, [*one, "--apply"]).output


def test_trainer_controller_and_operators_work_within_their_rights(secured: Secured) -> None:
    operator = KafkaBus(secured.scram("operator"))
    watcher, publisher = ConfigWatcher(operator), operator.publisher()
    publish_config(publisher, watcher, "worker.max_waiting", "7", now_ms=1)
    watcher.close()
    publisher.close()
    for component in ("operator", "console"):
        assert DeadLetters(KafkaBus(secured.scram(component))).letters(SOURCES) is not None
    trainer = KafkaBus(secured.scram("trainer"))
    assert read_config(trainer).worker.max_waiting == 7
    version = ModelVersionPublished(
        model="rights", version="1", kind="full", artifact_uri="x", manifest=(), created_at_ms=1
    )
    publisher = trainer.publisher()
    publish_version(publisher, version)
    publish_rollout(
        publisher, RolloutChanged(model="rights", revision=1, stable="1", changed_at_ms=1)
    )
    publisher.close()
    intake = FeedbackIntake(trainer, model="rights")
    intake.catch_up()
    intake.close()
    rollouts = KafkaBus(secured.scram("rollouts"))
    Controller(rollouts, stop=threading.Event()).run(once=True)
    assert read_registry(rollouts).rollout("rights") is not None


@pytest.mark.parametrize("way", ["SCRAM-SHA-512", "PLAIN over TLS", "mTLS"])
def test_a_real_worker_answers_with_no_more_than_its_rights(
    secured: Secured, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Request, chunks, result, feedback and example, each by the user whose business it is."""
    settings = _worker(secured, way)
    for name in KafkaSettings.model_fields:
        value = getattr(settings, name)
        if value is not None and name not in ("bootstrap_servers", "topic_prefix"):
            monkeypatch.setenv(f"FEEDLOOM_KAFKA__{name.upper()}", str(value))
    operator = KafkaBus(secured.scram("operator"))
    workers = Workers(operator, settings, tmp_path)
    request_id = f"by {way}"
    try:
        workers.start(group="workers", max_queued=50)
        with GenerationClient(KafkaBus(secured.scram("client")), source="test") as client:
            handle = client.submit("the quick brown fox", request_id=request_id)
            streamed = "".join(chunk.text for chunk in handle.stream(60))
            result = handle.result(60)
        assert (result.error, result.text) == (None, streamed)
        with FeedbackClient(KafkaBus(secured.scram("publisher")), source="test") as feedback:
            feedback.edit(request_id, "a better text")

        def example() -> FeedbackExample | None:
            for record in read_to_end(trainer, catalogue.EXAMPLES.name):
                if record.key_text == request_id:
                    return codec.decode(record.value or b"", FeedbackExample)
            return None

        trainer = KafkaBus(secured.scram("trainer"))
        workers.wait("the example", lambda: example() is not None)
        found = example()
        assert found is not None
        assert (found.edited_text, found.output) == ("a better text", result.text)
    finally:
        workers.close()
    log = workers.children[0].log.read_text()
    assert "Authorization" not in log
    assert str(settings.sasl_password) not in log
