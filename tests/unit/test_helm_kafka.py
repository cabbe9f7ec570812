"""Topics, users and rights of the chart are those of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.contracts.catalogue import all_topics
from infra.kafka import strimzi
from infra.kafka.acls import COMPONENTS, Deployment, grants
from tests.deploy import (
    Object,
    component_of,
    containers,
    named,
    of_kind,
    pods,
    render,
    values_of,
    variables,
)
from tests.helm_profiles import PROFILES, rendered

STRIMZI = [profile for profile in PROFILES if profile != "external"]
KINDS = {"topic": "topic", "group": "group", "transactional-id": "transactionalId"}


def test_the_file_is_what_the_code_says() -> None:
    assert strimzi.FILE.read_text() == strimzi.text(), "python -m infra.kafka.strimzi --write"


def test_a_stale_file_is_named_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(strimzi, "FILE", tmp_path / "kafka.json")
    run = CliRunner()
    stale = run.invoke(strimzi.main)
    assert stale.exit_code == 1
    assert "stale" in stale.output
    assert run.invoke(strimzi.main, ["--write"]).exit_code == 0
    assert run.invoke(strimzi.main).exit_code == 0
    assert json.loads((tmp_path / "kafka.json").read_text()) == strimzi.document()


def deployment_of(objects: tuple[Object, ...]) -> Deployment:
    (container,) = containers(named(objects, "Deployment", "gateway")["spec"]["template"])
    given = variables(container)
    return Deployment(
        topic_prefix=given.get("FEEDLOOM_KAFKA__TOPIC_PREFIX", ""),
        worker_group=given["FEEDLOOM_WORKER__GROUP"],
    )


@pytest.mark.parametrize("profile", STRIMZI)
def test_every_topic_of_the_catalogue_is_there_and_none_besides(profile: str) -> None:
    objects = rendered(profile)
    prefix = deployment_of(objects).topic_prefix
    (container,) = containers(named(objects, "Deployment", "gateway")["spec"]["template"])
    given = variables(container)
    found = {one["spec"]["topicName"]: one["spec"] for one in of_kind(objects, "KafkaTopic")}
    assert found == {
        prefix + spec.name: {
            "topicName": prefix + spec.name,
            # One partition is an order: of such topics nobody has more.
            "partitions": 1 if spec.partitions == 1 else int(given["FEEDLOOM_KAFKA__PARTITIONS"]),
            "replicas": int(given["FEEDLOOM_KAFKA__REPLICATION_FACTOR"]),
            "config": spec.config,
        }
        for spec in all_topics()
    }


@pytest.mark.parametrize("profile", STRIMZI)
def test_every_user_has_the_rights_of_its_component_and_no_more(profile: str) -> None:
    objects = rendered(profile)
    deployment = deployment_of(objects)
    users = {one["metadata"]["name"]: one["spec"] for one in of_kind(objects, "KafkaUser")}
    for component in COMPONENTS:
        spec = users.pop(f"feedloom-{component}", None)
        if spec is None:
            assert component in ("publisher", "client")
            continue
        assert spec["authentication"] == {"type": "scram-sha-512"}
        given = spec["authorization"]["acls"]
        wanted = [
            {
                "resource": {
                    "type": KINDS[one.resource],
                    "name": one.name,
                    "patternType": "prefix" if one.prefixed else "literal",
                },
                "operations": list(one.operations),
            }
            for one in grants(component, deployment)
        ]
        assert sorted(given, key=json.dumps) == sorted(wanted, key=json.dumps)
    # KEDA counts, and can neither read nor write.
    (counting,) = users.values()
    operations = {
        operation for one in counting["authorization"]["acls"] for operation in one["operations"]
    }
    assert operations == {"Describe"}


@pytest.mark.parametrize("profile", STRIMZI)
def test_who_is_said_to_be_whom_is_a_user_of_its_own_component(profile: str) -> None:
    objects = rendered(profile)
    users = {one["metadata"]["name"] for one in of_kind(objects, "KafkaUser")}
    seen = set()
    for workload, template in pods(objects):
        component = component_of(workload)
        if component == "pretraining":
            continue
        for container in containers(template):
            user = variables(container)["FEEDLOOM_KAFKA__SASL_USERNAME"]
            assert user == f"feedloom-{component}"
            secrets = [
                one["secret"]["secretName"]
                for one in template["spec"]["volumes"]
                if one["name"] == "kafka"
            ]
            assert secrets == [user]
            seen.add(user)
    assert seen <= users


@pytest.mark.parametrize("profile", STRIMZI)
def test_brokers_let_nobody_in_without_a_name_or_in_the_clear(profile: str) -> None:
    objects = rendered(profile)
    (kafka,) = of_kind(objects, "Kafka")
    spec = kafka["spec"]["kafka"]
    assert [(one["tls"], one["authentication"]["type"]) for one in spec["listeners"]] == [
        (True, "scram-sha-512")
    ]
    assert spec["authorization"] == {"type": "simple"}
    assert spec["config"]["auto.create.topics.enable"] is False
    (pool,) = of_kind(objects, "KafkaNodePool")
    assert pool["metadata"]["labels"]["strimzi.io/cluster"] == kafka["metadata"]["name"]
    assert pool["spec"]["replicas"] >= spec["config"]["default.replication.factor"]
    for kind in ("KafkaTopic", "KafkaUser"):
        for one in of_kind(objects, kind):
            assert one["metadata"]["labels"]["strimzi.io/cluster"] == kafka["metadata"]["name"]
    (listener,) = spec["listeners"]
    where = f"{kafka['metadata']['name']}-kafka-bootstrap.feedloom.svc:{listener['port']}"
    (container,) = containers(named(objects, "Deployment", "gateway")["spec"]["template"])
    assert variables(container)["FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"] == where


def test_names_of_topics_need_not_be_names_of_objects() -> None:
    objects = render(None, kafka={"topicPrefix": "Team_A."})
    for one in of_kind(objects, "KafkaTopic"):
        assert one["spec"]["topicName"].startswith("Team_A.")
        name = one["metadata"]["name"]
        assert name == name.lower()
        assert "_" not in name


def test_on_a_kafka_of_others_the_chart_makes_no_broker_and_applies_the_topics() -> None:
    objects = rendered("external")
    assert not of_kind(objects, "Kafka", "KafkaNodePool", "KafkaTopic", "KafkaUser")
    # One a release: a job that is there cannot be changed.
    job = named(objects, "Job", "topics-1")
    (container,) = containers(job["spec"]["template"])
    assert container["args"] == ["topics", "apply"]
    # Its password may be an object of the same release, which a hook would come before.
    assert "helm.sh/hook" not in job["metadata"].get("annotations", {})
    worker = named(objects, "Deployment", "worker-main")["spec"]["template"]
    given = variables(containers(worker)[0])
    assert given["FEEDLOOM_KAFKA__SASL_USERNAME"] == "team-a-worker"
    trainer = of_kind(objects, "Job")
    secrets = {
        component_of(one): volume["secret"]["secretName"]
        for one in [*trainer, named(objects, "Deployment", "worker-main")]
        for volume in one["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "kafka"
    }
    assert secrets == {
        "operator": "feedloom-kafka-operator",
        "trainer": "trainer-kafka",
        "worker": "feedloom-kafka-worker",
    }


def test_the_profiles_say_how_many_copies_can_be_lost() -> None:
    for profile in ("laptop", "gpu", "production"):
        kafka = values_of(profile)["kafka"]
        assert kafka["strimzi"]["minInSyncReplicas"] <= kafka["replicationFactor"]
    assert values_of("production")["kafka"]["strimzi"]["minInSyncReplicas"] == 2
