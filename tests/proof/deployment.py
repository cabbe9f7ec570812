"""A whole platform in processes of its own: broker, workers, gateway, trainer; and its traffic.

What is started here is what users start (``feedloom ...``); it is looked at by ``journal``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import psutil

from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.local.supervisor import Child, feedloom_command
from infra.settings import BootstrapSettings, KafkaSettings
from tests.conftest import ROOT, share_jars
from tests.learning import prepare, register, settings_at
from tests.proof.journal import Journal, parsed
from tests.proof.rules import Ledger, broken, registry_is_one, serving

MODEL = "default"
GROUP = "feedloom-workers"
PARTITIONS = 3
SHAPE = BootstrapSettings(hidden_size=64, layers=2, heads=2, context=256, vocab_size=300)
READY_S = 240.0
DRAIN_S = 60.0
BROKER_HEAP_MB = 256
"""Little, so that it is full soon: what grows then is a leak."""
LAGGING = (
    "generation.requests",
    "generation.requests.batch",
    "generation.results",
    "feedback.events",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a deployment consists of. ``min_examples``: of a training round."""

    brokers: int = 1
    engine: str = "memory"
    workers: int = 2
    min_examples: int = 60
    rate: float = 4.0
    max_tokens: int = 24
    seed: int = 1
    feedback_window_s: float = 600.0


class Deployment:
    """Below a folder. Use as a context; what was started is stopped at its end."""

    def __init__(self, home: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self.home, self.plan = home, plan
        self.say = say
        share_jars(home)
        self.kafka = EmbeddedKafka(home, brokers=plan.brokers, heap_mb=BROKER_HEAP_MB)
        self.children: dict[str, Child] = {}
        self.url: str | None = None
        self._since: dict[str, int] = {}
        self._ledger = home / "ledger.jsonl"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for child in reversed(self.children.values()):
            child.stop(DRAIN_S)
        self.kafka.stop()

    def _start(self) -> None:
        self.say(f"Kafka with {self.plan.brokers} brokers, in {self.home}")
        status = self.kafka.start(attached=True)
        self.settings = KafkaSettings(bootstrap_servers=status.bootstrap_servers)
        apply_catalogue(self.settings, partitions=PARTITIONS)
        self.servers, self.prefix = status.bootstrap_servers, self.settings.topic_prefix
        self.journal = Journal(self.servers, self.prefix)
        self._publish_first()
        self.say(f"{self.plan.workers} workers ({self.plan.engine} engine), gateway, trainer")
        for number in range(self.plan.workers):
            self.start_worker(f"worker-{number}")
        for number in range(self.plan.workers):
            self.wait_for_worker(f"worker-{number}")
        self.start_gateway()
        self.start_trainer()

    def _publish_first(self) -> None:
        settings = settings_at(self.home, self.settings).model_copy(update={"bootstrap": SHAPE})
        first = prepare(settings)
        register(settings, KafkaBus(self.settings), first, model=MODEL)
        self.run("models", "register", str(first))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FEEDLOOM_HOME": str(self.home),
            "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS": self.servers,
            "FEEDLOOM_KAFKA__TOPIC_PREFIX": self.prefix,
            "OMP_NUM_THREADS": "1",
        }

    def command(self, name: str, words: Sequence[str]) -> Sequence[str]:
        """The command of a process of this name."""
        return feedloom_command(words)

    def start(self, name: str, words: Sequence[str], **environment: str) -> Child:
        """``feedloom WORDS`` under a name, which it takes over from one that ended."""
        child = Child(
            name,
            self.command(name, words),
            log=self.home / "logs" / f"{name}.log",
            environment={**self.environment, **environment},
        )
        self.children[name] = child
        return child

    def start_worker(self, name: str) -> Child:
        """Returns at once."""
        words = ["worker", "--engine", self.plan.engine]
        if self.plan.engine == "memory":
            words += ["--token-interval", "0.002"]
        self.journal.read()
        self._since[name] = len(self.journal.records["platform.workers"])
        return self.start(
            name,
            words,
            FEEDLOOM_WORKER__WORKER_ID=name,
            FEEDLOOM_WORKER__SESSION_TIMEOUT_S="6",
            FEEDLOOM_WORKER__PIN_CORES="false",
            FEEDLOOM_WORKER__KV_CACHE_GB="0.25",
            FEEDLOOM_WORKER__FEEDBACK_WINDOW_S=f"{self.plan.feedback_window_s:g}",
        )

    def wait_for_worker(self, name: str) -> None:
        """Until its topic says that it is ready, since it was started."""

        def ready() -> bool:
            self.journal.read()
            new = self.journal.records["platform.workers"][self._since[name] :]
            return any(
                seen.key == name and seen.event is not None and seen.event["state"] == "ready"
                for seen in new
            )

        self.wait(f"{name} to be ready", ready, READY_S, child=name)

    def start_gateway(self) -> None:
        """Returns once it is ready."""
        child = self.start("gateway", ["gateway", "--port", "0"])

        def ready() -> bool:
            found = re.search(r" listens on (http://\S+)", child.log_tail(1_000))
            if found is None:
                return False
            self.url = found[1]
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200
            return False

        self.wait("the gateway to be ready", ready, READY_S, child="gateway")

    def start_trainer(self) -> Child:
        """Returns at once."""
        options = {
            "BLOCK_SIZE": 32,
            "MIN_EXAMPLES": self.plan.min_examples,
            "NUM_TRAIN_EPOCHS": 1,
            "WARMUP_STEPS": 1,
            "LORA_RANK": 0,
            "MAX_FORGETTING": 10.0,
            "THREADS": 1,
            "BF16": "false",
        }
        named = {f"FEEDLOOM_TRAINER__{key}": str(value) for key, value in options.items()}
        return self.start("trainer", ["trainer", "run"], **named)

    def key(self) -> str:
        """A new API key of a caller."""
        words = ["keys", "create", "--tenant", "proof", "--name", "proof", "--role", "caller"]
        return self.run(*words).strip()

    def run(self, *words: str) -> str:
        """``feedloom WORDS`` to its end; what it printed."""
        done = subprocess.run(
            feedloom_command(words),
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"feedloom {' '.join(words)}: {done.stderr[-2_000:]}")
        return done.stdout

    def start_traffic(self, *, number: int = 0) -> None:
        """Until ``stop_traffic``. ``number``: of several in a row, none like another.

        Returns once it has begun: before, it would just end if it were stopped.
        """
        words = [self.servers, self.prefix, str(self._ledger)]
        words += ["--rate", str(self.plan.rate), "--max-tokens", str(self.plan.max_tokens)]
        words += ["--seed", f"{self.plan.seed}/{number}"]
        assert self.url is not None
        before = self._ledger_size()
        words += ["--http", self.url, "--key", self.key()]
        self.children["traffic"] = Child(
            "traffic",
            [sys.executable, "-m", "tests.proof.traffic", *words],
            log=self.home / "logs" / "traffic.log",
            environment={"PYTHONPATH": str(ROOT)},
        )
        self.wait("traffic", lambda: self._ledger_size() > before, READY_S, child="traffic")

    def _ledger_size(self) -> int:
        return self._ledger.stat().st_size if self._ledger.exists() else 0

    def stop_traffic(self) -> dict[str, int]:
        """What it sent, by kind, and what failed."""
        traffic = self.children.pop("traffic")
        if (status := traffic.stop(300)) != 0:
            raise AssertionError(f"traffic ended with {status}: {traffic.log_tail()}")
        last = self._ledger.read_text("utf-8").splitlines()[-1]
        counts: dict[str, int] = (parsed(last.encode()) or {})["counts"]
        return counts

    def ledger(self) -> Ledger:
        """What was acknowledged so far."""
        found = Ledger()
        for text in self._ledger.read_text("utf-8").splitlines():
            line = parsed(text.encode())
            assert line is not None
            kind = line["kind"]
            if kind in ("request", "http"):
                found.requests.add(line["id"])
            elif kind == "feedback":
                found.feedback[line["id"]] = line["request"]
            elif kind == "malformed":
                topic, partition, offset = line["place"]
                found.malformed.add((topic, partition, offset))
        return found

    def faults(self, stuck_s: float = 60.0) -> list[str]:
        """Broken rules, once the platform is at rest or has made no progress for so long."""
        last: list[str] = []
        since = time.monotonic()
        while True:
            self.journal.read()
            found = self._faults()
            if not found:
                return []
            if found != last:
                last, since = found, time.monotonic()
            elif time.monotonic() - since > stuck_s:
                return found
            time.sleep(0.5)

    def keep_records(self) -> None:
        """All records into ``records.jsonl``, with what the join keeps, to see what went wrong."""
        path = self.home / "records.jsonl"
        self.journal.write(path)
        table = Journal(self.servers, self.prefix, [f"{GROUP}-feedback-join-changelog"])
        table.read()
        table.write(path)

    def _faults(self) -> list[str]:
        found = broken(self.journal.records, self.ledger())
        lag = self.journal.lag(GROUP, LAGGING)
        if lag:
            where = ", ".join(f"{topic}/{partition}: {n}" for (topic, partition), n in lag.items())
            found.append(f"{GROUP} has not committed all: {where}")
        workers = [name for name in self.children if name.startswith("worker")]
        views = serving(self.journal.records, MODEL, workers)
        return found + registry_is_one(self.journal.records, MODEL, views)

    def wait(
        self, what: str, done: Callable[[], bool], timeout_s: float, *, child: str | None = None
    ) -> None:
        """Until ``done``; raises AssertionError when it is too long, or as the child has ended."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if child is not None:
                self.children[child].check()
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s for {what}")
            time.sleep(0.1)

    def processes(self) -> Mapping[str, psutil.Process]:
        """All that run, by name; vLLM's engine beside its worker."""
        found = {}
        for name, child in self.children.items():
            if child.exit_status is None and name != "traffic":
                found[name] = psutil.Process(child.pid)
                for below in found[name].children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        if "EngineCore" in " ".join(below.cmdline()):
                            found[f"{name}'s engine"] = below
        status = self.kafka.status()
        for number, pid in enumerate(status.pids if status else (), 1):
            found[f"broker-{number}"] = psutil.Process(pid)
        return found
