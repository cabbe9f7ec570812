"""A real collector and a real Prometheus, on the configurations and rules that are shipped.

Addresses are changed to free ports of this machine, and traces and logs go nowhere; nothing else
is.
"""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from infra.local.supervisor import Child
from tests.conftest import ROOT

SUMMARY = pytest.StashKey[str]()
"""What is printed at the end."""
SHIPPED = ROOT / "infra" / "deploy" / "observability"
BUILT = ROOT / ".feedloom" / "otelcol" / "otelcol"
EXPORT_INTERVAL_MS = 15_000
"""Of metrics, as docs/operations has it."""
READY_S = 60.0


class Observatory:
    """A context manager. ``environment``: what makes a process send to the collector."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = iter(_free_ports(6))
        self._otlp, self._otlp_grpc, self._scraped, self._own, self._health, self._web = ports
        self._children: list[Child] = []
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._otlp}",
            "OTEL_METRIC_EXPORT_INTERVAL": str(EXPORT_INTERVAL_MS),
        }

    def __enter__(self) -> Self:
        with ExitStack() as started:
            started.callback(self.close)
            self.collector = self._run(
                "collector",
                [_program("otelcol", "otelcol-contrib"), f"--config={self._collector_yaml()}"],
                f"http://127.0.0.1:{self._health}/",
            )
            self._run(
                "prometheus",
                [
                    _program("prometheus"),
                    f"--config.file={self._prometheus_yaml()}",
                    f"--storage.tsdb.path={self._folder / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._web}",
                ],
                f"http://127.0.0.1:{self._web}/-/ready",
            )
            started.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both."""
        for child in reversed(self._children):
            child.stop(10)

    def query(self, promql: str) -> list[dict[str, Any]]:
        """The series of an instant query: ``metric`` and ``value`` or, of a range, ``values``."""
        answer = httpx.get(
            f"http://127.0.0.1:{self._web}/api/v1/query", params={"query": promql}, timeout=30
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    def wait_for(self, promql: str, timeout_s: float, check: Callable[[], None]) -> None:
        """Until a query has any series. ``check`` may raise. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not self.query(promql):
            check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing in {timeout_s:.0f} s for {promql}")
            time.sleep(0.5)

    def first_fired(self, alert: str, labels: Mapping[str, str]) -> float | None:
        """Epoch seconds at which an alert with these labels, of those that it has, first fired."""
        chosen = {"alertname": alert, "alertstate": "firing", **labels}
        selector = ",".join(f'{name}="{value}"' for name, value in chosen.items())
        series = self.query(f"ALERTS{{{selector}}}[2h]")
        return min((float(one["values"][0][0]) for one in series), default=None)

    def _run(self, name: str, command: Sequence[str], ready: str) -> Child:
        child = Child(name, command, log=self._folder / f"{name}.log", environment={})
        self._children.append(child)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            child.check()
            with suppress(httpx.TransportError):
                if httpx.get(ready).status_code == 200:
                    return child
            time.sleep(0.1)
        raise TimeoutError(f"{name} is not ready:\n{child.log_tail()}")

    def _collector_yaml(self) -> Path:
        with _changed(SHIPPED / "collector.yaml", self._folder / "collector.yaml") as config:
            protocols = config["receivers"]["otlp"]["protocols"]
            protocols["grpc"]["endpoint"] = f"127.0.0.1:{self._otlp_grpc}"
            protocols["http"]["endpoint"] = f"127.0.0.1:{self._otlp}"
            config["exporters"]["prometheus"]["endpoint"] = f"127.0.0.1:{self._scraped}"
            config["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{self._health}"
            pipelines = config["service"]["pipelines"]
            for name in ("traces", "logs"):
                for exporter in pipelines[name]["exporters"]:
                    del config["exporters"][exporter]
                pipelines[name]["exporters"] = ["nop"]
            config["exporters"]["nop"] = {}
            (reader,) = config["service"]["telemetry"]["metrics"]["readers"]
            reader["pull"]["exporter"]["prometheus"] |= {"host": "127.0.0.1", "port": self._own}
        return self._folder / "collector.yaml"

    def _prometheus_yaml(self) -> Path:
        with _changed(
            SHIPPED / "prometheus" / "prometheus.yaml", self._folder / "prometheus.yaml"
        ) as config:
            config["rule_files"] = [
                str(SHIPPED / "prometheus" / name) for name in config["rule_files"]
            ]
            ports = {"feedloom": self._scraped, "otel-collector": self._own}
            jobs = [job for job in config["scrape_configs"] if job["job_name"] in ports]
            assert len(jobs) == len(ports)
            for job in jobs:
                job["static_configs"] = [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]
            config["scrape_configs"] = jobs
        return self._folder / "prometheus.yaml"


@contextmanager
def _changed(source: Path, target: Path) -> Iterator[dict[str, Any]]:
    config = yaml.safe_load(source.read_text())
    yield config
    target.write_text(yaml.safe_dump(config, sort_keys=False))


def _program(*names: str) -> str:
    if names[0] == BUILT.name and BUILT.is_file():
        return str(BUILT)
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise FileNotFoundError(f"no {names[0]}: `make drills` gets it, and says what it needs")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
