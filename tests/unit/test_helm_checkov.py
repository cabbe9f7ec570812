"""checkov, which looks for unsafe settings, finds none in what the chart renders."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy import TOOLS, Object, named
from tests.helm_profiles import rendered

PROGRAM = TOOLS / "checkov" / "bin" / "checkov"
SKIPPED = {
    "CKV_K8S_15": "IfNotPresent is right for tags that never move; Always needs the registry up",
    "CKV_K8S_43": "digests are a value: there are none before images are built",
}


def failed(objects: list[Object], folder: Path) -> set[tuple[str, str]]:
    """Checks that failed, each with the object."""
    path = folder / "rendered.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    assert PROGRAM.is_file(), f"{PROGRAM} is missing: run `make deploytools`"
    command = [str(PROGRAM), "--file", str(path), "--framework", "kubernetes", "--compact"]
    command += ["--quiet", "--output", "json", "--skip-check", ",".join(SKIPPED)]
    # Everything it knows is in the package: it asks nobody.
    command += ["--skip-download"]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LOG_LEVEL": "ERROR", "HOME": str(folder)},
    )
    assert ended.returncode in (0, 1), ended.stderr
    report = json.loads(ended.stdout)
    assert report["summary"]["parsing_errors"] == 0
    return {
        (one["check_id"], one["resource"].rpartition(".")[2])
        for one in report["results"]["failed_checks"]
    }


@pytest.mark.slow
def test_nothing_unsafe_is_found_but_what_is_put_there(tmp_path: Path) -> None:
    careless = copy.deepcopy(named(rendered("production"), "Deployment", "gateway"))
    careless["metadata"]["name"] = "careless"
    (container,) = careless["spec"]["template"]["spec"]["containers"]
    container["securityContext"] = {"privileged": True}
    del container["resources"]["limits"]
    profiles = ("gpu", "production", "external", "ambient")
    objects = [one for profile in profiles for one in rendered(profile)]
    found = failed([*objects, careless], tmp_path)
    assert {one for one in found if one[1] != "careless"} == set()
    assert {"CKV_K8S_16", "CKV_K8S_11", "CKV_K8S_22"} <= {check for check, _ in found}
