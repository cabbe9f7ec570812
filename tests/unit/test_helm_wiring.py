"""How the objects find each other: services, references, ways through the network, edges."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.deploy import (
    ROOT,
    Object,
    component_of,
    containers,
    labels_of,
    named,
    of_kind,
    pods,
    render,
    selects,
    variables,
)
from tests.helm_profiles import PROFILES, rendered

MESHED = {"production": "sidecar", "ambient": "ambient"}
INSTANCE = {"app.kubernetes.io/name": "feedloom", "app.kubernetes.io/instance": "feedloom"}
each_profile = pytest.mark.parametrize("profile", PROFILES)


def selected(objects: tuple[Object, ...], selector: dict[str, Any]) -> list[str]:
    """Names of the workloads whose pods a selector takes."""
    return [
        workload["metadata"]["name"]
        for workload, template in pods(objects)
        if selects(selector, labels_of(template))
    ]


@each_profile
def test_no_two_objects_have_one_name_and_all_are_in_the_namespace(profile: str) -> None:
    objects = rendered(profile)
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    for one in objects:
        assert one["metadata"]["namespace"] == "feedloom"
        assert INSTANCE.items() <= one["metadata"]["labels"].items()


@each_profile
def test_a_workload_selects_its_own_pods_and_no_others(profile: str) -> None:
    objects = rendered(profile)
    for one in of_kind(objects, "Deployment"):
        assert selected(objects, one["spec"]["selector"]) == [one["metadata"]["name"]]
        spread = one["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
        for each in spread:
            assert selected(objects, each["labelSelector"]) == [one["metadata"]["name"]]
    for one in of_kind(objects, "PodDisruptionBudget"):
        assert selected(objects, one["spec"]["selector"]) == [one["metadata"]["name"]]
        # No number of pods that must stay: a drain of a node with the only one would never end.
        assert one["spec"]["maxUnavailable"] == 1


@each_profile
def test_what_people_wait_for_has_a_budget_and_is_spread(profile: str) -> None:
    objects = rendered(profile)
    budgets = {one["metadata"]["name"] for one in of_kind(objects, "PodDisruptionBudget")}
    for workload, template in pods(objects):
        if component_of(workload) in ("worker", "gateway", "console"):
            assert workload["metadata"]["name"] in budgets
            keys = [one["topologyKey"] for one in template["spec"]["topologySpreadConstraints"]]
            assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


@each_profile
def test_a_service_reaches_the_port_of_one_workload(profile: str) -> None:
    objects = rendered(profile)
    templates = {one["metadata"]["name"]: template for one, template in pods(objects)}
    for one in of_kind(objects, "Service"):
        (name,) = selected(objects, {"matchLabels": one["spec"]["selector"]})
        assert name == one["metadata"]["name"]
        (container,) = containers(templates[name])
        named_ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        for port in one["spec"]["ports"]:
            assert port["targetPort"] in (*named_ports, *named_ports.values())


@each_profile
def test_every_secret_volume_and_account_is_made_by_somebody(profile: str) -> None:
    objects = rendered(profile)
    made = {one["metadata"]["name"] for one in of_kind(objects, "Secret", "KafkaUser")}
    made |= {one["spec"]["target"]["name"] for one in of_kind(objects, "ExternalSecret")}
    made |= {f"{one['metadata']['name']}-cluster-ca-cert" for one in of_kind(objects, "Kafka")}
    if profile == "external":
        made |= {"trainer-kafka", "minio", "signing", "kafka-authority"}
    claims = {one["metadata"]["name"] for one in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {one["metadata"]["name"] for one in of_kind(objects, "ServiceAccount")}
    for one in of_kind(objects, "ServiceAccount"):
        assert one["automountServiceAccountToken"] is False
    mounted: set[str] = set()
    for workload, template in pods(objects):
        spec = template["spec"]
        assert spec["serviceAccountName"] == f"feedloom-{component_of(workload)}"
        assert spec["serviceAccountName"] in accounts
        for volume in spec["volumes"]:
            if "secret" in volume:
                assert volume["secret"]["secretName"] in made
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                assert claim in claims
                mounted.add(claim)
    assert mounted == claims
    for one in of_kind(objects, "TriggerAuthentication"):
        for target in one["spec"]["secretTargetRef"]:
            assert target["name"] in made


def test_only_the_trainer_signs_and_every_worker_verifies() -> None:
    objects = rendered("production")
    signs, verifies = set(), set()
    for workload, template in pods(objects):
        for container in containers(template):
            given = variables(container)
            if "FEEDLOOM_ARTIFACT_STORE__SIGNING_KEY" in given:
                signs.add(component_of(workload))
            if "FEEDLOOM_ARTIFACT_STORE__PUBLIC_KEY" in given:
                verifies.add(component_of(workload))
    assert signs == {"trainer"}
    assert verifies == {"worker", "trainer"}


def test_workers_cannot_change_the_versions_on_a_shared_volume() -> None:
    objects = rendered("laptop")
    write = set()
    for workload, template in pods(objects):
        for container in containers(template):
            for mount in container["volumeMounts"]:
                if mount["name"] == "artifacts" and not mount.get("readOnly"):
                    write.add((component_of(workload), mount["subPath"]))
    assert write == {("trainer", "artifacts"), ("gateway", "files"), ("console", "files")}


def test_identities_are_the_service_accounts() -> None:
    objects = rendered("production")
    role = "eks.amazonaws.com/role-arn"
    roles = {
        component_of(one): one["metadata"].get("annotations", {}).get(role, "").rpartition("/")[2]
        for one in of_kind(objects, "ServiceAccount")
    }
    assert roles == {
        "worker": "feedloom-worker",
        "gateway": "feedloom-gateway",
        "console": "feedloom-gateway",
        "trainer": "feedloom-trainer",
        "rollouts": "",
    }
    for workload, template in pods(objects):
        for container in containers(template):
            if component_of(workload) in ("worker", "trainer"):
                url = variables(container)["FEEDLOOM_ARTIFACT_STORE__URL"]
                assert url == "s3://feedloom-production/artifacts"


WALLED = [profile for profile in PROFILES if profile != "laptop"]
NEEDS_HTTPS = {"worker", "gateway", "console", "trainer"}


def ways(
    objects: tuple[Object, ...], labels: dict[str, str], way: str
) -> list[tuple[list[Any], list[int]]]:
    """Whom a pod may reach (egress), or be reached by (ingress), and on which ports."""
    found = []
    for one in of_kind(objects, "NetworkPolicy"):
        if not selects(one["spec"]["podSelector"], labels):
            continue
        for rule in one["spec"].get(way, []):
            peers = rule.get("to" if way == "egress" else "from", [])
            found.append((peers, [port["port"] for port in rule.get("ports", [])]))
    return found


@pytest.mark.parametrize("profile", WALLED)
def test_nothing_comes_or_goes_that_no_policy_names(profile: str) -> None:
    objects = rendered(profile)
    deny = named(objects, "NetworkPolicy", "deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(deny)
    for _workload, template in pods(objects):
        assert selects(deny["podSelector"], labels_of(template))
    for one in of_kind(objects, "NetworkPolicy"):
        # Each way that a policy opens is one that it closes for all else.
        for way, kind in (("ingress", "Ingress"), ("egress", "Egress")):
            if way in one["spec"]:
                assert kind in one["spec"]["policyTypes"]
        assert INSTANCE.items() <= one["spec"]["podSelector"]["matchLabels"].items()


@pytest.mark.parametrize("profile", WALLED)
def test_pods_reach_what_they_need_and_no_more(profile: str) -> None:
    objects = rendered(profile)
    for workload, template in pods(objects):
        component = component_of(workload)
        out = ways(objects, labels_of(template), "egress")
        ports = {port for _peers, found in out for port in found}
        given = variables(containers(template)[-1])
        expected = {53}
        if component != "pretraining":
            expected.add(int(given["FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"].rpartition(":")[2]))
        if component in NEEDS_HTTPS:
            expected.add(443)
            if profile == "external":
                expected.add(80)
        if "OTEL_EXPORTER_OTLP_ENDPOINT" in given:
            expected.add(int(given["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2]))
        expected |= {"sidecar": {15012}, "ambient": {15008}}.get(MESHED.get(profile, ""), set())
        assert ports == expected, workload["metadata"]["name"]


@pytest.mark.parametrize("profile", WALLED)
def test_pods_take_calls_from_those_alone_that_have_to_call(profile: str) -> None:
    objects = rendered(profile)
    for workload, template in pods(objects):
        component = component_of(workload)
        ports = {
            port
            for peers, found in ways(objects, labels_of(template), "ingress")
            for port in found
            if port != 15008 or profile != "ambient"
            for _ in [assert_somebody(peers)]
        }
        console = component == "console" and profile == "ambient"
        if component == "gateway" or console:
            (container,) = containers(template)
            assert ports == {int(variables(container)["FEEDLOOM_GATEWAY__PORT"])}
        else:
            assert ports == set()


def assert_somebody(peers: list[Any]) -> None:
    """A rule without peers is for all the world."""
    assert peers
    for peer in peers:
        assert peer != {}


def test_kafka_lets_in_the_release_and_those_that_are_named() -> None:
    objects = rendered("production")
    (kafka,) = of_kind(objects, "Kafka")
    (listener,) = kafka["spec"]["kafka"]["listeners"]
    own, keda = listener["networkPolicyPeers"]
    assert own["podSelector"]["matchLabels"] == INSTANCE
    assert keda["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "keda"}
    peers = [
        peer
        for peers, ports in ways(
            objects, {**INSTANCE, "app.kubernetes.io/component": "worker"}, "egress"
        )
        if ports == [listener["port"]]
        for peer in peers
    ]
    assert peers == [
        {
            "podSelector": {
                "matchLabels": {
                    "strimzi.io/cluster": kafka["metadata"]["name"],
                    "strimzi.io/kind": "Kafka",
                }
            }
        }
    ]


@pytest.mark.parametrize("profile", ["production", "external"])
def test_another_version_of_the_gateway_gets_its_share_of_calls(profile: str) -> None:
    objects = rendered(profile)
    services = {one["metadata"]["name"] for one in of_kind(objects, "Service")}
    images = {
        one["metadata"]["name"]: containers(one["spec"]["template"])[0]["image"]
        for one in of_kind(objects, "Deployment")
    }
    assert images["feedloom-gateway"] != images["feedloom-gateway-canary"]
    for one in of_kind(objects, "HTTPRoute"):
        (rule,) = one["spec"]["rules"]
        weights = {each["name"]: each["weight"] for each in rule["backendRefs"]}
        assert weights == {"feedloom-gateway": 95, "feedloom-gateway-canary": 5}
        assert set(weights) <= services
        # A stream lasts as long as its answer.
        assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}
    weighed = {}
    for one in of_kind(objects, "Ingress"):
        notes = one["metadata"]["annotations"]
        name = one["metadata"]["name"]
        weighed[name] = notes.get("nginx.ingress.kubernetes.io/canary-weight")
        assert notes["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        assert int(notes["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3600
        for path in one["spec"]["rules"][0]["http"]["paths"]:
            assert path["backend"]["service"] == {"name": name, "port": {"name": "http"}}
            assert name in services
    if profile == "external":
        assert weighed == {"feedloom-gateway": None, "feedloom-gateway-canary": "5"}


@each_profile
def test_the_edge_shows_the_api_and_never_the_console(profile: str) -> None:
    objects = rendered(profile)
    shown = {
        match["path"]["value"]
        for one in of_kind(objects, "HTTPRoute")
        for rule in one["spec"]["rules"]
        for match in rule["matches"]
    } | {
        path["path"]
        for one in of_kind(objects, "Ingress")
        for path in one["spec"]["rules"][0]["http"]["paths"]
    }
    assert shown <= {"/v1", "/openapi.json"}
    edges = of_kind(objects, "HTTPRoute", "Ingress")
    assert "console" not in str([one["spec"] for one in edges])


def test_without_a_second_version_everything_goes_to_the_first() -> None:
    route = {"enabled": True, "parentRefs": [{"name": "public"}]}
    (one,) = of_kind(render(None, edge={"httpRoute": route}), "HTTPRoute")
    backends = one["spec"]["rules"][0]["backendRefs"]
    assert [(each["name"], each["weight"]) for each in backends] == [("feedloom-gateway", 100)]


def test_ranks_of_pretraining_find_each_other() -> None:
    objects = rendered("external")
    job = named(objects, "Job", "pretrain")
    (container,) = containers(job["spec"]["template"])
    given = variables(container)
    rank = next(one for one in container["env"] if one["name"] == "PET_NODE_RANK")
    assert job["spec"]["completionMode"] == "Indexed"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(given["PET_NNODES"])
    assert "job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    service = named(objects, "Service", "pretrain")
    name, spec = service["metadata"]["name"], job["spec"]["template"]["spec"]
    assert spec["subdomain"] == name
    assert given["PET_MASTER_ADDR"] == f"{job['metadata']['name']}-0.{name}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [one["port"] for one in service["spec"]["ports"]] == [int(given["PET_MASTER_PORT"])]
    (runtime,) = of_kind(rendered("ambient"), "TrainingRuntime")
    assert runtime["spec"]["mlPolicy"]["numNodes"] == 2


def test_the_alerts_are_those_of_the_code() -> None:
    path = ROOT / "infra" / "deploy" / "observability" / "prometheus" / "rules.yaml"
    (rules,) = of_kind(rendered("production"), "PrometheusRule")
    assert rules["spec"] == yaml.safe_load(path.read_text())
