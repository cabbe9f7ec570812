"""The compose file as Docker Compose reads it, which needs no engine for that.

``make deploytools`` builds it from its Go modules.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "infra" / "deploy" / "compose"
COMPOSE = ROOT / ".feedloom" / "deploy" / "docker-compose"
THREE = ("--env-file", str(FOLDER / "three-brokers.env"))
"""Options of the deployment with three brokers."""


@cache
def read(*options: str) -> dict[str, Any]:
    """What Compose makes of the file, with every profile."""
    assert COMPOSE.is_file(), f"{COMPOSE} is not there: `make deploytools` builds it"
    kept = {name: os.environ[name] for name in ("HOME", "PATH")}
    command = [str(COMPOSE), "-f", str(FOLDER / "compose.yaml"), *options, "--profile", "*"]
    done = subprocess.run(
        [*command, "config", "--format", "json"], env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    config: dict[str, Any] = json.loads(done.stdout)
    return config


def services(*options: str) -> dict[str, dict[str, Any]]:
    """Its services by name."""
    found: dict[str, dict[str, Any]] = read(*options)["services"]
    return found
