"""When workers become more and fewer: what is asked of Prometheus, and how fast they may go."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from infra.contracts.catalogue import REQUESTS, REQUESTS_BATCH, TopicSpec
from infra.kafka.acls import Deployment
from observability.instruments import CATALOGUE
from observability.prometheus_names import label_name, series_names
from tests.deploy import Object, component_of, containers, named, of_kind, pods, render, variables
from tests.helm_profiles import PROFILES, rendered

SCALED = ("production", "ambient", "external")
CLASSES: dict[str, TopicSpec] = {"interactive": REQUESTS, "batch": REQUESTS_BATCH}


def partitions(objects: tuple[Object, ...]) -> int:
    (container,) = containers(named(objects, "Deployment", "gateway")["spec"]["template"])
    return int(variables(container)["FEEDLOOM_KAFKA__PARTITIONS"])


@pytest.mark.parametrize("profile", PROFILES)
def test_no_more_workers_or_gateways_than_partitions(profile: str) -> None:
    objects = rendered(profile)
    limits = {
        one["spec"]["scaleTargetRef"]["name"]: one["spec"].get("maxReplicaCount")
        or one["spec"]["maxReplicas"]
        for one in of_kind(objects, "ScaledObject", "HorizontalPodAutoscaler")
    }
    most = {"worker": 0, "gateway": 0}
    for one in of_kind(objects, "Deployment"):
        name = one["metadata"]["name"]
        # One that is scaled has no number of its own, which an upgrade would put back.
        assert ("replicas" in one["spec"]) != (name in limits)
        kind = "gateway" if component_of(one) == "console" else component_of(one)
        if kind in most:
            most[kind] += limits.get(name, one["spec"].get("replicas", 0))
    assert 0 < most["worker"] <= partitions(objects)
    assert 0 < most["gateway"] <= partitions(objects)


def scaled(profile: str) -> list[tuple[Object, Object]]:
    objects = rendered(profile)
    found = [
        (one, named(objects, "Deployment", one["metadata"]["name"].removeprefix("feedloom-")))
        for one in of_kind(objects, "ScaledObject")
    ]
    assert found
    return found


def trigger(one: Object, kind: str) -> list[dict[str, Any]]:
    return [each for each in one["spec"]["triggers"] if each["type"] == kind]


@pytest.mark.parametrize("profile", SCALED)
def test_the_next_worker_goes_only_after_the_last_has_drained(profile: str) -> None:
    for one, target in scaled(profile):
        grace = target["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        down = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        assert one["spec"]["cooldownPeriod"] >= grace
        assert down["stabilizationWindowSeconds"] >= grace
        assert [(each["type"], each["value"]) for each in down["policies"]] == [("Pods", 1)]
        # 1,800 s is the most that Kubernetes takes.
        assert all(grace < each["periodSeconds"] <= 1800 for each in down["policies"])


def test_a_long_drain_makes_everything_slower() -> None:
    pool = {"settings": {"drain_timeout_s": 900}, "autoscaling": {"enabled": True}}
    objects = render(None, workers={"pools": {"main": pool}})
    (one,) = of_kind(objects, "ScaledObject")
    down = one["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert one["spec"]["cooldownPeriod"] >= 945
    assert down["stabilizationWindowSeconds"] >= 945
    assert down["policies"][0]["periodSeconds"] >= 945


@pytest.mark.parametrize("profile", SCALED)
def test_kafka_itself_is_asked_what_waits_for_this_group(profile: str) -> None:
    objects = rendered(profile)
    for one, target in scaled(profile):
        given = variables(containers(target["spec"]["template"])[0])
        prefix = given.get("FEEDLOOM_KAFKA__TOPIC_PREFIX", "")
        group = Deployment(topic_prefix=prefix, worker_group=given["FEEDLOOM_WORKER__GROUP"]).group
        asked = trigger(one, "kafka")
        assert asked
        for each in asked:
            metadata = each["metadata"]
            assert metadata["consumerGroup"] == group
            assert metadata["topic"] in {prefix + spec.name for spec in CLASSES.values()}
            servers = given["FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"]
            assert metadata["bootstrapServers"] == servers
            # No more workers than partitions.
            assert metadata["allowIdleConsumers"] == "false"
            name = each["authenticationRef"]["name"]
            assert named(objects, "TriggerAuthentication", name.removeprefix("feedloom-"))


def test_keda_says_who_it_is_and_reads_no_password_but_its_own() -> None:
    for profile, password in (
        ("production", "feedloom-autoscaler"),
        ("external", "feedloom-kafka-autoscaler"),
    ):
        objects = rendered(profile)
        (who,) = of_kind(objects, "TriggerAuthentication")
        found = {
            one["parameter"]: (one["name"], one["key"]) for one in who["spec"]["secretTargetRef"]
        }
        assert set(found) == {"sasl", "tls", "username", "password", "ca"}
        assert found["password"] == (password, "password")
        (secret,) = of_kind(objects, "Secret")
        assert secret["stringData"] == {
            "sasl": "scram_sha512",
            "tls": "enable",
            "username": "feedloom-autoscaler",
        }


def selectors(query: str) -> list[tuple[str, set[str]]]:
    """Each series that a query names, with the labels it looks at."""
    found: list[tuple[str, set[str]]] = []

    def look(expression: Any) -> None:
        match expression:
            case promql_parser.VectorSelector():
                labels = {one.name for one in expression.matchers.matchers}
                found.append((expression.name, labels))
            case promql_parser.MatrixSelector():
                look(expression.vector_selector)
            case (
                promql_parser.ParenExpr()
                | promql_parser.UnaryExpr()
                | promql_parser.AggregateExpr()
            ):
                look(expression.expr)
            case promql_parser.Call():
                for argument in expression.args:
                    look(argument)
            case promql_parser.BinaryExpr():
                look(expression.lhs)
                look(expression.rhs)
            case promql_parser.NumberLiteral():
                pass
            case _:
                raise AssertionError(expression)

    look(promql_parser.parse(query))
    return found


@pytest.mark.parametrize("profile", SCALED)
def test_prometheus_is_asked_for_series_that_workers_record(profile: str) -> None:
    known = {name: one for one in CATALOGUE.values() for name in series_names(one)}
    for one, _target in scaled(profile):
        (asked,) = trigger(one, "prometheus")
        series = selectors(asked["metadata"]["query"])
        assert "feedloom_worker_lag" in {name for name, _ in series}
        assert "gen_ai_client_token_usage_sum" in {name for name, _ in series}
        for name, labels in series:
            attributes = {label_name(each) for each in known[name].attributes}
            assert labels - {"k8s_namespace_name"} <= attributes


AT = "10m"


def series(
    *,
    lag: dict[str, int],
    begun: dict[str, int],
    running: int | None,
    answered: bool,
) -> list[dict[str, str]]:
    """What two workers report for ten minutes; requests come to 100 and 300 tokens."""
    made: dict[str, str] = {}
    for name, count in lag.items():
        for partition in (0, 1):
            label = (
                f'messaging_destination_name="{CLASSES[name].name}",'
                f'messaging_destination_partition_id="{partition}"'
            )
            # The second partition has just changed hands: both tell of it.
            for worker in ("a",) if partition == 0 else ("a", "b"):
                made[f'feedloom_worker_lag{{instance="{worker}",{label}}}'] = f"{count // 2}x40"
    for name, count in begun.items():
        label = f'feedloom_request_class="{name}"'
        made[f"feedloom_worker_requests_in_flight{{{label}}}"] = f"{count + 7}x40"
        made[f"feedloom_worker_requests_queued{{{label}}}"] = "7x40"
    if running is not None:
        made["feedloom_worker_tokens_in_flight"] = f"{running}x40"
    if answered:
        for kind, tokens in (("input", 100), ("output", 300)):
            label = f'{{gen_ai_token_type="{kind}"}}'
            made[f"gen_ai_client_token_usage_sum{label}"] = f"0+{tokens * 2}x40"
            made[f"gen_ai_client_token_usage_count{label}"] = "0+2x40"
    return [{"series": name, "values": values} for name, values in made.items()]


NOTHING: dict[str, Any] = {"lag": {}, "begun": {}, "running": None, "answered": False}
BUSY: dict[str, Any] = {
    "lag": {"interactive": 50, "batch": 1000},
    "begun": {"interactive": 30, "batch": 10},
    "running": 16_000,
    "answered": True,
}


@pytest.mark.parametrize(
    ("scale_on", "least", "given", "expected"),
    [
        # Three quarters of what runs, and 50 - 30 that wait, of 400 tokens each.
        ("interactive", 1, BUSY, 12_000 + 20 * 400),
        # All that runs, and 1050 - 40 that wait.
        ("all", 1, BUSY, 16_000 + 1010 * 400),
        # Every record that is not committed; what runs is the slack of others.
        ("batch", 0, BUSY, 1000 * 400),
        # Nobody was answered lately: a guess.
        ("interactive", 1, {**BUSY, "answered": False}, 12_000 + 20 * 512),
        # Only batches run, and fill what is free: no reason for more.
        (
            "interactive",
            1,
            {**BUSY, "lag": {"interactive": 0, "batch": 9000}, "begun": {"batch": 40}},
            0,
        ),
        # Offsets that wait for an older one are answered already.
        ("interactive", 1, {**BUSY, "lag": {"interactive": 10}}, 12_000),
        # No worker, no series. Where there may be none that is nothing; elsewhere it is no answer.
        ("batch", 0, NOTHING, 0),
        ("all", 0, NOTHING, 0),
        ("interactive", 1, NOTHING, None),
    ],
)
def test_prometheus_counts_the_tokens_that_run_and_wait(
    scale_on: str, least: int, given: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    scaling = {"enabled": True, "scaleOn": scale_on, "minReplicas": least}
    objects = render(None, workers={"pools": {"main": {"autoscaling": scaling}}})
    (one,) = of_kind(objects, "ScaledObject")
    (asked,) = trigger(one, "prometheus")
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    test = {
        "rule_files": [],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": series(**given),
                "promql_expr_test": [
                    {
                        "expr": asked["metadata"]["query"],
                        "eval_time": AT,
                        "exp_samples": samples,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "scaling.yaml"
    path.write_text(yaml.safe_dump(test))
    program = shutil.which("promtool")
    assert program, "no promtool on PATH; on Debian or Ubuntu: apt-get install prometheus"
    ended = subprocess.run(
        [program, "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("profile", SCALED)
def test_one_worker_more_is_wanted_before_the_others_are_full(profile: str) -> None:
    for one, target in scaled(profile):
        (asked,) = trigger(one, "prometheus")
        given = variables(containers(target["spec"]["template"])[0])
        room = int(given["FEEDLOOM_WORKER__MAX_INFLIGHT_TOKENS"])
        assert asked["metricType"] == "AverageValue"
        assert room / 2 < int(asked["metadata"]["threshold"]) < room
        # Silence is no zero: KEDA then keeps what there is.
        assert asked["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("profile", SCALED)
def test_a_silent_prometheus_ends_no_worker_and_starts_none_where_there_are_none(
    profile: str,
) -> None:
    for one, _target in scaled(profile):
        fallback = one["spec"].get("fallback")
        if one["spec"]["minReplicaCount"] == 0:
            assert fallback is None
        else:
            assert fallback["behavior"] == "currentReplicasIfHigher"
            assert fallback["replicas"] == one["spec"]["minReplicaCount"]


def test_batches_wake_workers_of_their_own_and_only_when_they_are_many() -> None:
    one = named(rendered("production"), "ScaledObject", "worker-batch")
    assert one["spec"]["minReplicaCount"] == 0
    (records,) = trigger(one, "kafka")
    assert records["metadata"]["topic"] == "prod.generation.requests.batch"
    assert records["metadata"]["activationLagThreshold"] == "500"
    (tokens,) = trigger(one, "prometheus")
    assert tokens["metadata"]["activationThreshold"] == str(500 * 512)


def test_the_gateway_is_scaled_by_what_it_does() -> None:
    (one,) = of_kind(rendered("production"), "HorizontalPodAutoscaler")
    gateway = named(rendered("production"), "Deployment", "gateway")
    assert one["spec"]["scaleTargetRef"]["name"] == gateway["metadata"]["name"]
    grace = gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    down = one["spec"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= grace
    assert all(each["periodSeconds"] >= grace for each in down["policies"])


def test_every_scaled_workload_is_one_of_this_chart() -> None:
    for profile in SCALED:
        names = {workload["metadata"]["name"] for workload, _ in pods(rendered(profile))}
        for one in of_kind(rendered(profile), "ScaledObject"):
            assert one["spec"]["scaleTargetRef"]["name"] in names
            assert re.fullmatch(r"feedloom-worker-[a-z]+", one["metadata"]["name"])
