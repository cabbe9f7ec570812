"""The sides of bench_peers: each one's processes, started, loaded, stopped between turns."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import psutil
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from benchmarks.gateway_side import Gateway
from benchmarks.harness import Unavailable, project_home
from benchmarks.http_side import (
    VLLM_ENVIRONMENT,
    VllmServe,
    await_answer,
    engine_dtype,
    free_port,
    over_http,
    tuned_environment,
)
from benchmarks.load import Job, Window
from benchmarks.peers_topics import TopicClient
from benchmarks.processes import cpu_seconds, environment, freeze, groups, pin_engine, thaw
from benchmarks.rpc import Served
from benchmarks.sdk_side import through_kafka
from benchmarks.stage import Deployment, Stage
from benchmarks.turns import SETTLE_S, Contestant, drive
from infra.contracts.catalogue import REQUESTS

START_S = 480.0
"""Until a side answers for the first time. Ray imports vLLM in four processes."""
TURN_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0
PROBE = {"concurrency": 1, "ramp_s": 0.0, "window_s": 0.1}
"""One request. A side that was stopped for long may have to join its consumer group again."""


class PeerSide(Contestant, Protocol):
    """A contestant whose processes are told apart, and which ends alone."""

    leaders: list[int]
    """Ids of the processes that, with their descendants, are the side."""

    def close(self) -> None:
        """Stop its processes."""
        ...


class StartedSide(PeerSide, Protocol):
    """A side that one command starts."""

    settings: int
    """Arguments and variables that its user gives."""


class Metered:
    """Notes the CPU time of a load; implements ``turns.Contestant``.

    The load follows a single request, which has to be answered first and does not count.
    """

    def __init__(self, side: PeerSide, stage: Stage) -> None:
        self.side = side
        self._stage = stage

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """The side's window, with ``cpu_s_per_request`` of side, broker and this process."""
        self.side.turn(PROBE)
        before = self._seconds()
        window = self.side.turn(load)
        after = self._seconds()
        window["cpu_s_per_request"] = per_request(before, after, window["requests"])
        return window

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self.side.log_tail()

    def _seconds(self) -> dict[str, float]:
        broker = self._stage.broker_process
        assert broker is not None
        return {
            "side": sum(cpu_seconds(leader) for leader in self.side.leaders),
            "broker": cpu_seconds(broker.pid),
            "client": time.process_time(),
        }


def per_request(
    before: Mapping[str, float], after: Mapping[str, float], requests: int
) -> dict[str, float]:
    """What each of them took between the two, a request."""
    return {name: (after[name] - before[name]) / requests for name in before}


def rest(leaders: Iterable[int]) -> None:
    """Stop families once what they still have to do is done."""
    time.sleep(SETTLE_S)
    for group in {group for leader in leaders for group in groups(leader)}:
        with suppress(ProcessLookupError):
            freeze(group)


def wake(leaders: Iterable[int]) -> None:
    """Let stopped families run again."""
    for group in {group for leader in leaders for group in groups(leader)}:
        thaw(group)


class InProcess:
    """AsyncLLM whose caller is in its own process."""

    def __init__(self, stage: Stage, model: Path) -> None:
        # The worker's own environment; `Served` hands down this process's.
        self.settings = 0
        with environment({**tuned_environment(), "PEERS_DTYPE": engine_dtype()}):
            self._process = Served(stage, "asyncllm", "benchmarks.peers_asyncllm", str(model))
        self.leaders = [self._process.pid]
        pin_engine(self._process.pid)
        rest(self.leaders)

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        wake(self.leaders)
        window: dict[str, Any] = self._process.ask(TURN_TIMEOUT_S, **load)
        rest(self.leaders)
        return window

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self._process.log_tail()

    def close(self) -> None:
        """See :class:`PeerSide`."""
        self._process.close()


class OwnServer:
    """``vllm serve``, tuned as the others' engines are."""

    def __init__(self, stage: Stage, model: Path) -> None:
        self._server = VllmServe(stage, model, tuned=True)
        self.leaders = [self._server.child.pid]
        words = psutil.Process(self._server.child.pid).cmdline()
        self.settings = sum(word.startswith("--") for word in words)

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        return self._server.turn(load)

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self._server.log_tail()

    def close(self) -> None:
        """See :class:`PeerSide`."""
        self._server.close()


class Program:
    """A peer's program as a child, with the variables that it reads; base of three sides.

    ``tuned``: its engine in one process, on cores of its own, as the worker runs it.
    """

    def __init__(
        self,
        stage: Stage,
        name: str,
        command: list[str],
        variables: Mapping[str, str],
        *,
        tuned: bool,
    ) -> None:
        self.stage = stage
        self._tuned = tuned
        self.settings = len(variables)
        self.child = stage.start(
            name,
            command,
            {
                **VLLM_ENVIRONMENT,
                "PEERS_DTYPE": engine_dtype(),
                **(tuned_environment() if tuned else {}),
                **variables,
            },
        )
        self.leaders = [self.child.pid]

    def settle(self) -> None:
        """Once it answers: give the engine its cores where it is tuned, and stop it."""
        try:
            self.apply({**PROBE, "timeout_s": START_S})
        except Exception as error:
            error.add_note(f"at the start of {self.child.name}; its log ends:\n{self.log_tail()}")
            raise
        if self._tuned:
            pin_engine(self.child.pid)
        for group in groups(self.child.pid):
            self.stage.watch_over(group)
        rest(self.leaders)

    def apply(self, load: Mapping[str, Any]) -> Window:
        """Put the load on it."""
        raise NotImplementedError

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        wake(self.leaders)
        try:
            self.child.check()
            return asdict(self.apply(load))
        finally:
            rest(self.leaders)

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self.child.log_tail()

    def close(self) -> None:
        """See :class:`PeerSide`. What the program leaves behind is killed."""
        wake(self.leaders)
        others = groups(self.child.pid) - {self.child.pid}
        self.stage.stop(self.child, STOP_TIMEOUT_S)
        for group in others:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            self.stage.released(group)


class _Answers:
    """``TopicClient`` as ``load.Side``."""

    def __init__(self, client: TopicClient) -> None:
        self._client = client

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each chunk."""
        async for chunk in self._client.stream(job.prompt, job.max_tokens):
            yield chunk.tokens


class TopicWorker(Program):
    """A worker that reads requests from a topic and writes chunks to another: FastStream, Faust."""

    def __init__(self, stage: Stage, name: str, command: list[str], model: Path) -> None:
        self._brokers = stage.bootstrap_servers
        self._prefix = f"{name}."
        admin = KafkaAdminClient(bootstrap_servers=self._brokers)
        admin.create_topics(
            [
                NewTopic(self._prefix + topic, REQUESTS.partitions, 1)
                for topic in ("requests", "chunks")
            ]
        )
        admin.close()
        variables = {
            "PEERS_BROKERS": self._brokers,
            "PEERS_PREFIX": self._prefix,
            "PEERS_MODEL": str(model),
        }
        super().__init__(stage, name, command, variables, tuned=True)
        self.settle()

    def apply(self, load: Mapping[str, Any]) -> Window:
        """See :class:`Program`."""

        async def run() -> Window:
            async with TopicClient(self._brokers, self._prefix) as client:
                return await drive(load)(_Answers(client))

        return asyncio.run(run())


def faststream(stage: Stage, model: Path) -> TopicWorker:
    """In the peers' environment."""
    command = [str(peers_python()), "-m", "benchmarks.peers_faststream"]
    return TopicWorker(stage, "faststream", command, model)


def faust(stage: Stage, model: Path) -> TopicWorker:
    """In the project's environment, which has Faust."""
    command = [sys.executable, "-m", "benchmarks.peers_faust"]
    command += ["--datadir", str(stage.home / "faust"), "worker", "--without-web", "-l", "warn"]
    return TopicWorker(stage, "faust", command, model)


class RayServe(Program):
    """Ray Serve LLM: its head, proxy, controller, ingress and one replica, all children.

    On a CPU it takes no executor but vLLM's ``mp``: the engine is two processes, which wait
    for each other in turn and would be worse off on half of two cores.
    """

    def __init__(self, stage: Stage, model: Path) -> None:
        port = free_port()
        self._base = f"http://127.0.0.1:{port}"
        super().__init__(
            stage,
            "ray-serve",
            [str(peers_python()), "-m", "benchmarks.peers_ray"],
            {"PEERS_MODEL": str(model), "PEERS_PORT": str(port), **RAY_ENVIRONMENT},
            tuned=False,
        )
        # Those are the benchmark's own: they keep it apart from others on the machine.
        self.settings -= len(RAY_ENVIRONMENT)
        await_answer(f"{self._base}/v1/models", self.child, timeout_s=START_S)
        self.settle()

    def apply(self, load: Mapping[str, Any]) -> Window:
        """See :class:`Program`."""
        return over_http(self._base, load)


RAY_ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Processes that were stopped for minutes have not died.
    "RAY_health_check_failure_threshold": "1000",
}


class OverKafka:
    """Feedloom's SDK and the worker that the gateway side started: one engine for the two."""

    def __init__(self, place: Deployment, gateway: Gateway) -> None:
        self._place = place
        self._worker = gateway.worker
        self.leaders = [self._worker.pid]

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        wake(self.leaders)
        try:
            self._worker.check()
            return asdict(through_kafka(self._place.bus, drive(load)))
        finally:
            rest(self.leaders)

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self._worker.log_tail()

    def close(self) -> None:
        """The worker is the gateway's."""


class OverHttp:
    """Feedloom's gateway in front of Kafka and the worker."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.leaders = [gateway.worker.pid, gateway.child.pid]

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        return self._gateway.turn(load)

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self._gateway.log_tail()

    def close(self) -> None:
        """See :class:`PeerSide`."""
        self._gateway.close()


def peers_python() -> Path:
    """The interpreter of the environment that holds FastStream and Ray. Raises Unavailable."""
    found = project_home() / "peers" / "bin" / "python"
    if not found.is_file():
        raise Unavailable("FastStream and Ray are not installed: make peers")
    return found
