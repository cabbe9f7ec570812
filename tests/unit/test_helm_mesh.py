"""Who may talk to whom in an Istio mesh, with sidecars and without."""

from __future__ import annotations

import pytest

from tests.deploy import labels_of, named, of_kind, pods, render, selects
from tests.helm_profiles import rendered

MESHED = ("production", "ambient")


@pytest.mark.parametrize("profile", MESHED)
def test_nobody_talks_to_a_pod_without_an_identity_of_the_mesh(profile: str) -> None:
    objects = rendered(profile)
    (peers,) = of_kind(objects, "PeerAuthentication")
    assert peers["spec"]["mtls"] == {"mode": "STRICT"}
    for _workload, template in pods(objects):
        assert selects(peers["spec"]["selector"], labels_of(template))


def test_sidecars_keep_out_of_kafkas_way_and_out_of_jobs() -> None:
    for workload, template in pods(rendered("production")):
        (kafka,) = of_kind(rendered("production"), "Kafka")
        (listener,) = kafka["spec"]["kafka"]["listeners"]
        assert workload["kind"] == "Deployment"
        assert labels_of(template)["sidecar.istio.io/inject"] == "true"
        notes = template["metadata"]["annotations"]
        # A sidecar that ends first would take the last commits along.
        excluded = notes["traffic.sidecar.istio.io/excludeOutboundPorts"]
        assert excluded == str(listener["port"])
    mesh = {"enabled": True, "mode": "sidecar"}
    objects = render(None, mesh=mesh, trainer={"mode": "cronjob"}, pretraining={"enabled": True})
    jobs = [template for one, template in pods(objects) if one["kind"] in ("Job", "CronJob")]
    assert len(jobs) == 2
    for template in jobs:
        assert labels_of(template)["sidecar.istio.io/inject"] == "false"
    (kafka,) = of_kind(objects, "Kafka")
    for part in (kafka["spec"]["kafka"], kafka["spec"]["entityOperator"]):
        assert part["template"]["pod"]["metadata"]["labels"] == {
            "sidecar.istio.io/inject": "false",
            "istio.io/dataplane-mode": "none",
        }


def test_the_ambient_mesh_looks_into_calls_at_a_waypoint() -> None:
    objects = rendered("ambient")
    for _workload, template in pods(objects):
        assert labels_of(template)["istio.io/dataplane-mode"] == "ambient"
        assert "sidecar.istio.io/inject" not in labels_of(template)
    (waypoint,) = of_kind(objects, "Gateway")
    for name in ("gateway", "gateway-canary"):
        labels = named(objects, "Service", name)["metadata"]["labels"]
        assert labels["istio.io/use-waypoint"] == waypoint["metadata"]["name"]
    # There is no way round it.
    policy = named(objects, "AuthorizationPolicy", "gateway-pods")["spec"]
    assert policy["selector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    (rule,) = policy["rules"]
    (source,) = rule["from"]
    own = f"*/ns/feedloom/sa/{waypoint['metadata']['name']}"
    assert source["source"] == {"principals": [own]}
    for kind in ("AuthorizationPolicy", "RequestAuthentication"):
        targets = named(objects, kind, "gateway")["spec"]["targetRefs"]
        assert [one["name"] for one in targets] == ["feedloom-gateway", "feedloom-gateway-canary"]


@pytest.mark.parametrize("profile", MESHED)
def test_only_the_ingress_gateway_calls_the_api_and_nobody_calls_workers(profile: str) -> None:
    objects = rendered(profile)
    policy = named(objects, "AuthorizationPolicy", "gateway")["spec"]
    assert policy["action"] == "ALLOW"
    for rule in policy["rules"]:
        (source,) = rule["from"]
        assert source["source"]["principals"] == ["*/ns/istio-ingress/sa/istio-ingress"]
    paths = {path for rule in policy["rules"] for path in rule["to"][0]["operation"]["paths"]}
    assert paths == {"/v1/*", "/openapi.json", "/healthz", "/readyz"}
    for name in ("worker", "rollouts", "trainer"):
        spec = named(objects, "AuthorizationPolicy", name)["spec"]
        assert spec["action"] == "ALLOW"
        assert "rules" not in spec
    console = named(objects, "AuthorizationPolicy", "console")["spec"]
    callers = [rule["from"][0]["source"]["namespaces"] for rule in console.get("rules", [])]
    assert callers == ([["operations"]] if profile == "ambient" else [])


def test_tokens_are_checked_only_where_that_is_asked_for() -> None:
    # To Istio an API key in the same header is a bad token.
    assert not of_kind(rendered("production"), "RequestAuthentication")
    objects = rendered("ambient")
    (rule,) = named(objects, "RequestAuthentication", "gateway")["spec"]["jwtRules"]
    # The gateway reads the tenant and the roles from it.
    assert rule["forwardOriginalToken"] is True
    first, _ = named(objects, "AuthorizationPolicy", "gateway")["spec"]["rules"]
    assert first["from"][0]["source"]["requestPrincipals"] == [f"{rule['issuer']}/*"]


def test_without_a_mesh_nothing_is_said_of_one() -> None:
    for profile in ("plain", "laptop", "gpu", "external"):
        assert "istio" not in str(rendered(profile))
