"""The client in Go, built and run: against workers, and against one that is scripted."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.settings import KafkaSettings
from tests.conftest import ROOT, new_deployment

from . import messages
from .caller import Caller, calling
from .conftest import Platform

pytestmark = pytest.mark.kafka

SOURCE = Path(__file__).parent / "go"
TIMEOUT_S = 60
# Where `make deploytools` puts it on machines without one.
FETCHED_GO = ROOT / ".feedloom" / "deploy" / "go" / "go" / "bin" / "go"


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built program."""
    go = shutil.which("go") or str(FETCHED_GO)
    made = tmp_path_factory.mktemp("go") / "generate"
    environment = {**os.environ, "CGO_ENABLED": "0"}
    for command in (["vet", "."], ["build", "-o", str(made), "."]):
        subprocess.run([go, *command], cwd=SOURCE, env=environment, check=True)
    return made


@contextmanager
def running(
    program: Path, kafka: KafkaSettings, prompt: str, *options: str
) -> Iterator[subprocess.Popen[str]]:
    assert kafka.bootstrap_servers is not None
    with subprocess.Popen(
        [
            *(str(program), "-brokers", kafka.bootstrap_servers, "-prefix", kafka.topic_prefix),
            *(*options, prompt),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def shows(process: subprocess.Popen[str], text: str) -> None:
    """It comes next. Whatever came instead would be shown, or this would wait for ever."""
    assert process.stdout is not None
    assert process.stdout.read(len(text)) == text


def test_it_prints_what_workers_answer(generate: Path, platform: Platform) -> None:
    with calling(platform.kafka.topic_prefix, bootstrap_servers=platform.broker) as caller:
        caller.follow("generation.results")
        prompt = f"{messages.PROMPT} by and by"
        with running(generate, platform.kafka, prompt, "-max-tokens", "24") as process:
            shown, said = process.communicate(timeout=TIMEOUT_S)
        result = caller.find("generation.results", None, lambda one: one["prompt"] == prompt)[-1]
    assert (process.returncode, said) == (0, "finished: length\n")
    assert shown == result["text"] + "\n"
    assert result["output_tokens"] == 24


def test_it_says_why_there_is_no_answer(generate: Path, platform: Platform) -> None:
    with running(generate, platform.kafka, "") as process:
        shown, said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, shown) == (1, "\n")
    assert said == "generate: empty_prompt: the prompt has no tokens\n"


class ScriptedWorker:
    """Writes the chunks and the result of one request, by hand."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        (self.request,) = caller.find("generation.requests", None)

    def chunk(self, text: str, *, seq: int, first_token: int, **others: Any) -> None:
        chunk = {
            "type": "GenerationChunk",
            "request_id": self.request["request_id"],
            "submit_id": self.request["submit_id"],
            "epoch": 0,
            "attempt": 0,
            "seq": seq,
            "first_token": first_token,
            "token_ids": [first_token],
            "text": text,
            "model_version": "1",
            "emitted_at_ms": time.time_ns() // 1_000_000,
            "final": False,
            **others,
        }
        self._caller.publish(
            "generation.chunks",
            chunk["request_id"],
            chunk,
            partition=self.request["reply"]["partition"],
        )

    def result(self, text: str, **others: Any) -> None:
        result = {
            "type": "GenerationResult",
            "request_id": self.request["request_id"],
            "submit_id": self.request["submit_id"],
            "text": text,
            "finish_reason": "stop",
            **others,
        }
        self._caller.publish("generation.results", result["request_id"], result)


@pytest.fixture
def own(kafka_bootstrap: str) -> Iterator[tuple[KafkaSettings, Caller]]:
    """Topics without a worker, and who plays one."""
    kafka = new_deployment(kafka_bootstrap)
    with calling(kafka.topic_prefix, bootstrap_servers=kafka_bootstrap) as caller:
        caller.follow("generation.requests")
        yield kafka, caller


def test_it_puts_together_what_comes_twice_late_and_from_two_workers(
    generate: Path, own: tuple[KafkaSettings, Caller]
) -> None:
    kafka, caller = own
    with running(generate, kafka, "count") as process:
        worker = ScriptedWorker(caller)
        worker.chunk("one ", seq=0, first_token=0)
        # There before the answer is complete, as nobody has written the rest yet.
        shows(process, "one ")
        worker.chunk("one ", seq=0, first_token=0)
        worker.chunk("not mine ", seq=1, first_token=1, submit_id="an earlier submit")
        worker.chunk("three ", seq=2, first_token=2)
        worker.chunk("two ", seq=1, first_token=1)
        shows(process, "two three ")
        # Another worker goes on; the first one does not know of it yet.
        worker.chunk("four ", seq=0, first_token=3, epoch=1)
        worker.chunk("stale ", seq=3, first_token=3)
        shows(process, "four ")
        # It fails and tries again, from an earlier token on.
        worker.chunk("drei ", seq=0, first_token=2, epoch=1, attempt=1)
        shows(process, "\n[replaced]\none two drei ")
        worker.result("not mine", submit_id="an earlier submit")
        worker.result("one two drei vier ")
        shown, said = process.communicate(timeout=TIMEOUT_S)
    assert shown == "vier \n"
    assert (process.returncode, said) == (0, "finished: stop\n")


def test_the_result_is_right_where_the_chunks_are_not(
    generate: Path, own: tuple[KafkaSettings, Caller]
) -> None:
    kafka, caller = own
    with running(generate, kafka, "count") as process:
        worker = ScriptedWorker(caller)
        worker.chunk("one ", seq=0, first_token=0)
        worker.chunk("three ", seq=2, first_token=2)
        shows(process, "one ")
        worker.result("one two three ")
        shown, said = process.communicate(timeout=TIMEOUT_S)
    assert shown == "two three \n"
    assert (process.returncode, said) == (0, "finished: stop\n")


def test_a_request_that_nobody_answers_ends_with_its_time(
    generate: Path, own: tuple[KafkaSettings, Caller]
) -> None:
    kafka, caller = own
    with running(generate, kafka, "count", "-ttl", "-9s") as process:
        shown, said = process.communicate(timeout=TIMEOUT_S)
    (asked,) = caller.find("generation.requests", None)
    assert asked["deadline_ms"] < asked["created_at_ms"]
    assert (process.returncode, shown) == (1, "")
    assert "context deadline exceeded" in said
