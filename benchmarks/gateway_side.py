"""The platform's HTTP interface as a side: a gateway and a worker, both children."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from benchmarks.harness import Broken
from benchmarks.http_side import over_http
from benchmarks.processes import freeze, thaw
from benchmarks.stage import Deployment
from benchmarks.turns import WORKER_SETTINGS, freeze_idle
from infra.local.supervisor import Child, feedloom_command
from producers.gateway.presence import live_gateways

READY_S = 60.0


class Gateway:
    """Implements ``turns.Contestant``. Callers bring an API key, as they would."""

    def __init__(self, place: Deployment, *, engine: str = "vllm") -> None:
        self._place = place
        self.worker: Child = place.worker(engine=engine, **WORKER_SETTINGS)
        self.key = key_for(place, "bench")
        name = f"{place.kafka.topic_prefix}gateway"
        self.child = place.stage.start(
            name,
            feedloom_command(["gateway", "--port", "0"]),
            {
                **place.environment,
                "FEEDLOOM_GATEWAY__GATEWAY_ID": name,
                # The worker's, that a request is not held back at the one and taken by the other.
                "FEEDLOOM_GATEWAY__REQUEST_TIMEOUT_S": "600",
            },
        )
        self.url = self._await_url(name)
        self.await_ready()

    @property
    def headers(self) -> dict[str, str]:
        """Of every call."""
        return {"Authorization": f"Bearer {self.key}"}

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`turns.Contestant`."""
        for child in (self.worker, self.child):
            thaw(child.pid)
        try:
            self.worker.check()
            self.child.check()
            self.await_ready()
            return asdict(over_http(self.url, load, self.headers))
        finally:
            self.freeze()

    def log_tail(self) -> str:
        """See :class:`turns.Contestant`."""
        return f"{self.child.log_tail()}\nand its worker's:\n{self.worker.log_tail()}"

    def close(self) -> None:
        """Stop both."""
        self._place.stage.stop(self.child)
        self._place.stage.stop(self.worker)

    def freeze(self) -> None:
        """Stop both processes until the next turn."""
        freeze_idle(self.worker)
        if self.child.exit_status is None:
            freeze(self.child.pid)

    def _await_url(self, name: str) -> str:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            self.child.check()
            for one in live_gateways(self._place.bus, now_ms=time.time_ns() // 1_000_000):
                if one.gateway_id == name:
                    return one.url
            time.sleep(0.2)
        raise Broken(f"the gateway did not come:\n{self.child.log_tail()}")

    def await_ready(self) -> None:
        """A worker that was stopped counts as gone until it reports again."""
        deadline = time.monotonic() + READY_S
        reason = "it does not answer"
        while time.monotonic() < deadline:
            self.child.check()
            try:
                with urlopen(f"{self.url}/readyz", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except HTTPError as error:
                with suppress(ValueError):
                    reason = json.loads(error.read())["reason"]
            except URLError as error:
                reason = str(error.reason)
            time.sleep(0.2)
        raise Broken(f"the gateway is not ready: {reason}\n{self.child.log_tail()}")


def key_for(place: Deployment, tenant: str) -> str:
    """A new API key of a tenant."""
    arguments = ["keys", "create", "--tenant", tenant, "--name", "bench"]
    arguments += ["--role", "caller", "--role", "feedback"]
    made = subprocess.run(
        feedloom_command(arguments),
        env={**os.environ, **place.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise Broken(f"no API key: {made.stderr}")
    return made.stdout.strip()
