"""One Kafka broker a run: an address given by option, Docker's, or the embedded one.

The same integration tests run on each. With no broker to be had the run fails.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.settings import KafkaSettings

if TYPE_CHECKING:
    from tests.integration.conftest import Served

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile("feedloom", deadline=None)
hypothesis.settings.load_profile("feedloom")

ROOT = Path(__file__).resolve().parent.parent
KAFKA_IMAGE = "apache/kafka:4.2.2"
PARTITIONS = 3
WORDS = "the quick brown fox jumps over the lazy dog and then returns to its den for the night"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'nobody' %}{{ raise_exception('nobody may speak') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


LOG_LINES, LOG_WIDTH = 30, 300
CLIENT_NOISE = re.compile(r"aiokafka: |kafka\.net|kafka\.cluster|mode\.timers")
"""Lines that a client writes by the thousand while a broker is away."""

LONGEST = (
    "proof/test_soak.py",
    "integration/test_trainer_killed.py",
    "integration/test_worker_delivery.py",
    "integration/test_kafka_cluster.py",
    "e2e/test_feedback_poisoning.py",
    "integration/test_trainer_distributed.py",
)
"""Files that take minutes, in the order in which two at a time load the machine evenly."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kafka-bootstrap", help="host:port of a Kafka to test against, instead of a new one"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that the rest runs beside it and nothing after it.

    Raises UsageError: a unit test needs a broker or an engine.
    """
    for item in items:
        needs = {mark.name for mark in item.iter_markers()} & {"kafka", "vllm"}
        if needs and item.path.is_relative_to(ROOT / "tests" / "unit"):
            # `make test` would not run it: it looks for such tests elsewhere.
            raise pytest.UsageError(f"{item.nodeid} is a unit test and needs {needs.pop()}")
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show how the logs of a failed test's processes end; its folder may be gone by then."""
    report = yield
    home = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and home is not None:
        for log in sorted(home.rglob("*.log")):
            if log.stem.isdigit():
                continue  # a broker's segment
            lines = log.read_text("utf-8", "replace").splitlines()
            ours = [line[:LOG_WIDTH] for line in lines if not CLIENT_NOISE.search(line)]
            end = "\n".join(ours[-LOG_LINES:])
            report.sections.append((f"the end of {log.relative_to(home)}", end))
    return report


@pytest.fixture(scope="session")
def kafka_bootstrap(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    given = request.config.getoption("--kafka-bootstrap")
    if given:
        yield str(given)
    elif _docker_answers():
        from testcontainers.kafka import KafkaContainer

        with KafkaContainer(KAFKA_IMAGE).with_kraft() as container:
            yield container.get_bootstrap_server()
    else:
        with embedded_broker(tmp_path_factory.mktemp("kafka-home")) as broker:
            status = broker.status()
            assert status is not None
            yield status.bootstrap_servers


def share_jars(home: Path) -> None:
    """A home whose broker has the project's jars: they are fetched once."""
    jars = ROOT / ".feedloom" / "kafka" / "lib"
    jars.mkdir(parents=True, exist_ok=True)
    (home / "kafka").mkdir(parents=True)
    (home / "kafka" / "lib").symlink_to(jars, target_is_directory=True)


@contextmanager
def embedded_broker(home: Path, **options: Any) -> Iterator[EmbeddedKafka]:
    """The running Kafka of an empty home."""
    share_jars(home)
    broker = EmbeddedKafka(home, **options)
    try:
        broker.start(attached=True)
        yield broker
    finally:
        broker.stop()


def _docker_answers() -> bool:
    # The client leaks its socket when there is nothing to connect to.
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return False
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=5)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except DockerException:
        return False
    finally:
        client.close()


def new_deployment(bootstrap: str) -> KafkaSettings:
    """Topics of its own, with three partitions."""
    settings = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=f"t{uuid.uuid4().hex[:8]}.")
    apply_catalogue(settings, partitions=PARTITIONS)
    return settings


@pytest.fixture
def kafka_settings(kafka_bootstrap: str) -> KafkaSettings:
    """A deployment for each test."""
    return new_deployment(kafka_bootstrap)


@pytest.fixture
def kafka_bus(kafka_settings: KafkaSettings) -> KafkaBus:
    return KafkaBus(kafka_settings)


@dataclass
class Weights:
    """Two versions of one model, on disk. The tokenizer of the first has a chat template.

    ``adapters`` are two of the first's, and ``merged`` the first with the first of them.
    """

    first: Path
    second: Path
    adapters: tuple[Path, Path]
    merged: Path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    from peft import PeftModel
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from tests.models import small_llama

    root = tmp_path_factory.mktemp("weights")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    paths = []
    for seed, chat_template in ((1, CHAT_TEMPLATE), (2, None)):
        model = small_llama(
            len(made),
            seed=seed,
            width=64,
            context=256,
            eos_token_id=made.eos_token_id,
            bos_token_id=None,
        )
        path = root / str(seed)
        model.save_pretrained(path)
        made.chat_template = chat_template
        made.save_pretrained(path)
        paths.append(path)
    adapters = tuple(make_adapter(paths[0], root / f"adapter{seed}", seed=seed) for seed in (1, 2))
    merged = root / "merged"
    PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(paths[0]), adapters[0]
    ).merge_and_unload().save_pretrained(merged)
    made.save_pretrained(merged)
    return Weights(*paths, adapters, merged)


@pytest.fixture(scope="session")
def served(
    kafka_bootstrap: str, weights: Weights, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Shared, as an engine takes a minute to start: a test may leave another version stable."""
    from tests.integration.conftest import Served, Workers

    kafka, home = new_deployment(kafka_bootstrap), tmp_path_factory.mktemp("served")
    workers = Workers(KafkaBus(kafka), kafka, home, model=weights.first)
    try:
        workers.start(max_adapters=2, max_adapter_rank=8, kv_cache_gb=0.25)
        yield Served(kafka=kafka, home=home, workers=workers)
    finally:
        workers.close()


def make_adapter(base: Path, path: Path, *, seed: int, rank: int = 8, **options: Any) -> Path:
    """A LoRA adapter of random weights that change what ``base`` says, saved as PEFT does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config: dict[str, Any] = {"target_modules": "all-linear", "init_lora_weights": False, **options}
    model = LlamaForCausalLM.from_pretrained(base)
    get_peft_model(model, LoraConfig(r=rank, lora_alpha=4 * rank, **config)).save_pretrained(path)
    return path
