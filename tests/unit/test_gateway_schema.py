"""The running gateway against its own description, by a tool that looks for disagreement."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from infra.testing import InMemoryBus
from tests.gateway import KnownKeys, ScriptedWorker, running_gateway, seed

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
UNSAID = ",".join(
    [
        # Which fields contradict each other a schema does not say: such a body is refused.
        "positive_data_acceptance",
        # A request that was stopped by DELETE can still be looked at, as one that ended.
        "use_after_free",
    ]
)
# Statuses a body that breaks its schema may be answered with: the tool's own list has no 413,
# which is ours where a text is longer than its field allows and than a body may be.
CONFIGURATION = """
[checks.negative_data_rejection]
expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
"""


def test_calls_and_answers_are_as_described(tmp_path: Path) -> None:
    configuration = tmp_path / "schemathesis.toml"
    configuration.write_text(CONFIGURATION, encoding="utf-8")
    with ExitStack() as stack:
        bus = InMemoryBus()
        seed(bus)
        stack.callback(ScriptedWorker(bus).close)
        files = str(tmp_path / "files")
        gateway = stack.enter_context(
            running_gateway(bus, KnownKeys.of("acme"), files_url=files, max_upload_bytes=100_000)
        )
        checked = subprocess.run(
            [
                *(str(SCHEMATHESIS), "--config-file", str(configuration)),
                *("run", f"{gateway.url}/openapi.json"),
                *("--header", "Authorization: Bearer key-acme"),
                *("--phases", "examples,coverage,fuzzing,stateful"),
                *("--max-examples", "15", "--generation-database", "none"),
                *("--checks", "all", "--exclude-checks", UNSAID, "--no-color"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert checked.returncode == 0, checked.stdout[-6000:] + checked.stderr[-2000:]
    assert "generated" in checked.stdout
