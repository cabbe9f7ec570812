"""Ten faults on a live platform: each raises its alert, whose runbook names the cause.

The faults, their alerts and how soon those must come are the table in
``docs/operations/README.md``. Real broker, real vLLM, real trainers, and the shipped rules in a
real Prometheus. Drills that take minutes run side by side; series are told apart by worker, model
and topic.
"""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from infra.contracts import catalogue
from infra.contracts.events.generation import SamplingParameters
from infra.contracts.events.model import ModelVersionPublished
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.local.supervisor import Child, feedloom_command
from infra.local.watch import PlatformWatch
from infra.registry.client import RegistryWatcher, publish_version
from infra.registry.store import ArtifactStore
from infra.settings import KafkaSettings
from producers.client import GenerationClient
from tests import learning
from tests.conftest import PARTITIONS, ROOT, WORDS, Weights
from tests.drills.observatory import SUMMARY, Observatory
from tests.integration.conftest import (
    Gateways,
    Workers,
    child_environment,
    configure,
    engine_process,
    try_out,
)

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1200)]

OPERATIONS = ROOT / "docs" / "operations"
ROW = re.compile(
    r"^\| (?P<number>\d+) \| (?P<fault>[^|]+) \| [^|]+ \| (?P<alerts>[^|]+) "
    r"\| (?P<minutes>\d+) min \|",
    re.MULTILINE,
)
EXAMPLES = 24
LONG = SamplingParameters(max_tokens=200, temperature=0.0, ignore_eos=True)


@dataclass
class Drills:
    """What the table asks for, and what came of it: by number, seconds from fault to alert."""

    observatory: Observatory
    rows: Mapping[int, re.Match[str]]
    took: dict[int, float] = field(default_factory=dict)

    def expect(
        self, number: int, since: float, cause: str, *, alert: str = "", **labels: str
    ) -> None:
        """The alert fires after ``since``, and its runbook's causes have ``cause``.

        ``alert``: which of the row's alerts; else it has one alone. Waits for twice the time that
        the table allows: machines are slow.
        """
        row = self.rows[number]
        named = re.findall(r"Feedloom\w+", row["alerts"])
        alert = alert or named[0]
        assert alert in named
        limit = time.time() + 2 * 60 * int(row["minutes"])
        while (fired := self.observatory.first_fired(alert, labels)) is None:
            assert time.time() < limit, f"{alert} {labels} did not fire"
            time.sleep(0.5)
        assert fired >= since, f"{alert} fired before the fault"
        self.took.setdefault(number, fired - since)
        (page,) = [
            path for path in OPERATIONS.glob("*.md") if path.read_text().startswith(f"# {alert}\n")
        ]
        causes = page.read_text().partition("\n## Likely causes\n")[2].partition("\n## ")[0]
        assert cause in " ".join(causes.split())

    def show(self) -> str:
        """A table."""
        lines = [
            f"{number:2}  {self.took[number]:5.0f} s  of {row['minutes']} min  {row['fault']}"
            for number, row in self.rows.items()
            if number in self.took
        ]
        return "\n".join(["fault to alert", *lines])


@pytest.fixture(scope="module")
def drills(observatory: Observatory, pytestconfig: pytest.Config) -> Iterator[Drills]:
    found = ROW.finditer((OPERATIONS / "README.md").read_text().partition("\n## Drills\n")[2])
    made = Drills(observatory, {int(row["number"]): row for row in found})
    assert sorted(made.rows) == list(range(1, 11))
    yield made
    pytestconfig.stash[SUMMARY] = made.show()


def deployment(broker: EmbeddedKafka, prefix: str) -> tuple[KafkaSettings, KafkaBus]:
    """Topics of its own."""
    status = broker.status()
    assert status is not None
    kafka = KafkaSettings(bootstrap_servers=status.bootstrap_servers, topic_prefix=prefix)
    apply_catalogue(kafka, partitions=PARTITIONS)
    return kafka, KafkaBus(kafka)


@dataclass
class Stage:
    """Everything that runs before the first fault."""

    words: Workers
    """Two workers with the memory engine, and a gateway in front of them."""
    gateway: str
    key: str
    vllm: Workers
    """Two, and a rollout controller."""
    vllm_home: Path
    trainers: dict[str, Trainer]
    """By model: one whose round takes minutes, and one that forgets."""

    def check(self) -> None:
        """Raises ChildStopped if something ended by itself."""
        for child in (
            *(*self.words.children, *self.vllm.children),
            *(one.child for one in self.trainers.values()),
        ):
            if child.exit_status not in (None, -signal.SIGKILL):
                child.check()


class Trainer:
    """A trainer of a tiny model, in a deployment of its own; waits for feedback."""

    def __init__(self, broker: EmbeddedKafka, home: Path, model: str, **options: object) -> None:
        kafka, self.bus = deployment(broker, f"{model}.")
        settings = learning.settings_at(home, kafka)
        learning.register(settings, self.bus, learning.prepare(settings), model=model)
        self._model = model
        trained = {"min_examples": EXAMPLES, "lora_rank": 0, **options}
        self.child = Child(
            model,
            feedloom_command(["trainer", "run"]),
            log=home / "trainer.log",
            environment={
                **child_environment(home, kafka),
                "FEEDLOOM_TRAINER__MODEL": model,
                "FEEDLOOM_TRAINER__BLOCK_SIZE": "32",
                "FEEDLOOM_TRAINER__THREADS": "1",
                **{
                    f"FEEDLOOM_TRAINER__{key.upper()}": json.dumps(value)
                    for key, value in trained.items()
                },
            },
        )

    def feed(self, *, start: int = 0, edit: str | None = None) -> None:
        """As much feedback as a round takes. ``edit``: what all of it says."""
        learning.send(
            self.bus, learning.feedback(EXAMPLES, model=self._model, start=start, edit=edit)
        )


@pytest.fixture(scope="module")
def stage(
    observatory: Observatory,
    broker: EmbeddedKafka,
    weights: Weights,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    with ExitStack() as running:
        vllm_home, home = tmp_path_factory.mktemp("vllm"), tmp_path_factory.mktemp("words")
        kafka, bus = deployment(broker, "vllm.")
        vllm = Workers(bus, kafka, vllm_home, weights.first)
        running.callback(vllm.close)
        slow = [vllm.launch(name=name, kv_cache_gb=0.25) for name in ("vllm-1", "vllm-2")]
        controller = Child(
            "controller",
            feedloom_command(["rollouts", "run", "--interval", "1"]),
            log=vllm_home / "controller.log",
            environment=child_environment(vllm_home, kafka),
        )
        running.callback(controller.stop, 30)
        trainers = {
            "killed": Trainer(
                broker,
                tmp_path_factory.mktemp("killed"),
                "killed",
                num_train_epochs=1000,
                per_device_train_batch_size=1,
            ),
            "forgetful": Trainer(
                broker,
                tmp_path_factory.mktemp("forgetful"),
                "forgetful",
                learning_rate=0.01,
                warmup_steps=0,
                adapt_replay=False,
                num_train_epochs=10,
            ),
        }
        for one in trainers.values():
            running.callback(one.child.stop, 30)
        kafka, bus = deployment(broker, "words.")
        words = Workers(bus, kafka, home)
        running.callback(words.close)
        quick = [words.launch(name=name) for name in ("words-1", "words-2")]
        gateways = Gateways(kafka, home)
        running.callback(gateways.close)
        key = gateways.key("drill", "caller")
        gateway, _ = gateways.start()
        for child in quick:
            words.wait_ready(child)
        for child in slow:
            vllm.wait_ready(child)
        yield Stage(words, gateway, key, vllm, vllm_home, trainers)


@pytest.fixture(scope="module")
def killed_at(stage: Stage, observatory: Observatory) -> float:
    """A worker of two and a trainer in its round are killed; their alerts take minutes."""
    lost, trainer = stage.words.children[0], stage.trainers["killed"]
    trainer.feed()
    for series in (
        'feedloom_engine_alive_ratio{instance="words-1"}',
        'feedloom_trainer_steps_total{feedloom_model="killed"} > 0',
        'feedloom_trainer_rounds_open{feedloom_model="killed"} > 0',
    ):
        observatory.wait_for(series, 180, stage.check)
    at = time.time()
    lost.kill()
    trainer.child.kill()
    return at


def test_poison_records(drills: Drills, stage: Stage, killed_at: float) -> None:
    since = time.time()
    publisher = stage.words.bus.publisher()
    for number in range(5):
        publisher.publish(catalogue.REQUESTS.name, key=b"%d" % number, value=b"no event")
    publisher.close()
    drills.expect(
        4,
        since,
        "A sender that writes something else than the schema",
        messaging_destination_name="generation.requests",
    )


def test_failing_swap(drills: Drills, stage: Stage, killed_at: float) -> None:
    since = time.time()
    stage.words.publish(version="2", revision=2, spoil=True)
    drills.expect(6, since, "somebody changed it", instance="words-2")


def test_forgetting_round(drills: Drills, stage: Stage, killed_at: float) -> None:
    trainer = stage.trainers["forgetful"]
    trainer.feed()
    watch = PlatformWatch(trainer.bus)
    watch.wait_for(
        "a version that knows something",
        lambda: "forgetful" in watch.rollouts and watch.rollouts["forgetful"].stable == "2",
        timeout_s=120,
        check=trainer.child.check,
    )
    watch.close()
    configure(trainer.bus, trainer__learning_rate="1.0", trainer__replay_fraction="0")
    since = time.time()
    trainer.feed(start=EXAMPLES, edit=" zz zz zz zz zz zz")
    drills.expect(9, since, "Too high a learning rate", feedloom_model="forgetful")


def holders(workers: Workers, version: str) -> list[str]:
    """Ids of the workers that have a version loaded."""
    reports = workers.watch.workers
    return [name for name, one in reports.items() if version in one.loaded["default"]]


def test_bad_candidate(drills: Drills, stage: Stage, weights: Weights, killed_at: float) -> None:
    workers = stage.vllm
    # Else it is withdrawn within a second, and nobody's matter any more.
    configure(workers.bus, rollout__auto="false")
    uri, manifest = ArtifactStore(stage.vllm_home / "artifacts").put(
        weights.second, model="default", version="2"
    )
    publisher, registry = workers.bus.publisher(), RegistryWatcher(workers.bus)
    publish_version(
        publisher,
        ModelVersionPublished(
            model="default",
            version="2",
            kind="full",
            artifact_uri=uri,
            manifest=manifest,
            created_at_ms=2,
        ),
    )
    publisher.close()
    try_out(workers.bus, registry, "2", "canary")
    registry.close()
    workers.wait("a worker to have it", lambda: bool(holders(workers, "2")), 120)
    (cohort,) = holders(workers, "2")
    engine = engine_process(next(one for one in workers.children if one.name == cohort))
    since = time.time()
    engine.suspend()
    with GenerationClient(workers.bus, source="drill") as client:
        handles = [
            client.submit(
                f"{WORDS} {number}",
                sampling=SamplingParameters(max_tokens=4),
                user=f"user{number}",
                ttl_s=20,
            )
            for number in range(100)
        ]
        results = [handle.result(120) for handle in handles]
    engine.resume()
    arms = Counter(
        (result.assignment.arm if result.assignment else None, result.finish_reason)
        for result in results
    )
    assert arms["candidate", "deadline_exceeded"] >= 20, arms
    assert arms["stable", "length"] >= 20, arms
    drills.expect(
        7,
        since,
        "The workers of its cohort have a fault of their own",
        alert="FeedloomCandidateErrors",
        feedloom_model="default",
        feedloom_version="2",
    )
    since = time.time()
    configure(workers.bus, rollout__auto="true")
    drills.expect(
        7,
        since,
        "It failed requests that the stable version answers",
        alert="FeedloomCandidateWithdrawn",
        feedloom_model="default",
    )


def test_stuck_partition_and_engine_dead(drills: Drills, stage: Stage, killed_at: float) -> None:
    worker = stage.vllm.children[0]
    engine = engine_process(worker)
    with GenerationClient(stage.vllm.bus, source="drill", cancel_on_close=True) as client:
        for number in range(60):
            client.submit(f"{WORDS} {number}", sampling=LONG)
        engine.suspend()
        since = time.time()
        drills.expect(
            5,
            since,
            "The worker's engine hangs without being dead",
            messaging_destination_name="generation.requests",
        )
        engine.resume()
    since = time.time()
    engine.kill()
    drills.expect(2, since, "took the engine's process", instance="vllm-1")
    assert worker.wait(60) != 0


def test_worker_killed(drills: Drills, killed_at: float) -> None:
    drills.expect(1, killed_at, "It was killed", alert="FeedloomWorkerLost", instance="words-1")


def test_trainer_killed(drills: Drills, killed_at: float) -> None:
    drills.expect(8, killed_at, "It was killed", feedloom_model="killed")


def test_broker_down(drills: Drills, stage: Stage, broker: EmbeddedKafka, killed_at: float) -> None:
    def ask() -> int:
        answer = httpx.post(
            f"{stage.gateway}/v1/completions",
            headers={"Authorization": f"Bearer {stage.key}"},
            json={"model": "default", "prompt": "one two three", "max_tokens": 4},
            timeout=60,
        )
        return answer.status_code

    assert ask() == 200
    # Readers of a broker that is gone leave their sockets to the garbage collector.
    for workers in (stage.words, stage.vllm):
        workers.watch.close()
    done, seen = threading.Event(), list[int]()

    def callers() -> None:
        while not done.wait(1):
            seen.append(ask())

    broker.stop()
    since = time.time()
    calling = threading.Thread(target=callers)
    calling.start()
    try:
        drills.expect(3, since, "The broker is down")
    finally:
        done.set()
        calling.join()
    assert set(seen) <= {503, 504}


def test_the_only_worker_killed(drills: Drills, stage: Stage, killed_at: float) -> None:
    since = time.time()
    for worker in (*stage.words.children, *stage.vllm.children):
        worker.kill()
    drills.expect(1, since, "", alert="FeedloomNoWorker")


def test_collector_dead(drills: Drills, observatory: Observatory, killed_at: float) -> None:
    since = time.time()
    observatory.collector.kill()
    drills.expect(10, since, "It was killed")
