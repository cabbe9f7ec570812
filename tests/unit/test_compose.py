"""The compose file, read by Docker Compose itself, which needs no engine for that."""

from __future__ import annotations

import ast
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra.cli import cli
from infra.registry.manifest import manifest_of
from infra.registry.signing import Signer, Verifier
from infra.settings import load_settings
from tests.compose import FOLDER, THREE, read, services
from tests.dockerfile import exec_form, parse

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = parse((ROOT / "infra" / "deploy" / "Dockerfile").read_text())
OURS = [
    *("first-model", "gateway", "rollouts", "tools", "topics", "trainer"),
    *("worker-cpu", "worker-gpu"),
]
OTHERS = ["collector", "grafana", "jaeger", "kafka-1", "kafka-2", "kafka-3", "loki", "prometheus"]
ALL = OURS + OTHERS
ONE_SHOT = {"first-model", "tools", "topics"}
# Their images hold nothing that could ask.
UNASKED = {"collector", "loki"}
SECRET = re.compile("(?i)passw|secret|token|credential|_key")


def target(service: dict[str, Any]) -> str:
    return str(service["build"]["target"])


def test_the_whole_platform_is_there() -> None:
    found = services()
    assert found.keys() == set(ALL)
    profiles = {name: each["profiles"] for name, each in found.items() if "profiles" in each}
    assert profiles == {
        "kafka-2": ["three-brokers"],
        "kafka-3": ["three-brokers"],
        "tools": ["tools"],
        "worker-gpu": ["gpu"],
    }


@pytest.mark.parametrize("name", ALL)
def test_a_container_may_do_no_more_than_it_must(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged", False)
    assert not {"network_mode", "pid", "ipc", "userns_mode", "devices"} & service.keys()
    assert int(service["mem_limit"]) > 0
    assert int(service["pids_limit"]) > 0
    assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))
    for volume in service.get("volumes", ()):
        if volume["type"] == "bind":
            assert volume["read_only"], volume
            assert Path(volume["source"]).exists(), volume
            assert "docker.sock" not in volume["source"]


def test_no_two_services_want_one_port() -> None:
    ports = [port["published"] for each in services().values() for port in each.get("ports", ())]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_pinned_or_built_from_this_tree(name: str) -> None:
    service = services()[name]
    if name in OURS:
        assert service["build"]["context"] == str(ROOT)
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert target(service) in DOCKERFILE.stages
        assert service["image"] == f"feedloom-{target(service)}:0.1.0"
    elif name.startswith("kafka"):
        # The release whose jars run in the tests and on a developer's machine.
        jars = (ROOT / "infra" / "kafka" / "jars.lock").read_text()
        release = re.search(r"kafka-server:(\S+)", jars)
        assert release is not None
        assert re.fullmatch(rf"apache/kafka:{release[1]}@sha256:[0-9a-f]{{64}}", service["image"])
    else:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", service["image"])


@pytest.mark.parametrize("name", ALL)
def test_what_serves_is_asked_how_it_is(name: str) -> None:
    service = services()[name]
    if name in UNASKED | ONE_SHOT:
        assert "healthcheck" not in service
    elif name in OURS and "healthcheck" not in service:
        assert DOCKERFILE.instructions(target(service), "HEALTHCHECK") != ["NONE"]
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert not service["healthcheck"].get("disable", False)


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_command_that_there_is(name: str) -> None:
    service = services()[name]
    image = exec_form(DOCKERFILE.instructions(target(service), "CMD")[-1])
    command = [word for word in service["command"] or image if word != "--help"]
    asked = CliRunner().invoke(cli, [*command, "--help"])
    assert asked.exit_code == 0, asked.output


@pytest.mark.parametrize("options", [(), THREE], ids=["one broker", "three brokers"])
@pytest.mark.parametrize("name", OURS)
def test_a_service_has_settings_that_the_platform_accepts(
    name: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = services(*options)[name]
    monkeypatch.chdir(tmp_path)
    for variable in [one for one in os.environ if one.startswith(("FEEDLOOM_", "OTEL_"))]:
        monkeypatch.delenv(variable)
    for variable, value in (
        DOCKERFILE.environment(target(service)) | service["environment"]
    ).items():
        if variable.startswith(("FEEDLOOM_", "OTEL_")):
            monkeypatch.setenv(variable, value)
    settings = load_settings()
    brokers = [each for each in services(*options) if each.startswith("kafka")]
    servers = str(settings.kafka.bootstrap_servers).split(",")
    assert [server.removesuffix(":9092") for server in servers] == brokers[: 3 if options else 1]
    assert settings.kafka.replication_factor == len(servers)
    assert settings.kafka.min_insync_replicas == (2 if options else 1)
    if name == "gateway":
        (port,) = service["ports"]
        assert (settings.gateway.host, settings.gateway.port) == ("0.0.0.0", port["target"])
        assert settings.gateway.authentication
    # What is signed by one is checked by the other, and all see the same files.
    mounted = {each["target"] for each in service.get("secrets", ())}
    store = settings.artifacts
    named = {str(key) for key in (store.signing_key, store.public_key) if key is not None}
    assert named == mounted
    if mounted:
        volumes = {each["target"]: each for each in service["volumes"]}
        assert volumes[store.url]["source"] == "artifacts"
        assert volumes[store.url].get("read_only", False) is (store.signing_key is None)


@pytest.mark.parametrize("name", ALL)
def test_what_a_service_may_write_is_a_volume_or_memory(name: str) -> None:
    service = services()[name]
    writable = {mount.split(":")[0] for mount in service.get("tmpfs", ())} | {
        each["target"] for each in service.get("volumes", ()) if not each.get("read_only", False)
    }
    if name in OURS:
        assert {"/tmp", "/var/lib/feedloom"} <= writable
        # A new volume takes over the owner of the image's folder: that must be there.
        made = DOCKERFILE.instructions(target(service), "RUN")[0]
        for place in writable - {"/tmp"}:
            assert f" {place} " in f"{made} ".replace("\n", " "), place


def test_only_who_publishes_versions_has_the_key_that_signs() -> None:
    holders = {
        name
        for name, each in services().items()
        if any(secret["source"] == "signing_key" for secret in each.get("secrets", ()))
    }
    assert holders == {"first-model", "trainer"}


def test_secrets_come_as_files_alone() -> None:
    declared = read()["secrets"]
    for secret in declared.values():
        assert secret.keys() <= {"name", "file"}
        assert Path(secret["file"]).parent == FOLDER / "secrets"
    ignored = (FOLDER / ".gitignore").read_text().splitlines()
    assert "secrets/" in ignored
    for name, service in services().items():
        words = [*(service["command"] or ()), *(service["entrypoint"] or ())]
        words += service.get("healthcheck", {}).get("test", ())
        assert not [word for word in words if SECRET.search(word)], name
        for variable, value in service.get("environment", {}).items():
            # The name of a file, or Grafana's switch that it makes no administrator.
            if SECRET.search(variable):
                assert value.startswith("/run/secrets/"), f"{name}: {variable}"
        for argument in service.get("build", {}).get("args", {}):
            assert not SECRET.search(argument)


def test_everything_waits_for_the_topics_and_training_for_its_text() -> None:
    found = services()
    done = "service_completed_successfully"
    assert found["topics"]["depends_on"]["kafka-1"]["condition"] == "service_healthy"
    assert found["topics"]["depends_on"]["kafka-2"] == {
        "condition": "service_healthy",
        "required": False,
    }
    for name in ("gateway", "worker-cpu", "worker-gpu", "first-model", "rollouts"):
        assert found[name]["depends_on"]["topics"]["condition"] == done
    assert found["trainer"]["depends_on"]["first-model"]["condition"] == done
    assert found["topics"]["command"] == ["topics", "apply"]
    assert found["first-model"]["command"] == ["models", "bootstrap"]
    home = {each["target"]: each["source"] for each in found["trainer"]["volumes"]}
    assert home == {each["target"]: each["source"] for each in found["first-model"]["volumes"]}


@pytest.mark.parametrize(("options", "copies"), [((), 1), (THREE, 3)])
def test_every_internal_topic_has_a_copy_on_each_broker(
    options: tuple[str, ...], copies: int
) -> None:
    brokers = [f"kafka-{number}" for number in range(1, copies + 1)]
    for number, name in enumerate(brokers, start=1):
        environment = services(*options)[name]["environment"]
        assert environment["KAFKA_NODE_ID"] == str(number)
        voters = ",".join(f"{one}@{broker}:9093" for one, broker in enumerate(brokers, start=1))
        assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == voters
        for variable, value in environment.items():
            if variable.endswith("REPLICATION_FACTOR"):
                assert int(value) == copies, variable
            if variable.endswith(("MIN_ISR", "MIN_INSYNC_REPLICAS")):
                assert int(value) == (2 if copies == 3 else 1), variable
        advertised = environment["KAFKA_ADVERTISED_LISTENERS"].split(",")
        (port,) = services(*options)[name]["ports"]
        assert advertised == [
            f"INTERNAL://{name}:9092",
            f"HOST://127.0.0.1:{port['published']}",
        ]
        assert f"HOST://:{port['target']}" in environment["KAFKA_LISTENERS"].split(",")
    clusters = {services()[name]["environment"]["CLUSTER_ID"] for name in brokers}
    assert len(clusters) == 1


def test_three_brokers_are_started_by_their_file_alone() -> None:
    text = (FOLDER / "three-brokers.env").read_text()
    assert "COMPOSE_PROFILES=three-brokers\n" in text
    used = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    named = set(re.findall(r"(?m)^(\w+)=", text))
    assert named - {"COMPOSE_PROFILES"} <= used
    # The platform refuses variables of its own prefix that it does not know.
    assert not [name for name in used if name.startswith("FEEDLOOM_")]


def test_the_keys_that_are_made_sign_and_verify(tmp_path: Path) -> None:
    folder, model = tmp_path / "secrets", tmp_path / "model"
    script = ["sh", str(FOLDER / "make-secrets.sh"), str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "PRIVATE" not in done.stdout + done.stderr
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private, public = folder / "signing_key.pem", folder / "public_key.pem"
    assert {Path(each["file"]).name for each in read()["secrets"].values()} == {
        private.name,
        public.name,
    }
    assert [path for path in folder.iterdir() if path not in (private, public)] == []
    # Their reader is the containers' user.
    assert stat.S_IMODE(private.stat().st_mode) == 0o444
    model.mkdir()
    (model / "config.json").write_text("{}")
    Signer(private).sign(model, model / "signature.json")
    Verifier(public)
    assert manifest_of(model)
    before = private.read_bytes()
    subprocess.run(script, capture_output=True, check=True)
    assert private.read_bytes() == before


@pytest.mark.parametrize("package", ["infra", "observability", "producers", "stream_workers"])
def test_no_launcher_puts_a_secret_on_a_command_line(package: str) -> None:
    calls = {"run", "Popen", "check_output", "check_call", "call", "execvp", "start"}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if node.func.attr not in calls or not isinstance(owner, ast.Name | ast.Attribute):
                continue
            command = [ast.unparse(each) for each in node.args]
            assert not [one for one in command if re.search("(?i)passw|secret|credential", one)], (
                f"{path}:{node.lineno}: {command}"
            )
