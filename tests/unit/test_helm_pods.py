"""Pods against the program in them: commands parse, settings load, probes exist."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from aiohttp import ClientSession

from infra.cli import cli
from infra.contracts.config_sections import TrainerConfig
from infra.settings import (
    GatewaySettings,
    Settings,
    TrainerSettings,
    WorkerSettings,
    load_settings,
)
from producers.gateway.platform_routes import router
from stream_workers.health import HealthServer, Vitals
from tests.deploy import (
    CHART,
    ROOT,
    Object,
    component_of,
    containers,
    named,
    pods,
    render,
    variables,
)
from tests.helm_profiles import PROFILES, rendered

IMAGES = {
    "worker": {"feedloom-worker-gpu", "feedloom-worker-cpu"},
    "gateway": {"feedloom-gateway"},
    "console": {"feedloom-gateway"},
    "trainer": {"feedloom-trainer"},
    "pretraining": {"feedloom-trainer"},
    "rollouts": {"feedloom-tools"},
    "operator": {"feedloom-tools"},
}
HOME = "/var/lib/feedloom"


each_profile = pytest.mark.parametrize("profile", PROFILES)


def every_container(profile: str) -> Iterator[tuple[Object, Object, Object]]:
    """With its workload and the template of its pod."""
    for workload, template in pods(rendered(profile)):
        for container in containers(template):
            yield workload, template, container


def mounted(template: Object, container: Object) -> dict[str, Object]:
    """By its path, each volume of a container."""
    volumes = {one["name"]: one for one in template["spec"]["volumes"]}
    assert len({one["mountPath"] for one in container["volumeMounts"]}) == len(
        container["volumeMounts"]
    )
    return {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}


def on_this_machine(path: str, mounts: dict[str, Object], folder: Path) -> Path:
    """Where a path of the container is here; a file of a Secret is made, others are not."""
    place, volume = max(
        ((place, one) for place, one in mounts.items() if f"{path}/".startswith(f"{place}/")),
        key=lambda found: len(found[0]),
        default=("", {}),
    )
    assert place, f"{path} is on no volume, and nothing else may be written or is given"
    here = folder / path.lstrip("/")
    here.parent.mkdir(parents=True, exist_ok=True)
    if "secret" in volume:
        items = {one["path"] for one in volume["secret"]["items"]}
        assert path.removeprefix(f"{place}/") in items
        here.write_text("x")
    return here


@each_profile
def test_settings_of_every_container_load(
    profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, (workload, template, container) in enumerate(every_container(profile)):
        folder = tmp_path / str(number)
        mounts, given = mounted(template, container), variables(container)
        with monkeypatch.context() as environment:
            for name, value in given.items():
                if value.startswith("/"):
                    value = str(on_this_machine(value, mounts, folder))
                if name.startswith("FEEDLOOM_"):
                    environment.setenv(name, value)
            settings = load_settings()
        assert {"/tmp", HOME} <= set(mounts)
        assert settings.home == folder / HOME.lstrip("/")
        if component_of(workload) != "pretraining":
            assert settings.kafka.bootstrap_servers == given["FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"]
            assert settings.kafka.security_protocol == "SASL_SSL"
            assert settings.kafka.sasl_password_file is not None
            assert settings.kafka.ssl_cafile is not None


def parsed(command: click.Command, arguments: list[str], name: str) -> click.Context:
    """The context of the innermost command. Raises click's errors."""
    context = command.make_context(name, list(arguments))
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        found, inner, rest = context.command.resolve_command(context, rest)
        assert inner is not None
        assert found is not None
        context = inner.make_context(found, rest, parent=context)
    return context


def words(container: Object, mounts: dict[str, Object], folder: Path) -> list[str]:
    """What comes after ``feedloom``; paths are folders here."""
    line = [*container["command"], *container["args"]]
    if line[0] == "torchrun":
        assert line[1] == "--no-python"
        line = line[2:]
    assert line[0] == "feedloom"
    found = []
    for word in line[1:]:
        if word.startswith("/"):
            here = on_this_machine(word, mounts, folder)
            here.mkdir()
            word = str(here)
        found.append(word)
    return found


@each_profile
def test_its_command_is_one_of_ours_and_its_options_parse(profile: str, tmp_path: Path) -> None:
    for number, (workload, template, container) in enumerate(every_container(profile)):
        if workload["metadata"]["name"] == "feedloom-toolbox":
            assert container["command"] + container["args"] == ["sleep", "infinity"]
            continue
        arguments = words(container, mounted(template, container), tmp_path / str(number))
        context = parsed(cli, arguments, "feedloom")
        named = context.command_path.split()[1:]
        assert named == arguments[: len(named)]
        component = component_of(workload)
        image = container["image"].rsplit("/", 1)[1].partition(":")[0].partition("@")[0]
        assert image in IMAGES[component]


def test_a_command_that_is_not_ours_would_be_noticed(tmp_path: Path) -> None:
    for wrong in (["wrker"], ["worker", "--gpu"], ["rollouts", "run", "--interval", "0"]):
        with pytest.raises(click.UsageError):
            parsed(cli, wrong, "feedloom")


def probes(container: Object) -> dict[str, Object]:
    kinds = ("startupProbe", "livenessProbe", "readinessProbe")
    return {kind: container[kind] for kind in kinds if kind in container}


@each_profile
def test_probes_ask_where_the_program_listens(profile: str) -> None:
    for workload, _template, container in every_container(profile):
        component = component_of(workload)
        if component not in ("worker", "gateway", "console"):
            assert not probes(container)
            assert not container.get("ports") or component == "pretraining"
            continue
        given = variables(container)
        section = "WORKER__HEALTH" if component == "worker" else "GATEWAY_"
        ports = {one["name"]: one["containerPort"] for one in container["ports"]}
        assert given[f"FEEDLOOM_{section}_HOST"] == "0.0.0.0"
        assert list(ports.values()) == [int(given[f"FEEDLOOM_{section}_PORT"])]
        assert set(probes(container)) == {"startupProbe", "livenessProbe", "readinessProbe"}
        for probe in probes(container).values():
            assert probe["httpGet"]["port"] in ports
            # A worker asks its broker for two seconds at most.
            assert probe["timeoutSeconds"] > 2
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


async def answering(paths: set[str]) -> dict[str, int]:
    """How a worker's own health server answers each path."""

    async def reachable(_timeout_s: float) -> bool:
        return True

    vitals = Vitals(
        engine_dead=lambda: False,
        commits_failing_s=lambda: 0.0,
        broker_answers=reachable,
        partitions=list,
        phase=lambda: "ready",
        stuck_s=1.0,
    )
    server = HealthServer(vitals, host="127.0.0.1", port=0)
    await server.start()
    try:
        async with ClientSession() as session:
            found = {}
            for path in paths:
                async with session.get(f"http://127.0.0.1:{server.port}{path}") as response:
                    found[path] = response.status
            return found
    finally:
        await server.stop()


def probed(component: str) -> set[str]:
    return {
        probe["httpGet"]["path"]
        for profile in PROFILES
        for workload, template in pods(rendered(profile))
        if component_of(workload) == component
        for container in containers(template)
        for probe in probes(container).values()
    }


def test_workers_answer_what_their_probes_ask() -> None:
    paths = probed("worker")
    assert paths == {"/healthz", "/readyz"}
    assert asyncio.run(answering({*paths, "/nowhere"})) == {
        "/healthz": 200,
        "/readyz": 200,
        "/nowhere": 404,
    }


def test_gateways_answer_what_their_probes_ask() -> None:
    routes = {getattr(route, "path", None) for route in router.routes}
    assert probed("gateway") == {"/healthz", "/readyz"}
    assert probed("console") == {"/healthz"}
    assert probed("gateway") <= routes


def test_a_gateway_is_ready_without_workers_only_where_there_may_be_none() -> None:
    def path(profile: str) -> str:
        (container,) = containers(
            named(rendered(profile), "Deployment", "gateway")["spec"]["template"]
        )
        return str(container["readinessProbe"]["httpGet"]["path"])

    # /readyz says no while no worker serves; nobody could then hand in the batch that wakes one.
    assert path("external") == "/healthz"
    assert path("production") == "/readyz"
    assert path("laptop") == "/readyz"


@each_profile
def test_a_container_has_what_it_may_use_and_no_more_rights_than_it_needs(profile: str) -> None:
    for workload, template, container in every_container(profile):
        resources = container["resources"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(resources[kind])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        # Else Kubernetes adds FEEDLOOM_GATEWAY_PORT and its kind, and the settings refuse them.
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["fsGroup"] == 10001
        for volume in spec["volumes"]:
            assert "hostPath" not in volume
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
            if "secret" in volume:
                assert volume["secret"]["defaultMode"] == 0o440
        if "worker-gpu" in container["image"]:
            assert (
                resources["limits"]["nvidia.com/gpu"]
                == resources["requests"]["nvidia.com/gpu"]
                >= 1
            )
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec[
                "tolerations"
            ]
        elif component_of(workload) == "worker":
            assert "nvidia.com/gpu" not in resources["limits"]


@each_profile
def test_secrets_come_as_files(profile: str) -> None:
    for _workload, _template, container in every_container(profile):
        for one in container["env"]:
            assert "secretKeyRef" not in one.get("valueFrom", {})
            assert not one["name"].endswith(("PASSWORD", "_TOKEN", "SECRET_ACCESS_KEY"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_pod_has_the_time_that_its_program_takes_to_end(profile: str) -> None:
    for workload, template in pods(rendered(profile)):
        given = variables(containers(template)[-1])
        grace = template["spec"].get("terminationGracePeriodSeconds", 30)
        if component_of(workload) == "worker":
            drain = float(given["FEEDLOOM_WORKER__DRAIN_TIMEOUT_S"])
            assert grace >= drain + 30
        elif component_of(workload) in ("gateway", "console"):
            (container,) = containers(template)
            hook = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert grace >= hook + float(given["FEEDLOOM_GATEWAY__DRAIN_TIMEOUT_S"]) + 25


@pytest.mark.parametrize("profile", PROFILES)
def test_an_engine_has_the_time_that_it_takes_to_start(profile: str) -> None:
    for workload, template in pods(rendered(profile)):
        if component_of(workload) != "worker":
            continue
        (container,) = containers(template)
        startup = container["startupProbe"]
        allowed = startup["periodSeconds"] * startup["failureThreshold"]
        assert allowed >= (1800 if "worker-gpu" in container["image"] else 600)
        assert workload["spec"]["progressDeadlineSeconds"] > allowed


def test_a_worker_on_a_cpu_takes_no_more_threads_than_it_is_given() -> None:
    (container,) = containers(
        named(rendered("laptop"), "Deployment", "worker-main")["spec"]["template"]
    )
    threads = next(one for one in container["env"] if one["name"] == "OMP_NUM_THREADS")
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert variables(container)["FEEDLOOM_WORKER__PIN_CORES"] == "false"


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_model_is_spread_over_the_gpus_of_its_worker(gpus: int) -> None:
    objects = render(None, workers={"pools": {"main": {"kind": "gpu", "gpus": gpus}}})
    (template,) = [one for kind, one in pods(objects) if component_of(kind) == "worker"]
    (container,) = containers(template)
    given = variables(container).get("FEEDLOOM_WORKER__TENSOR_PARALLEL_SIZE", "1")
    assert int(given) == gpus == int(container["resources"]["limits"]["nvidia.com/gpu"])


def test_the_schema_of_values_knows_the_settings_that_there_are() -> None:
    known = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    dynamic = set(TrainerConfig.__struct_fields__)
    taken = {"worker_id", "group", "health_port", "health_host", "tensor_parallel_size"}
    assert set(known["workerSettings"]["properties"]) == set(WorkerSettings.model_fields) - taken
    taken = {"gateway_id", "host", "port", "files_url"}
    assert set(known["gatewaySettings"]["properties"]) == set(GatewaySettings.model_fields) - taken
    assert set(known["trainerSettings"]["properties"]) == (
        set(TrainerSettings.model_fields) | dynamic
    ) - {"schedule", "config"}
    assert set(Settings.model_fields) >= {"worker", "gateway", "trainer"}


def test_numbers_and_lists_reach_the_program_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "gateway": {
            "settings": {
                "drain_timeout_s": 12.5,
                "max_body_bytes": 20_000_000,
                "jwt_algorithms": ["ES256"],
                "authentication": True,
            }
        }
    }
    (container,) = containers(
        named(render(None, **values), "Deployment", "gateway")["spec"]["template"]
    )
    for name, value in variables(container).items():
        if name.startswith("FEEDLOOM_GATEWAY__"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    gateway = load_settings().gateway
    assert gateway.drain_timeout_s == 12.5
    assert gateway.max_body_bytes == 20_000_000
    assert gateway.jwt_algorithms == ("ES256",)


def test_images_are_those_that_are_built_and_run_as_the_user_that_they_have() -> None:
    dockerfile = (ROOT / "infra" / "deploy" / "Dockerfile").read_text()
    built = set(re.findall(r"^FROM runtime AS (\S+)$", dockerfile, flags=re.MULTILINE))
    wanted = {image.removeprefix("feedloom-") for images in IMAGES.values() for image in images}
    assert wanted == built
    (user,) = set(re.findall(r"^USER (\d{2,}):\d+$", dockerfile, flags=re.MULTILINE))
    for _workload, template, _container in every_container("plain"):
        assert template["spec"]["securityContext"]["runAsUser"] == int(user)
    assert f"HOME={HOME}" in dockerfile
    for folder in ("artifacts", "files"):
        assert f"/var/lib/feedloom-{folder}" in dockerfile
