"""A worker process on the real broker, the engine in memory: what comes out for what goes in."""

from __future__ import annotations

from collections import Counter

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from infra.contracts import catalogue, codec
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import GenerationResult, SamplingParameters
from infra.kafka.topics import apply_catalogue
from infra.registry.lineage import taken_out
from infra.settings import KafkaSettings
from producers.client import GenerationClient
from producers.feedback import FeedbackClient
from tests.conftest import PARTITIONS

from .conftest import Workers

pytestmark = pytest.mark.kafka

PROMPT = "the quick brown fox jumps over the lazy dog"


def test_answers_stream_and_end_with_one_result(workers: Workers) -> None:
    workers.start()
    with GenerationClient(workers.bus, source="test") as client:
        handles = [client.submit(f"{PROMPT} {number}") for number in range(40)]
        for handle in handles:
            streamed = "".join(chunk.text for chunk in handle.stream(60))
            result = handle.result(60)
            assert result.text == streamed
            assert result.error is None
            assert result.model_versions == ("default@1",)
    finals = Counter(record.key for record in workers.records(catalogue.RESULTS.name))
    assert finals == {handle.request.request_id.encode(): 1 for handle in handles}


def test_bad_input_is_answered_or_dead_lettered_and_the_worker_goes_on(workers: Workers) -> None:
    workers.start()
    publisher = workers.bus.publisher()
    topic = catalogue.REQUESTS.name
    broken = b'{"type": "GenerationRequest", "prompt": \xff'
    publisher.publish(topic, key=b"bad", value=broken, headers=[("mine", b"1")]).result(30)
    publisher.close()
    with GenerationClient(workers.bus, source="test") as client:
        cases = {
            "prompt_too_long": client.submit("word " * 5000),
            "unknown_model": client.submit(PROMPT, model="nobody"),
            "invalid_sampling": client.submit(PROMPT, sampling=SamplingParameters(top_p=7.0)),
            "empty_prompt": client.submit(""),
        }
        for code, handle in cases.items():
            error = handle.result(60).error
            assert error is not None
            assert error.code == code
            assert error.message
        assert client.submit(PROMPT).result(60).error is None
    (letter,) = workers.records(f"{topic}.dlq")
    assert (letter.key, letter.value) == (b"bad", broken)
    assert codec.header(letter.headers, "mine") == "1"
    assert codec.header(letter.headers, codec.DEAD_LETTER_PREFIX + "topic") == topic
    assert "not" in (codec.header(letter.headers, codec.DEAD_LETTER_PREFIX + "message") or "")


def test_feedback_becomes_an_example_whichever_side_comes_first(workers: Workers) -> None:
    workers.start()
    with (
        GenerationClient(workers.bus, source="test") as client,
        FeedbackClient(workers.bus, source="test") as feedback,
    ):
        feedback.rate("early", "up")
        client.submit(PROMPT, request_id="early").result(60)
        client.submit(PROMPT, request_id="late").result(60)
        feedback.edit("late", "a better text")
        feedback.prefer("late", "good", "bad")

    def examples() -> dict[str, FeedbackExample]:
        found = [
            codec.decode(record.value or b"", FeedbackExample)
            for record in workers.records(catalogue.EXAMPLES.name)
        ]
        return {example.request_id: example for example in found}

    workers.wait(
        "both examples",
        lambda: len(found := examples()) == 2 and len(found["late"].feedback_ids) == 2,
    )
    found = examples()
    assert (found["early"].ups, found["early"].prompt) == (1, PROMPT)
    assert found["late"].edited_text == "a better text"
    assert found["late"].pairs[0].preferred == "good"


def test_forgotten_feedback_leaves_a_tombstone_and_never_comes_back(workers: Workers) -> None:
    workers.start()

    def newest() -> dict[str, bytes | None]:
        records = workers.records(catalogue.EXAMPLES.name)
        return {(record.key or b"").decode(): record.value for record in records}

    with GenerationClient(workers.bus, source="test") as client:
        for name in ("keep", "erase"):
            client.submit(PROMPT, request_id=name).result(60)
    with FeedbackClient(workers.bus, source="test") as feedback:
        for name in ("keep", "erase"):
            feedback.rate(name, "up")
    workers.wait("both examples", lambda: set(newest()) == {"keep", "erase"})
    with FeedbackClient(workers.bus, source="test") as feedback:
        feedback.forget("erase", reason="asked")
        feedback.forget("never-heard-of")
    workers.wait("the tombstone", lambda: newest()["erase"] is None)
    assert taken_out(workers.bus, ["erase", "keep"]) == {"erase"}
    with FeedbackClient(workers.bus, source="test") as feedback:
        feedback.edit("erase", "said again")
        feedback.edit("keep", "a better text")
    workers.wait("the edit", lambda: b"a better text" in (newest()["keep"] or b""))
    # Another worker knows it too: the table's memory is on its changelog.
    for child in workers.children:
        assert child.stop(60) == 0
    workers.start()
    with FeedbackClient(workers.bus, source="test") as feedback:
        feedback.edit("erase", "and again")
        feedback.edit("keep", "the best text")
    workers.wait("the second edit", lambda: b"the best text" in (newest()["keep"] or b""))
    assert newest()["erase"] is None


def test_feedback_without_an_answer_waits_for_the_window_and_is_told_of(workers: Workers) -> None:
    child = workers.start(feedback_window_s=1)
    with FeedbackClient(workers.bus, source="test") as feedback:
        feedback.rate("nobody-asked", "up")
    workers.wait("the warning", lambda: "1 words of feedback found no" in child.log_tail(1000))


def test_the_joins_changelog_keeps_no_more_than_its_window(
    workers: Workers, kafka_settings: KafkaSettings
) -> None:
    workers.start(feedback_window_s=300)
    admin = KafkaAdminClient(bootstrap_servers=kafka_settings.bootstrap_servers)
    try:
        own = [name for name in admin.list_topics() if name.startswith(kafka_settings.topic_prefix)]
        (name,) = [name for name in own if name.endswith("-changelog")]
        (configs,) = admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name)]
        ).values()
    finally:
        admin.close()
    assert configs[name]["cleanup.policy"]["value"] == "delete"
    assert configs[name]["retention.ms"]["value"] == "300000"


def test_feedback_is_joined_after_the_topics_have_more_partitions(
    workers: Workers, kafka_settings: KafkaSettings
) -> None:
    assert workers.start().stop(60) == 0
    changes = apply_catalogue(kafka_settings, partitions=2 * PARTITIONS)
    assert any(f"changelog: {PARTITIONS} to {2 * PARTITIONS}" in change for change in changes)
    assert apply_catalogue(kafka_settings, partitions=2 * PARTITIONS) == []
    workers.start()
    names = [f"answer-{number}" for number in range(4 * PARTITIONS)]
    with GenerationClient(workers.bus, source="test") as client:
        for handle in [client.submit(PROMPT, request_id=name) for name in names]:
            handle.result(60)
    with FeedbackClient(workers.bus, source="test") as feedback:
        for name in names:
            feedback.rate(name, "up")

    def joined() -> set[str]:
        return {(one.key or b"").decode() for one in workers.records(catalogue.EXAMPLES.name)}

    workers.wait("every example", lambda: joined() == set(names))


def test_a_worker_switches_in_flight_and_refuses_a_spoilt_artifact(workers: Workers) -> None:
    workers.start()
    with GenerationClient(workers.bus, source="test") as client:
        long = SamplingParameters(max_tokens=1500)
        running = [client.submit(f"{PROMPT} {n}", sampling=long) for n in range(4)]
        for handle in running:
            next(iter(handle.stream(60)))
        workers.publish(version="2", revision=2)
        workers.wait("version 2", lambda: workers.watch.serving("default", "2"))
        for handle in running:
            assert handle.result(60).model_versions == ("default@1", "default@2")
        report = workers.watch.workers["worker-0"]
        assert report.last_switch is not None
        assert report.last_switch.in_flight == 4
        workers.publish(version="3", revision=3, spoil=True)
        workers.wait(
            "the refusal", lambda: "weights" in (workers.watch.workers["worker-0"].failure or "")
        )
        assert client.submit(PROMPT).result(60).model_versions == ("default@2",)


def test_sigterm_finishes_what_runs_and_commits_it(workers: Workers) -> None:
    first = workers.start()
    with GenerationClient(workers.bus, source="test") as client:
        long = SamplingParameters(max_tokens=500)
        handles = [client.submit(f"{PROMPT} {n}", sampling=long) for n in range(6)]
        for handle in handles:
            next(iter(handle.stream(60)))
        assert first.stop(60) == 0
        assert [handle.result(30).finish_reason for handle in handles] == ["length"] * 6
        workers.start()
        client.submit(PROMPT, request_id="after").result(60)
    finals = Counter(
        codec.decode(record.value or b"", GenerationResult).request_id
        for record in workers.records(catalogue.RESULTS.name)
    )
    assert finals == {**{h.request.request_id: 1 for h in handles}, "after": 1}
