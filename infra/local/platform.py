"""The whole platform on this machine, brought up in order and taken down in reverse.

Broker (unless the settings name one), topics, the embedded default model, a worker, a trainer,
the rollout controller, and the gateway and a trace UI if they are asked for.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from infra.contracts.errors import FatalError
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus, resolve_kafka
from infra.kafka.topics import apply_catalogue
from infra.local.supervisor import Supervisor, feedloom_command
from infra.local.trace_ui import TraceUi
from infra.local.watch import PlatformWatch
from infra.settings import KafkaSettings, Settings

WORKER_START_TIMEOUT_S = 300.0
STOP_MARGIN_S = 15.0

Say = Callable[[str], None]


def span_folder(settings: Settings, home: Path | None = None) -> Path:
    """Where the processes of a state directory write their spans, unless the settings say."""
    return settings.telemetry.span_directory or (home or settings.home) / "spans"


class LocalPlatform:
    """Context manager around the broker and its services. ``say`` is told of each step.

    ``trace_ui``: to run, and to send every service's spans to. ``engine``: the worker's; the memory
    engine stands in for vLLM where the text does not matter.
    """

    def __init__(
        self,
        settings: Settings,
        say: Say,
        *,
        environment: Mapping[str, str] | None = None,
        quiet: bool = False,
        gateway: bool = False,
        trace_ui: TraceUi | None = None,
        engine: Literal["vllm", "memory"] = "vllm",
    ) -> None:
        self.settings = settings
        self._say = say
        self._quiet = quiet
        self._gateway = gateway
        self._trace_ui = trace_ui
        self._engine = engine
        self._extra = dict(environment or {})
        self._broker: EmbeddedKafka | None = None
        self._owns_broker = False
        self._secured = False
        self._supervisor: Supervisor | None = None
        self._bus: KafkaBus | None = None
        self._watch: PlatformWatch | None = None

    @property
    def bus(self) -> KafkaBus:
        """The bus, once started."""
        assert self._bus is not None, "start() first"
        return self._bus

    @property
    def watch(self) -> PlatformWatch:
        """What workers and registry say, once started."""
        assert self._watch is not None, "start() first"
        return self._watch

    def check(self) -> None:
        """Raise ChildStopped if a service has ended."""
        assert self._supervisor is not None, "start() first"
        self._supervisor.check()

    def start(self) -> None:
        """Bring everything up; returns when a worker serves the model.

        Raises ConfigurationError when the machine lacks something, FatalError when a part fails.
        """
        if self._trace_ui is not None:
            self._trace_ui.check_port()
            self._trace_ui.install(self._say)
        kafka = self._start_broker()
        self._bus = KafkaBus(kafka)
        changed = apply_catalogue(kafka)
        self._say(f"topics: {len(changed)} created or changed")
        self._watch = PlatformWatch(self._bus)
        environment = self._child_environment(kafka)
        self._supervisor = Supervisor(
            logs=self.settings.logs,
            environment=environment,
            stop_timeout_s=self.settings.worker.drain_timeout_s + STOP_MARGIN_S,
        )
        # First, so that no span of the others is lost; it is the last to be stopped, too.
        self._start_trace_ui()
        # The worker imports vLLM while the model is built or registered, and waits for it.
        engine = [] if self._engine == "vllm" else ["--engine", self._engine]
        self._start("worker", ["worker", *engine], user="worker")
        self._bootstrap(environment)
        self._start("trainer", ["trainer", "run"], user="trainer")
        self._start("rollouts", ["rollouts", "run"], user="rollouts")
        if self._gateway:
            self._start("gateway", ["gateway"], user="console")
        model = self.settings.worker.model
        self._say(f"waiting for the worker to load {model} (log: {self.settings.logs}/worker.log)")
        seconds = self._watch.wait_for(
            f"a ready worker that serves {model!r}",
            lambda: self.watch.serving(model),
            timeout_s=WORKER_START_TIMEOUT_S,
            check=self.check,
        )
        self._say(f"worker ready after {seconds:.0f} s")

    def stop(self) -> None:
        """Drain and stop every child, then the broker if this platform started it."""
        if self._supervisor is not None:
            self._say("stopping: worker and trainer drain")
            self._supervisor.stop()
        if self._watch is not None:
            self._watch.close()
        if self._bus is not None:
            self._bus.close()
        if self._broker is not None and self._owns_broker:
            self._broker.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_broker(self) -> KafkaSettings:
        kafka = self.settings.kafka
        if kafka.bootstrap_servers is not None:
            self._say(f"Kafka at {kafka.bootstrap_servers}, as the settings say")
            return kafka
        self._broker = EmbeddedKafka(
            self.settings.home, port=kafka.local_port, heap_mb=kafka.local_heap_mb
        )
        self._owns_broker = self._broker.status() is None
        status = self._broker.start(progress=self._say, attached=True)
        self._secured = status.secured
        pids = ", ".join(f"pid {pid}" for pid in status.pids)
        self._say(f"Kafka at {status.bootstrap_servers} ({pids})")
        return resolve_kafka(self.settings)

    def _bootstrap(self, environment: Mapping[str, str]) -> None:
        command = feedloom_command(["models", "bootstrap", *(["--quiet"] if self._quiet else [])])
        status = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
        if status != 0:
            raise FatalError(f"`feedloom models bootstrap` ended with status {status}")

    def _child_environment(self, kafka: KafkaSettings) -> dict[str, str]:
        assert kafka.bootstrap_servers is not None
        environment = {"FEEDLOOM_HOME": str(self.settings.home), **self._extra}
        if not self._secured:
            # Of a secured one, children find address and password in the home.
            environment["FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
        if self._trace_ui is not None:
            environment |= self._trace_ui.exporters({**os.environ, **environment})
        return environment

    def _start_trace_ui(self) -> None:
        if self._trace_ui is None:
            return
        assert self._supervisor is not None, "start() first"
        self._supervisor.run("traces", self._trace_ui.command, self._trace_ui.environment())
        self._say(f"waiting for the trace UI (log: {self.settings.logs}/traces.log)")
        seconds = self._trace_ui.wait(self.check)
        self._say(f"traces at {self._trace_ui.url} after {seconds:.0f} s")

    def _start(self, name: str, arguments: Sequence[str], *, user: str) -> None:
        """A service; on a secured broker it is ``user``, and has its rights only."""
        assert self._supervisor is not None, "start() first"
        self._supervisor.start(
            name, arguments, {"FEEDLOOM_KAFKA__LOCAL_USER": user} if self._secured else None
        )
