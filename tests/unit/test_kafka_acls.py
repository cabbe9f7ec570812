"""Access rights and security settings, without a broker."""

from __future__ import annotations

import ast
import json
import shlex
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner
from faust.auth import SASLCredentials, SSLCredentials
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.catalogue import BATCHES_GROUP, CATALOGUE, all_topics
from infra.contracts.errors import ConfigurationError
from infra.kafka import acls
from infra.kafka.acls import COMPONENTS, Component, Deployment, Grant, grants
from infra.kafka.commands import topics
from infra.kafka.connection import client_options, sasl_password, security_options, tls_context
from infra.kafka.credentials import Credentials
from infra.settings import KafkaSettings, WorkerSettings, load_settings
from stream_workers.app import aiokafka_options, faust_app

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "hunter2"
SCRAM = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "worker",
    "sasl_password": PASSWORD,
}
deployments = st.builds(
    Deployment,
    topic_prefix=st.from_regex(r"([a-z0-9]{1,8}\.)?", fullmatch=True),
    worker_group=st.from_regex(r"[a-z-]{1,12}", fullmatch=True),
)
components = st.sampled_from(COMPONENTS)


def topic_rights(component: Component, operation: str) -> set[str]:
    return {
        one.name
        for one in grants(component, Deployment())
        if one.resource == "topic" and operation in one.operations
    }


@given(components, deployments)
def test_every_right_is_on_this_deployments_names_only(
    component: Component, deployment: Deployment
) -> None:
    known = {deployment.topic_prefix + spec.name for spec in all_topics()}
    known.add(f"{deployment.group}-{acls.CHANGELOG}")
    for one in grants(component, deployment):
        assert one.operations
        if one.resource == "topic":
            assert one.name in known
            assert not one.prefixed
        elif one.resource == "group":
            assert one.name.startswith(deployment.topic_prefix)
            assert one.name.removeprefix(deployment.topic_prefix) in (
                deployment.worker_group,
                BATCHES_GROUP,
            )
        else:
            assert one.prefixed
            assert one.name == f"{deployment.group}."


@given(components, deployments)
def test_a_prefix_changes_names_and_nothing_else(
    component: Component, deployment: Deployment
) -> None:
    plain = Deployment(worker_group=deployment.worker_group)
    prefixed = [
        (one.resource, one.name.removeprefix(deployment.topic_prefix), one.operations)
        for one in grants(component, deployment)
    ]
    assert sorted(prefixed) == sorted(
        (one.resource, one.name, one.operations) for one in grants(component, plain)
    )
    assert len(prefixed) == len({(resource, name) for resource, name, _ in prefixed})


def test_who_writes_what_is_decided_for_every_topic() -> None:
    """A topic that somebody adds and uses shows up here."""
    writers = {
        spec.name: {one for one in COMPONENTS if spec.name in topic_rights(one, "Write")}
        for spec in CATALOGUE
    }
    asking = {"gateway", "console", "publisher", "client"}
    mending = {"operator", "console"}
    gateways = {"gateway", "console"}
    assert writers == {
        "generation.requests": asking | mending,
        "generation.requests.batch": asking | mending,
        "generation.cancellations": asking | mending,
        "generation.chunks": {"worker"},
        "generation.results": {"worker"} | mending,
        "generation.shadow": {"worker"},
        "feedback.events": asking | mending | {"worker"},
        "feedback.forgotten": {"client", "worker"} | mending,
        "feedback.examples": {"worker"} | mending,
        "model.registry": {"trainer", "operator"},
        "model.rollouts": {"trainer", "rollouts", "console", "operator"},
        "model.decisions": {"rollouts", "operator"},
        "platform.config": mending,
        "platform.config.history": mending,
        "platform.keys": {"operator"},
        "platform.workers": {"worker"},
        "platform.gateways": gateways,
        "gateway.admissions": gateways,
        "gateway.files": gateways | {"operator"},
        "gateway.batches": gateways | {"operator"},
    }


def test_an_upstream_service_reads_nothing() -> None:
    assert {one.operations for one in grants("publisher", Deployment())} == {("Write",)}


def test_only_the_operator_makes_topics_and_the_worker_its_own() -> None:
    makers = {one: topic_rights(one, "Create") for one in COMPONENTS}
    assert makers.pop("operator") == {spec.name for spec in all_topics()}
    assert makers.pop("worker") == {f"feedloom-workers-{acls.CHANGELOG}"}
    assert not any(makers.values())


def test_the_documented_rights_are_the_generated_ones() -> None:
    page = (ROOT / "docs" / "kafka-security.md").read_text()
    for component in COMPONENTS:
        found = grants(component, Deployment())
        assert acls.as_text(component, f"User:{component}", found) in page


def invoke(*arguments: str) -> str:
    outcome = CliRunner().invoke(topics, ["acls", *arguments])
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_three_forms_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDLOOM_KAFKA__TOPIC_PREFIX", "eu.")
    monkeypatch.setenv("FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS", "kafka-1:9092")
    found = grants("worker", Deployment(topic_prefix="eu."))
    table = invoke("--component", "worker").splitlines()
    assert len(table) == 1 + len(found)
    assert table[0].endswith("(User:worker)")
    entries = json.loads(
        invoke("--component", "worker", "--principal", "User:CN=w 1", "--format", "json")
    )
    assert [Grant(**_grant(entry)) for entry in entries] == list(found)
    lines = invoke(
        "--component", "worker", "--principal", "User:CN=w 1", "--format", "commands"
    ).splitlines()
    assert len(lines) == len(found)
    for line, one in zip(lines, found, strict=True):
        words = shlex.split(line)
        assert words[:3] == ["kafka-acls.sh", "--bootstrap-server", "kafka-1:9092"]
        assert words[words.index("--allow-principal") + 1] == "User:CN=w 1"
        assert words[words.index(f"--{one.resource}") + 1] == one.name
        assert words.count("--operation") == len(one.operations)
        assert words[-1] == ("prefixed" if one.prefixed else "literal")


def _grant(entry: dict[str, object]) -> dict[str, object]:
    operations = entry["operations"]
    assert isinstance(operations, list)
    return {
        "resource": entry["resource"],
        "name": entry["name"],
        "operations": tuple(operations),
        "prefixed": entry["pattern"] == "prefixed",
    }


def test_everybody_is_printed_unless_some_are_chosen() -> None:
    heads = [line for line in invoke().splitlines() if line and not line.startswith(" ")]
    assert [line.split(":")[0] for line in heads] == list(COMPONENTS)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--component", "wroker"], "'wroker' is none of worker, trainer"),
        (["--principal", "User:x"], "exactly one --component"),
        (["--component", "worker", "--principal", "x"], "User:NAME"),
    ],
)
def test_a_mistake_at_the_command_line_is_named(arguments: list[str], complaint: str) -> None:
    outcome = CliRunner().invoke(topics, ["acls", *arguments], terminal_width=200)
    assert outcome.exit_code == 2
    assert complaint in " ".join(outcome.output.split())


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({**SCRAM, "sasl_mechanism": None}, "needs sasl_mechanism"),
        ({**SCRAM, "sasl_username": None}, "needs sasl_username"),
        ({**SCRAM, "sasl_password": None}, "needs sasl_password or sasl_password_file"),
        ({**SCRAM, "sasl_password_file": "here"}, "needs sasl_password or sasl_password_file"),
        (
            {**SCRAM, "sasl_password": None, "sasl_password_file": "gone"},
            "sasl_password_file: gone is not there",
        ),
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism is of no use with .* PLAINTEXT"),
        ({"security_protocol": "SSL", "sasl_username": "x"}, "sasl_username is of no use"),
        ({"security_protocol": "SSL", "ssl_cafile": "gone.pem"}, "ssl_cafile: gone.pem is not"),
        ({"security_protocol": "SSL", "ssl_certfile": "gone.pem"}, "ssl_certfile: gone.pem"),
        ({"security_protocol": "SSL", "ssl_keyfile": "k.pem"}, "ssl_keyfile needs ssl_certfile"),
        ({"ssl_cafile": "ca.pem"}, "ssl_cafile is of no use with .* PLAINTEXT"),
        ({**SCRAM, "ssl_certfile": "c.pem"}, "ssl_certfile is of no use with .* SASL_PLAINTEXT"),
        ({**SCRAM, "sasl_mechanism": "GSSAPI"}, "kafka.sasl_mechanism"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_line(
    chosen: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint) as raised:
        load_settings(kafka=chosen)
    assert "\n" not in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_password_is_in_no_representation() -> None:
    assert PASSWORD not in repr(load_settings(kafka={**SCRAM}))


def test_a_password_file_is_read_when_a_client_is_made(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("first\r\n")
    kafka = KafkaSettings.model_validate(
        {**SCRAM, "sasl_password": None, "sasl_password_file": path}
    )
    assert sasl_password(kafka) == "first"
    path.write_text("second")
    assert security_options(kafka)["sasl_plain_password"] == "second"
    path.write_text("\n")
    with pytest.raises(ConfigurationError, match="empty line"):
        security_options(kafka)
    path.unlink()
    with pytest.raises(ConfigurationError, match="sasl_password_file"):
        security_options(kafka)


def test_tls_is_at_least_1_2_and_checks_the_host_unless_told_not_to() -> None:
    context = tls_context(KafkaSettings(security_protocol="SSL"))
    assert context is not None
    assert (context.minimum_version, context.check_hostname) == (ssl.TLSVersion.TLSv1_2, True)
    unchecked = tls_context(KafkaSettings(security_protocol="SSL", ssl_check_hostname=False))
    assert unchecked is not None
    assert (unchecked.check_hostname, unchecked.verify_mode) == (False, ssl.CERT_REQUIRED)
    assert tls_context(KafkaSettings()) is None


def test_files_that_hold_no_certificate_are_named(tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    for name in ("ssl_cafile", "ssl_certfile"):
        kafka = KafkaSettings.model_validate({"security_protocol": "SSL", name: rubbish})
        with pytest.raises(ConfigurationError, match=f"kafka.{name}: .*rubbish.pem"):
            tls_context(kafka)


def test_a_user_of_the_embedded_broker_keeps_its_password(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    assert credentials.create("worker") == credentials.create("worker") != credentials.create("b")
    kafka = credentials.log_in(KafkaSettings(bootstrap_servers="x:1"), "worker")
    # As if it had been given so.
    assert KafkaSettings.model_validate(kafka.model_dump()) == kafka
    assert sasl_password(kafka) == credentials.create("worker")


def _faust_options(kafka: KafkaSettings, tmp_path: Path) -> object:
    async def stored(*_: object, **__: object) -> dict[object, object]:
        return {}

    app = faust_app(
        kafka, WorkerSettings(), partitions=1, replicas=1, datadir=tmp_path, stored=stored
    )
    return app.conf.broker_credentials


def test_the_same_settings_reach_every_kind_of_client(tmp_path: Path) -> None:
    kafka = KafkaSettings.model_validate({**SCRAM, "bootstrap_servers": "a:1,b:2"})
    expected = {
        "security_protocol": "SASL_PLAINTEXT",
        "ssl_context": None,
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "worker",
        "sasl_plain_password": PASSWORD,
    }
    assert expected.items() <= client_options(kafka).items()
    assert expected.items() <= aiokafka_options(kafka).items()
    credentials = _faust_options(kafka, tmp_path)
    assert isinstance(credentials, SASLCredentials)
    assert credentials.protocol.value == "SASL_PLAINTEXT"
    assert (credentials.username, credentials.password) == ("worker", PASSWORD)
    assert credentials.mechanism.value == "SCRAM-SHA-512"
    encrypted = KafkaSettings(bootstrap_servers="a:1", security_protocol="SSL")
    assert isinstance(client_options(encrypted)["ssl_context"], ssl.SSLContext)
    assert isinstance(aiokafka_options(encrypted)["ssl_context"], ssl.SSLContext)
    credentials = _faust_options(encrypted, tmp_path)
    assert isinstance(credentials, SSLCredentials)
    assert isinstance(credentials.context, ssl.SSLContext)


CLIENTS = {
    *("KafkaProducer", "KafkaConsumer", "KafkaAdminClient"),
    *("AIOKafkaProducer", "AIOKafkaConsumer", "AIOKafkaClient", "AIOKafkaAdminClient", "_App"),
}


def _made_clients() -> set[tuple[str, str, str]]:
    """File, client, and what its security comes from, of every call that makes a client."""
    found = set()
    for package in ("infra", "observability", "producers", "stream_workers", "trainer"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func).rpartition(".")[2]
                if name in CLIENTS:
                    spread = [ast.unparse(one.value) for one in node.keywords if one.arg is None]
                    named = [one.arg for one in node.keywords if one.arg == "broker_credentials"]
                    source = ", ".join([*spread, *map(str, named)])
                    found.add((str(path.relative_to(ROOT)), name, source))
    return found


def test_every_client_of_the_platform_takes_its_security_from_the_settings() -> None:
    """A client that is made anywhere else, or without them, must be looked at here."""
    assert _made_clients() == {
        ("infra/kafka/broker.py", "KafkaAdminClient", "options"),
        ("infra/kafka/bus.py", "KafkaConsumer", "self._options"),
        ("infra/kafka/commit_times.py", "KafkaConsumer", "client_options(self._settings)"),
        ("infra/kafka/connection.py", "KafkaAdminClient", "client_options(settings)"),
        ("infra/kafka/dead_letters.py", "KafkaConsumer", "client_options(settings)"),
        ("infra/kafka/offsets.py", "KafkaAdminClient", "client_options(self._settings)"),
        ("infra/kafka/publisher.py", "KafkaProducer", "client_options(settings)"),
        ("stream_workers/app.py", "_App", "broker_credentials"),
        ("stream_workers/transactions.py", "AIOKafkaProducer", "self._options"),
    }
