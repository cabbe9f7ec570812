"""librdkafka's own Python client: the whole loop of a caller, in the clear and over TLS."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from infra.kafka.access import secure
from infra.kafka.broker_node import Layout
from infra.kafka.bus import KafkaBus
from infra.kafka.topics import apply_catalogue
from infra.settings import KafkaSettings
from tests.conftest import PARTITIONS, share_jars
from tests.integration.conftest import Workers
from tests.integration.secured_broker import (
    DEPLOYMENT,
    PREFIX,
    Secured,
    TlsBroker,
    make_certificates,
)

from . import messages
from .caller import Caller, calling, is_final
from .conftest import TOKEN_INTERVAL_S, Platform

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


@pytest.fixture
def caller(platform: Platform) -> Iterator[Caller]:
    with calling(platform.kafka.topic_prefix, bootstrap_servers=platform.broker) as made:
        made.follow("generation.chunks", "generation.results", "feedback.examples")
        yield made


def feedback(request_id: str, **said: Any) -> dict[str, Any]:
    return {
        "type": "FeedbackReceived",
        "feedback_id": str(uuid.uuid4()),
        "request_id": request_id,
        "created_at_ms": time.time_ns() // 1_000_000,
        **said,
    }


def test_an_answer_is_read_rated_and_becomes_an_example(caller: Caller) -> None:
    for _ in range(4):
        # Several, so that results lie on each partition, and with both workers.
        asked = messages.request(sampling={"max_tokens": 8}, user="u1", metadata={"page": "7"})
        name = asked["request_id"]
        caller.publish("generation.requests", name, asked)
        chunks = caller.find("generation.chunks", name, is_final)
        (result,) = caller.find("generation.results", name)
        assert result["text"] == "".join(chunk["text"] for chunk in chunks)
        assert (result["user"], result["metadata"]) == ("u1", {"page": "7"})

        caller.publish("feedback.events", name, feedback(name, rating="up", principal="u1"))
        edit = feedback(name, edited_text="a better text", principal="u2")
        caller.publish("feedback.events", name, edit)
        examples = caller.find("feedback.examples", name, lambda one: bool(one["edited_text"]))
        example = examples[-1]
        assert (example["prompt"], example["output"]) == (messages.PROMPT, result["text"])
        assert (example["ups"], example["edited_text"]) == (1, "a better text")
        assert example["principals"] == ["u1", "u2"]


def test_feedback_is_joined_wherever_its_partitioner_put_it(caller: Caller) -> None:
    """librdkafka's default is another one than the workers', and does not find the answer's."""
    asked = messages.request(sampling={"max_tokens": 4})
    name = asked["request_id"]
    caller.publish("generation.requests", name, asked)
    caller.find("generation.results", name)
    for partition in range(PARTITIONS):
        said = feedback(name, rating="up", principal=f"u{partition}")
        caller.publish("feedback.events", name, said, partition=partition)
    example = caller.find("feedback.examples", name, lambda one: one["ups"] == PARTITIONS)[-1]
    assert sorted(example["principals"]) == [f"u{partition}" for partition in range(PARTITIONS)]


def test_a_conversation_is_answered_in_several_ways(caller: Caller) -> None:
    asked = messages.request(
        prompt="",
        messages=[{"role": "user", "content": messages.PROMPT}],
        sampling={"max_tokens": 6, "n": 2, "logprobs": 1},
    )
    name = asked["request_id"]
    caller.publish("generation.requests.batch", name, asked)
    chunks = caller.find("generation.chunks", name, is_final)
    (result,) = caller.find("generation.results", name)
    (other,) = result["alternatives"]
    for index, text in enumerate((result["text"], other["text"])):
        assert text == "".join(chunk["text"] for chunk in chunks if chunk["index"] == index)
    assert len(result["logprobs"]) == 6


def test_a_request_is_cancelled_while_it_streams(caller: Caller) -> None:
    # A minute's worth, which the test does not wait for.
    asked = messages.request(sampling={"max_tokens": int(60 / TOKEN_INTERVAL_S) // 2})
    name = asked["request_id"]
    caller.publish("generation.requests", name, asked)
    caller.find("generation.chunks", name, lambda chunk: chunk["seq"] == 2)
    cancellation = {
        "type": "GenerationCancellation",
        "request_id": name,
        "created_at_ms": time.time_ns() // 1_000_000,
        "reason": "nobody reads it",
    }
    caller.publish("generation.cancellations", name, cancellation)
    (result,) = caller.find("generation.results", name)
    chunks = caller.find("generation.chunks", name, is_final)
    assert result["finish_reason"] == "cancelled"
    assert result["text"] == "".join(chunk["text"] for chunk in chunks)
    assert 0 < result["output_tokens"] < asked["sampling"]["max_tokens"]


def test_what_cannot_be_done_is_said_in_the_result(caller: Caller) -> None:
    late = messages.request(deadline_ms=1)
    wrong = messages.request(model="nobody-has-it")
    for asked in (late, wrong):
        caller.publish("generation.requests", asked["request_id"], asked)
    (result,) = caller.find("generation.results", late["request_id"])
    assert (result["finish_reason"], result["output_tokens"]) == ("deadline_exceeded", 0)
    (result,) = caller.find("generation.results", wrong["request_id"])
    assert (result["finish_reason"], result["error"]["code"]) == ("error", "unknown_model")


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_read(platform: Platform, codec: str) -> None:
    """A client in Go compresses with snappy unless it is told otherwise, many others with lz4."""
    options = {"bootstrap_servers": platform.broker, "compression_codec": codec}
    with calling(platform.kafka.topic_prefix, **options) as caller:
        caller.follow("generation.results", "feedback.examples")
        for topic in ("generation.requests", "generation.requests.batch"):
            # Long enough that it is smaller afterwards: else librdkafka sends it as it is.
            asked = messages.request(prompt=f"{messages.PROMPT} " * 50, sampling={"max_tokens": 4})
            name = asked["request_id"]
            caller.publish(topic, name, asked)
            (result,) = caller.find("generation.results", name)
            assert (result["finish_reason"], result["output_tokens"]) == ("length", 4)
        caller.publish("feedback.events", name, feedback(name, edited_text=messages.PROMPT * 50))
        (example,) = caller.find("feedback.examples", name)
        assert example["edited_text"] == messages.PROMPT * 50


class ScramOverTls(TlsBroker):
    """The listener that is encrypted takes SCRAM, too."""

    def extra_properties(self, layout: Layout, number: int) -> str:
        given = super().extra_properties(layout, number)
        (plain,) = [line for line in given.splitlines() if line.endswith(".mechanisms=PLAIN")]
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        return given.replace(plain, f"{plain},SCRAM-SHA-512") + (
            f"listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram}\n"
        )


def test_a_caller_logs_in_by_scram_over_tls_and_may_do_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    make_certificates(tmp_path)
    share_jars(home)
    broker = ScramOverTls(home, tmp_path)
    try:
        secured = Secured(broker, broker.start(attached=True))
        secure(secured.admin, broker.credentials, DEPLOYMENT)
        operator = secured.scram("operator")
        apply_catalogue(operator, partitions=2)
        settings = secured.scram("worker")
        for name in KafkaSettings.model_fields:
            value = getattr(settings, name)
            if value is not None and name not in ("bootstrap_servers", "topic_prefix"):
                monkeypatch.setenv(f"FEEDLOOM_KAFKA__{name.upper()}", str(value))
        workers = Workers(KafkaBus(operator), settings, tmp_path / "worker")
        try:
            workers.start(group=DEPLOYMENT.worker_group)
            call(secured)
        finally:
            workers.close()
    finally:
        broker.stop()


def call(secured: Secured) -> None:
    """As the component that may ask and read, with its password alone."""
    options = {
        "bootstrap_servers": f"127.0.0.1:{secured.broker.plain_port}",
        "security_protocol": "SASL_SSL",
        "ssl_ca_location": str(secured.broker.files / "ca.pem"),
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "client",
        "sasl_password": secured.broker.credentials.create("client"),
    }
    with calling(PREFIX, **options) as caller:
        caller.follow("generation.chunks", "generation.results")
        asked = messages.request(sampling={"max_tokens": 8})
        name = asked["request_id"]
        caller.publish("generation.requests", name, asked)
        chunks = caller.find("generation.chunks", name, is_final)
        (result,) = caller.find("generation.results", name)
        assert result["text"] == "".join(chunk["text"] for chunk in chunks)
        with pytest.raises(confluent_kafka.KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
            caller.publish("model.rollouts", "default", {"type": "RolloutChanged"})
