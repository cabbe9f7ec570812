"""Kafka's jars: pinned by coordinates and SHA-256, fetched from Maven Central once.

``jars.lock`` lists the whole closure, so nothing is resolved here: each jar is downloaded on its
own, checked, and moved into place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from infra.contracts.errors import ConfigurationError
from infra.files import sha256_of

PARALLEL_DOWNLOADS = 6
DOWNLOAD_TIMEOUT_S = 60

Fetch = Callable[["Jar", Path], Path]
"""Download a jar somewhere under the given folder and return where."""


@dataclass(frozen=True)
class Jar:
    """One line of the lock file."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name in the library folder; Maven's."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def locked_jars(text: str | None = None) -> list[Jar]:
    """Parse the lock file's text (default: the committed one).

    Raises ValueError on a line that is not ``group:artifact:version sha256``.
    """
    if text is None:
        text = files("infra.kafka").joinpath("jars.lock").read_text("utf-8")
    jars = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            coordinates, digest = line.split()
            group, artifact, version = coordinates.split(":")
        except ValueError as error:
            raise ValueError(f"jars.lock:{number}: not 'group:artifact:version sha256'") from error
        jars.append(Jar(group, artifact, version, digest))
    return jars


def fetch_jars(
    library: Path,
    jars: Sequence[Jar],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    fetch: Fetch | None = None,
) -> int:
    """Make ``library`` hold every jar; returns how many had to be downloaded.

    ``progress`` is told how many jars of the missing ones are there. Jars already in place were
    checked when they were put there.

    Raises:
        ConfigurationError: a jar cannot be downloaded, or is not the pinned one.
    """
    library.mkdir(parents=True, exist_ok=True)
    missing = [jar for jar in jars if not (library / jar.filename).is_file()]
    if not missing:
        return 0
    download = fetch or _fetch_with_jgo
    # Beside the library, so that the rename below stays within one file system.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=library.resolve()) as folder:

        def place(jar: Jar) -> None:
            path = download(jar, Path(folder))
            digest = sha256_of(path)
            if digest != jar.sha256:
                raise ConfigurationError(
                    f"{jar} as downloaded has SHA-256 {digest}, the pinned one is {jar.sha256}: "
                    "the repository or a proxy in between served another file"
                )
            os.replace(path, library / jar.filename)

        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for done, _ in enumerate(pool.map(place, missing), start=1):
                progress(done, len(missing))
    return len(missing)


def _fetch_with_jgo(jar: Jar, folder: Path) -> Path:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise ConfigurationError(
            "the embedded broker needs the `local` extra: run `make setup`"
        ) from error
    import requests

    context = MavenContext(resolver=PythonResolver(), repo_cache=folder, timeout=DOWNLOAD_TIMEOUT_S)
    component = context.project(jar.group, jar.artifact).at_version(jar.version)
    try:
        path = context.resolver.download(component.artifact())
    except (requests.RequestException, RuntimeError, OSError) as error:
        raise ConfigurationError(
            f"cannot download {jar} from Maven Central: {error}. Check the network or its proxy "
            "(HTTPS_PROXY), then run `feedloom kafka start` again; jars already there are kept."
        ) from error
    if path is None:
        raise ConfigurationError(f"Maven Central has no {jar}")
    return Path(path)
