"""Exactly one final a request, whatever dies, moves or comes twice: workers on the real broker.

Readers here are ``read_committed``, as every reader of the bus. A final that stands twice on the
topic fails these tests; nothing is deduplicated.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.generation import (
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
)
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.local.supervisor import Child, feedloom_command
from infra.settings import KafkaSettings
from producers.client import GenerationClient
from producers.handle import GenerationHandle
from tests.conftest import embedded_broker

from .conftest import Workers

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

PROMPT = "the quick brown fox jumps over the lazy dog"
TOKENS = 1800
LONG = SamplingParameters(max_tokens=TOKENS)
SLOW_S = 0.005
"""A token every five milliseconds: ten seconds an answer."""


def submit(client: GenerationClient, count: int) -> list[GenerationHandle]:
    return [client.submit(f"{PROMPT} {n}", sampling=LONG) for n in range(count)]


def until_all_run(handles: Sequence[GenerationHandle], tokens: int = 200) -> None:
    """Every answer has so many tokens, and none is complete."""
    for handle in handles:
        seen = 0
        for chunk in handle.stream(60):
            seen += len(chunk.token_ids)
            if seen >= tokens:
                break
        assert not handle.done


def check(workers: Workers, handles: Sequence[GenerationHandle]) -> dict[str, GenerationResult]:
    """One final each, whole, and chunks that add up to it."""
    results = {handle.request.request_id: handle.result(120) for handle in handles}
    finals = [
        codec.decode(record.value or b"", GenerationResult)
        for record in workers.records(catalogue.RESULTS.name)
    ]
    assert Counter(final.request_id for final in finals) == dict.fromkeys(results, 1)
    answers = workers.answers()
    for request_id, result in results.items():
        assert result.error is None
        assert (result.finish_reason, result.output_tokens) == ("length", TOKENS)
        assert answers[request_id].finished
        assert answers[request_id].text == result.text
        assert answers[request_id].tokens == TOKENS
    return results


def assembled(workers: Workers) -> dict[str, str]:
    """The text of each answer, as a reader puts it together."""
    answers = workers.answers()
    assert all(answer.finished for answer in answers.values())
    return {request_id: answer.text for request_id, answer in answers.items()}


def generated(workers: Workers) -> Counter[str]:
    """How many tokens were emitted for each request, by all its owners together."""
    counts: Counter[str] = Counter()
    for record in workers.records(catalogue.CHUNKS.name):
        chunk = codec.decode(record.value or b"", GenerationChunk)
        counts[chunk.request_id] += len(chunk.token_ids)
    return counts


def test_a_killed_workers_answers_are_continued_by_another(workers: Workers) -> None:
    first, _ = workers.start_several(2, token_interval_s=SLOW_S)
    with GenerationClient(workers.bus, source="test") as client:
        handles = submit(client, 12)
        until_all_run(handles)
        os.kill(first.pid, signal.SIGKILL)
        first.wait(30)
        results = check(workers, handles)
    moved = [result for result in results.values() if result.resumed_tokens]
    assert moved
    assert {result.worker_id for result in results.values()} == {"worker-1"}
    # What had been emitted was not generated again, by anybody.
    assert generated(workers) == dict.fromkeys(results, TOKENS)


def test_answers_go_on_while_a_worker_joins(workers: Workers) -> None:
    workers.start(token_interval_s=SLOW_S)
    with GenerationClient(workers.bus, source="test") as client:
        handles = submit(client, 12)
        until_all_run(handles)
        workers.start(token_interval_s=SLOW_S)
        # It may have taken longer to start than those needed.
        handles += submit(client, 12)
        results = check(workers, handles)
    assert {result.worker_id for result in results.values()} == {"worker-0", "worker-1"}


def test_answers_go_on_when_a_worker_leaves_without_time_to_finish(workers: Workers) -> None:
    first, _ = workers.start_several(2, token_interval_s=SLOW_S, drain_timeout_s=0.2)
    with GenerationClient(workers.bus, source="test") as client:
        handles = submit(client, 12)
        until_all_run(handles)
        assert first.stop(60) == 0
        results = check(workers, handles)
    assert any(result.resumed_tokens for result in results.values())


def test_a_worker_that_was_frozen_cannot_answer_what_another_took_over(workers: Workers) -> None:
    """Its commit fails, as the group has moved on; its work was delivered to the other one."""
    first, _ = workers.start_several(2, token_interval_s=SLOW_S)
    with GenerationClient(workers.bus, source="test") as client:
        handles = submit(client, 12)
        until_all_run(handles)
        os.kill(first.pid, signal.SIGSTOP)
        results = [handle.result(120) for handle in handles]
        assert {result.worker_id for result in results} == {"worker-1"}
        os.kill(first.pid, signal.SIGCONT)
        # It may serve again, or have been fenced; the next answers come either way.
        again = submit(client, 6)
        check(workers, [*handles, *again])


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A broker that a test may restart."""
    with embedded_broker(tmp_path_factory.mktemp("own-broker")) as broker:
        yield broker


def test_answers_survive_a_restart_of_the_broker(own_broker: EmbeddedKafka, tmp_path: Path) -> None:
    """The client is a process of its own: kafka-python leaks sockets when a broker goes away."""
    status = own_broker.status()
    assert status is not None
    settings = KafkaSettings(bootstrap_servers=status.bootstrap_servers)
    apply_catalogue(settings, partitions=3)
    workers = Workers(KafkaBus(settings), settings, tmp_path)
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [
        json.dumps({"prompt": f"{PROMPT} {n}", "sampling": {"max_tokens": TOKENS}})
        for n in range(12)
    ]
    prompts.write_text("\n".join(lines))
    client = Child(
        "client",
        feedloom_command(["publish", str(prompts), "--results", str(answers), "--quiet"]),
        log=tmp_path / "client.log",
        environment={"FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS": status.bootstrap_servers},
    )
    try:
        workers.start(token_interval_s=SLOW_S)
        workers.wait(
            "tokens of the answers",
            lambda: sum(workers.bus.end_offsets(catalogue.CHUNKS.name).values()) > 12 * 10,
        )
        workers.watch.close()
        own_broker.stop()
        again = own_broker.start(attached=True)
        assert again.bootstrap_servers == status.bootstrap_servers
        assert client.wait(120) == 0, client.log_tail()
        results = [json.loads(line) for line in answers.read_text().splitlines()]
        assert [result["output_tokens"] for result in results] == [TOKENS] * 12
        finals = Counter(record.key for record in workers.records(catalogue.RESULTS.name))
        assert finals == {result["request_id"].encode(): 1 for result in results}
        assert assembled(workers) == {result["request_id"]: result["text"] for result in results}
    finally:
        client.stop(10)
        workers.close()


def test_a_submit_that_comes_twice_is_answered_once(workers: Workers) -> None:
    request = GenerationRequest(
        request_id="twice", submit_id="s1", prompt=PROMPT, created_at_ms=1, sampling=LONG
    )
    publisher = workers.bus.publisher()

    def publish(event: GenerationRequest) -> None:
        publisher.publish(catalogue.REQUESTS.name, key=b"twice", value=codec.encode(event)).result(
            30
        )

    def finals() -> list[GenerationResult]:
        records = workers.records(catalogue.RESULTS.name)
        return [codec.decode(record.value or b"", GenerationResult) for record in records]

    first = workers.start()
    publish(request)
    publish(request)  # while the first one runs
    workers.wait("the first answer", lambda: len(finals()) == 1)
    publish(request)  # after it was answered
    first.stop(30)
    workers.start()
    publish(request)  # to a worker that has never seen it
    with GenerationClient(workers.bus, source="test") as client:
        client.submit(PROMPT, request_id="last", affinity_key="twice").result(60)
    assert [final.request_id for final in finals()] == ["twice", "last"]


def test_a_slow_request_holds_back_nobody_and_is_not_lost(workers: Workers) -> None:
    """One partition, as all have one key: the others end, and are not answered again."""
    first = workers.start()
    short = SamplingParameters(max_tokens=5)
    with GenerationClient(workers.bus, source="test") as client:
        slow = client.submit(PROMPT, sampling=LONG, affinity_key="one")
        next(iter(slow.stream(60)))
        quick = [
            client.submit(f"{PROMPT} {n}", sampling=short, affinity_key="one") for n in range(50)
        ]
        for handle in quick:
            assert handle.result(60).finish_reason == "length"
        assert not slow.done
        os.kill(first.pid, signal.SIGKILL)
        first.wait(30)
        workers.start()
        assert slow.result(60).output_tokens == TOKENS
    finals = Counter(record.key for record in workers.records(catalogue.RESULTS.name))
    assert finals == {h.request.request_id.encode(): 1 for h in [slow, *quick]}


def test_a_deadline_and_a_cancellation_end_what_runs_and_what_waits(workers: Workers) -> None:
    # Room for one long answer at a time: the others wait for it.
    workers.start(max_inflight_tokens=TOKENS + 100)
    with GenerationClient(workers.bus, source="test") as client:
        running = client.submit(PROMPT, sampling=LONG)
        next(iter(running.stream(60)))
        expiring = client.submit(PROMPT, sampling=LONG, ttl_s=1.0)
        waiting = client.submit(PROMPT, sampling=LONG)
        waiting.cancel()
        assert waiting.result(60).finish_reason == "cancelled"
        assert expiring.result(60).finish_reason == "deadline_exceeded"
        assert not running.done
        running.cancel()
        assert running.result(60).finish_reason == "cancelled"
        assert 0 < running.result(60).output_tokens < TOKENS


def test_a_client_that_leaves_takes_its_requests_with_it(workers: Workers) -> None:
    workers.start()
    client = GenerationClient(workers.bus, source="test", cancel_on_close=True)
    handle = client.submit(PROMPT, sampling=LONG)
    next(iter(handle.stream(60)))
    client.close()

    def reasons() -> list[str]:
        records = workers.records(catalogue.RESULTS.name)
        return [codec.decode(r.value or b"", GenerationResult).finish_reason for r in records]

    workers.wait("the result", lambda: bool(reasons()))
    assert reasons() == ["cancelled"]


def test_health_tells_what_a_worker_does(workers: Workers) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def ask(path: str) -> tuple[int, dict[str, bool]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, body = error.code, error.read()
        return status, {check["name"]: check["ok"] for check in json.loads(body)["checks"]}

    workers.start(health_port=port, stuck_s=1)
    everything = {"phase": True, "broker": True, "engine": True, "commits": True}
    assert ask("/healthz") == (200, {"engine": True, "commits": True})
    assert ask("/readyz") == (200, {**everything, "partitions": True})
    with GenerationClient(workers.bus, source="test") as client:
        handle = client.submit(PROMPT, sampling=LONG)
        next(iter(handle.stream(60)))
        deadline = time.monotonic() + 30
        while ask("/readyz")[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        # A request older than stuck_s: not ready, and still no reason to restart.
        assert ask("/readyz") == (503, {**everything, "partitions": False})
        assert ask("/healthz")[0] == 200
        handle.cancel()
        handle.result(60)
    workers.wait("readiness", lambda: ask("/readyz")[0] == 200)
