"""Every object of every profile is what its maker's schema says, to the last field."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from infra.planning.commands import plan
from tests.deploy import ChartRefused, Object, faults, render
from tests.helm_profiles import PROFILES, rendered


@pytest.mark.parametrize("profile", PROFILES)
def test_every_object_is_what_its_schema_says(profile: str) -> None:
    found = [fault for one in rendered(profile) for fault in faults(one)]
    assert found == []


def each_kind() -> dict[str, Object]:
    return {one["kind"]: one for profile in PROFILES for one in rendered(profile)}


def test_the_profiles_have_every_kind_of_object_that_the_chart_can_make() -> None:
    assert set(each_kind()) == {
        "AuthorizationPolicy",
        "CronJob",
        "Deployment",
        "ExternalSecret",
        "Gateway",
        "HTTPRoute",
        "HorizontalPodAutoscaler",
        "Ingress",
        "Job",
        "Kafka",
        "KafkaNodePool",
        "KafkaTopic",
        "KafkaUser",
        "NetworkPolicy",
        "PeerAuthentication",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "PrometheusRule",
        "RequestAuthentication",
        "ScaledObject",
        "Secret",
        "Service",
        "ServiceAccount",
        "TrainJob",
        "TrainingRuntime",
        "TriggerAuthentication",
    }


def test_a_field_that_nobody_knows_is_a_fault_in_every_kind_of_object() -> None:
    for kind, one in each_kind().items():
        changed = copy.deepcopy(one)
        target = changed.get("spec", changed)
        target["surprise"] = 1
        assert any("surprise" in fault for fault in faults(changed)), kind


def nested(one: Object, *path: str | int) -> Any:
    found: Any = one
    for step in path:
        found = found[step]
    return found


@pytest.mark.parametrize(
    ("kind", "path", "name", "value"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0), "livenesProbe", {}),
        ("TrainingRuntime", ("spec", "template", "spec", "replicatedJobs", 0), "name", 3),
        ("KafkaUser", ("spec", "authorization", "acls", 0, "resource"), "type", "topics"),
        ("KafkaUser", ("spec", "authorization", "acls", 0), "operations", ["Peek"]),
        ("KafkaTopic", ("spec",), "partitions", "twelve"),
        ("Kafka", ("spec", "kafka", "listeners", 0), "port", "9093"),
        ("ScaledObject", ("spec", "fallback"), "behavior", "guess"),
        ("HTTPRoute", ("spec", "rules", 0, "backendRefs", 0), "weight", -1),
        ("AuthorizationPolicy", ("spec",), "action", "MAYBE"),
        ("PeerAuthentication", ("spec", "mtls"), "mode", "LOOSE"),
        ("ExternalSecret", ("spec", "secretStoreRef"), "kind", 1),
        ("NetworkPolicy", ("spec",), "policyTypes", "Ingress"),
    ],
)
def test_a_wrong_value_deep_within_an_object_is_a_fault(
    kind: str, path: tuple[str | int, ...], name: str, value: object
) -> None:
    of_kind = [one for profile in PROFILES for one in rendered(profile) if one["kind"] == kind]
    for one in of_kind:
        changed = copy.deepcopy(one)
        try:
            target = nested(changed, *path)
        except KeyError:
            continue
        target[name] = value
        assert faults(changed), f"{kind} {path} {name}={value!r}"
        return
    raise AssertionError(f"no {kind} has {path}")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": {"pools": {"main": {"replicas": 13}}}}, "13 could run at once"),
        (
            {
                "workers": {
                    "pools": {
                        "main": {"replicas": 8},
                        "batch": {"autoscaling": {"enabled": True, "maxReplicas": 5}},
                    }
                }
            },
            "13 could run at once",
        ),
        ({"gateway": {"replicas": 12}}, "13 replicas, console and canary included"),
        ({"kafka": {"replicationFactor": 4}}, "needs as many nodes"),
        ({"kafka": {"strimzi": {"minInSyncReplicas": 4}}}, "nothing could be written"),
        ({"kafka": {"mode": "external"}}, "where is Kafka"),
        ({"wokers": {}}, "wokers"),
        ({"workers": {"defaults": {"settings": {"max_inflight_token": 1}}}}, "max_inflight_token"),
        ({"workers": {"defaults": {"settings": {"worker_id": "me"}}}}, "worker_id"),
        ({"gateway": {"settings": {"host": "127.0.0.1"}}}, "host"),
        ({"workers": {"defaults": {"resources": {"limits": {"cpu": None}}}}}, "cpu"),
        ({"edge": {"httpRoute": {"enabled": True}}}, "behind which Gateway"),
        ({"secrets": {"signingKey": {"remote": {"key": "a"}}}}, "from which store"),
        ({"mesh": {"enabled": True, "requestAuthentication": {"enabled": True}}}, "whose tokens"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_installed(
    values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ChartRefused, match=said):
        render(None, **values)


def test_what_the_planner_writes_is_taken() -> None:
    load = ["--rps", "100", "--prompt-tokens", "512", "--output-tokens", "256"]
    written = CliRunner().invoke(
        plan, [*load, "--gpu", "h200", "--model", "llama-3.1-8b", "--helm"]
    )
    assert written.exit_code == 0, written.output
    objects = render(None, **yaml.safe_load(written.stdout))
    assert [fault for one in objects for fault in faults(one)] == []
