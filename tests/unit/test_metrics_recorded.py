"""What a worker, a gateway, an authenticator and a round of training record, by the catalogue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka.structs import TopicPartition as BrokerPartition

from infra.contracts.bus import Record, TopicPartition
from infra.contracts.catalogue import CHUNKS, REQUESTS, REQUESTS_BATCH, RESULTS
from infra.contracts.codec import encode
from infra.contracts.events.feedback import FeedbackForgotten, FeedbackReceived
from infra.contracts.events.generation import (
    Assignment,
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
)
from infra.identity.authenticator import PlatformAuthenticator
from infra.identity.principal import Unauthenticated
from infra.settings import GatewaySettings
from infra.testing import InMemoryBus
from stream_workers.admission import Limits, Scheduler
from stream_workers.dispatcher import Dispatcher, DispatchOptions
from stream_workers.engine_memory import MemoryEngine
from stream_workers.feedback import JoinState, join
from stream_workers.handler import HandlerOptions, RequestHandler
from stream_workers.lag import PartitionLag
from stream_workers.outcomes import OutcomeLog
from stream_workers.recovery import Recovered
from stream_workers.routing import Route
from stream_workers.service import watch
from stream_workers.sink import KafkaSink
from stream_workers.slack import BatchPolicy, BatchWindow
from stream_workers.transactions import Committed, GroupMember, Outgoing, TransactionFailed
from tests.gateway import KnownKeys, ScriptedWorker, running_gateway, seed
from tests.metering import metered, problems

ONE, BATCH = TopicPartition(REQUESTS.name, 0), TopicPartition(REQUESTS_BATCH.name, 0)


class Chunks:
    """Of Faust's producer what the sink uses."""

    async def send(self, *_: Any) -> Any:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written.set_result(None)
        return written


class Writer:
    """Fails once, if told to."""

    def __init__(self) -> None:
        self.records: list[Outgoing] = []
        self.fail = False

    async def commit(
        self,
        records: list[Outgoing],
        offsets: Mapping[BrokerPartition, Committed],
        member: GroupMember,
    ) -> None:
        if self.fail:
            self.fail = False
            raise TransactionFailed("as told")
        self.records += records


class Worker:
    """All of a worker that needs neither Kafka nor Faust nor a model."""

    def __init__(self) -> None:
        self.engine = MemoryEngine(version="default@1")
        self.scheduler: Scheduler[Any] = Scheduler(Limits(max_inflight_tokens=1_000))
        self.lag = PartitionLag()
        self.writer = Writer()
        self.failed: list[BaseException] = []
        handler: RequestHandler[Outgoing] = RequestHandler(
            engine=self.engine,
            sink=KafkaSink(Chunks(), prefix="p.", source="worker/w", chunk_partitions=1),
            options=HandlerOptions(worker_id="w", model="default"),
            route=lambda _: Route(version="default@1"),
            now_ms=lambda: time.time_ns() // 1_000_000,
            monotonic_s=time.monotonic,
        )
        self.dispatcher = Dispatcher(
            handler=handler,
            scheduler=self.scheduler,
            batch=BatchWindow(BatchPolicy(max_tokens=1_000), time.monotonic()),
            load=self.engine.load,
            recover=lambda positions: Recovered(),
            flow=self,
            on_fatal=self.failed.append,
            now_ms=lambda: time.time_ns() // 1_000_000,
            options=DispatchOptions(),
        )
        self.log = OutcomeLog(
            self.writer,
            prefix="p.",
            trackers=self.dispatcher.trackers,
            position=self.dispatcher.position,
            on_commit=self.lag.committed,
        )
        self.dispatcher.bind(self.log)
        self._offset = 0

    def pause(self, partition: TopicPartition) -> None:
        """Nothing is fetched here."""

    def resume(self, partition: TopicPartition) -> None:
        """Nothing is fetched here."""

    def take(self, partition: TopicPartition, *values: bytes) -> None:
        records = []
        for value in values:
            records.append(
                Record(
                    topic=partition.topic,
                    partition=partition.partition,
                    offset=self._offset,
                    timestamp_ms=0,
                    key=None,
                    value=value,
                )
            )
            self._offset += 1
        self.dispatcher.take(partition, records)
        self.dispatcher.pump()

    async def serve(self) -> None:
        """Every way a request can go, and until nothing is left to do."""
        committing, watching = (
            asyncio.ensure_future(work) for work in (self.log.run(), self.dispatcher.run())
        )
        member = GroupMember("p.group", 1, "w")
        opened = await self.dispatcher.opened(
            {ONE: Committed(0, ""), BATCH: Committed(0, "")}, member
        )
        self.lag.assigned(opened)
        self.take(ONE, request("a"), request("a"), b"{", request("b", model="other"))
        self.take(BATCH, request("c", tenant=None))
        self.lag.ended({ONE: 7, BATCH: 5})
        await self.committed(4)
        self.writer.fail = True
        self.take(ONE, request("a"), request("d"))
        await self.committed(5)
        await self.log.flush(30)
        await self.dispatcher.revoking()
        for task in (committing, watching):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert not self.failed

    async def committed(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.writer.records) < count:  # noqa: ASYNC110 - an event would be as long
                await asyncio.sleep(0.001)


def request(name: str, *, model: str = "default", tenant: str | None = "acme") -> bytes:
    return encode(
        GenerationRequest(
            request_id=name,
            submit_id="s",
            prompt="one two three",
            model=model,
            tenant=tenant,
            created_at_ms=time.time_ns() // 1_000_000,
            sampling=SamplingParameters(max_tokens=4),
        )
    )


async def test_a_worker_records_by_the_catalogue() -> None:
    worker = Worker()
    with metered() as found, ExitStack() as stack:
        for stop in watch(worker.engine, worker.scheduler, worker.lag):
            stack.callback(stop)
        await worker.serve()
        metrics = found.metrics()
        assert problems(metrics) == []
        assert set(metrics) == {
            *("gen_ai.client.token.usage", "gen_ai.server.request.duration"),
            *("gen_ai.server.time_to_first_token", "gen_ai.server.time_per_output_token"),
            *("messaging.process.duration", "messaging.client.sent.messages"),
            *("messaging.client.operation.duration", "feedloom.dead_letters"),
            *("feedloom.worker.requests.in_flight", "feedloom.worker.requests.queued"),
            *("feedloom.worker.tokens.in_flight", "feedloom.worker.admission.wait"),
            *("feedloom.worker.duplicates", "feedloom.worker.lag", "feedloom.worker.rebalances"),
            *("feedloom.worker.partition.stalled", "feedloom.worker.commit.duration"),
            *("feedloom.worker.commit.size", "feedloom.engine.alive"),
            *("feedloom.engine.requests.running", "feedloom.engine.kv_cache.usage"),
        }
        values = found.values
        # What came has gone.
        for name in ("in_flight", "queued"):
            assert set(values(f"feedloom.worker.requests.{name}").values()) == {0}
        assert values("feedloom.worker.tokens.in_flight") == {(): 0}
        assert values("feedloom.worker.duplicates") == {("answered",): 1, ("running",): 1}
        assert values("feedloom.dead_letters") == {("MalformedRecord", REQUESTS.name): 1}
        assert values("feedloom.worker.admission.wait") == {
            ("interactive", "acme"): 2,
            ("batch",): 1,
        }
        assert values("feedloom.worker.rebalances") == {("assigned",): 1, ("revoked",): 1}
        commits = values("feedloom.worker.commit.duration")
        assert commits["TransactionFailed",] == 1
        assert commits[()] == values("feedloom.worker.commit.size")[()] >= 2
        sizes = found.points("feedloom.worker.commit.size")[()]
        # Five that were answered, and two passed over: one before, one after it was.
        assert sizes.sum == 7
        sent = values("messaging.client.sent.messages")
        # Each answer's tokens, in as many as the coalescer made of them.
        assert sent.pop((CHUNKS.name, "send", "kafka")) >= 3
        assert sent == {
            (RESULTS.name, "send", "kafka"): 4,
            (f"{REQUESTS.name}.dlq", "send", "kafka"): 1,
        }
        assert values("messaging.process.duration") == {
            ("p.group", REQUESTS.name, "process", "kafka"): 2,
            ("p.group", REQUESTS_BATCH.name, "process", "kafka"): 1,
            ("MalformedRecord", "p.group", REQUESTS.name, "process", "kafka"): 1,
            ("RequestRefused", "p.group", REQUESTS.name, "process", "kafka"): 1,
        }
        assert values("gen_ai.server.request.duration") == {
            ("text_completion", "vllm", "default", "default@1"): 3,
            ("unknown_model", "text_completion", "vllm", "other"): 1,
        }
        tokens = found.points("gen_ai.client.token.usage")
        assert tokens["text_completion", "vllm", "default", "default@1", "output"].sum == 12
        assert values("feedloom.worker.lag") == {(REQUESTS.name, "0"): 0, (BATCH.topic, "0"): 0}
        assert values("feedloom.engine.alive") == {(): 1}
    with metered() as found:
        # Watched no more.
        assert found.metrics() == {}


def feedback(name: str, **said: Any) -> FeedbackReceived:
    return FeedbackReceived(feedback_id=name, request_id="r", created_at_ms=0, **said)


def test_feedback_is_counted_by_what_became_of_it() -> None:
    answered = GenerationResult(
        request_id="r",
        submit_id="s",
        model="m",
        prompt="p",
        text="t",
        finish_reason="stop",
        prompt_tokens=1,
        output_tokens=1,
        model_versions=("m@1",),
        created_at_ms=0,
        finished_at_ms=0,
        assignment=Assignment(experiment="e", arm="candidate", unit="u"),
    )
    with metered() as found:
        state = JoinState()
        for event in (
            feedback("1", rating="up", comment="good"),
            answered,
            feedback("1", rating="up", comment="good"),
            feedback("2", score=0.5),
            FeedbackForgotten(request_id="r", forgotten_at_ms=1),
            feedback("3", edited_text="e"),
        ):
            state, _ = join(state, event)
        assert problems(found.metrics()) == []
        assert found.values("feedloom.worker.feedback") == {
            ("rating", "early"): 1,
            ("comment", "early"): 1,
            ("candidate", "rating", "joined"): 1,
            ("candidate", "comment", "joined"): 1,
            ("candidate", "rating", "repeated"): 1,
            ("candidate", "comment", "repeated"): 1,
            ("candidate", "score", "joined"): 1,
            ("edited_text", "forgotten"): 1,
        }


def test_a_gateway_records_by_the_catalogue() -> None:
    bus = InMemoryBus()
    seed(bus)
    ask = {"model": "default", "messages": [{"role": "user", "content": "one two three"}]}
    with metered() as found:
        with ExitStack() as stack:
            worker = ScriptedWorker(bus)
            stack.callback(worker.close)
            gateway = stack.enter_context(running_gateway(bus, KnownKeys.of("acme")))
            keyed = {"Authorization": "Bearer key-acme"}
            with httpx.Client(base_url=gateway.url, headers=keyed, timeout=60) as client:
                path = "/v1/chat/completions"
                assert client.post(path, json=ask).status_code == 200
                assert b"[DONE]" in client.post(path, json=ask | {"stream": True}).content
                assert client.post(path, json=ask | {"model": "none"}).status_code == 404
                assert client.get("/nothing/here").status_code == 404
                assert client.get("/v1/models", headers={"Authorization": ""}).status_code == 401
        # A call is recorded when its answer has been sent: by now all are.
        metrics = found.metrics()
        assert problems(metrics) == []
        assert "gen_ai.client.operation.duration" in metrics
        assert found.values("feedloom.gateway.admissions") == {
            ("admitted", "acme"): 2,
            ("model_not_found", "acme"): 1,
        }
        assert found.values("feedloom.gateway.streams") == {(): 0}
        assert found.values("http.server.request.duration") == {
            ("POST", "200", "/v1/chat/completions", "http"): 2,
            ("POST", "404", "/v1/chat/completions", "http"): 1,
            ("GET", "404", "http"): 1,
            ("GET", "401", "/v1/models", "http"): 1,
        }


async def test_refused_credentials_are_counted_by_reason() -> None:
    authenticator = PlatformAuthenticator(InMemoryBus(), GatewaySettings())
    with metered() as found:
        with pytest.raises(Unauthenticated):
            authenticator.anonymous()
        for credential in ("fl_short", "nothing", "a.b.c"):
            with pytest.raises(Unauthenticated):
                await authenticator.authenticate(credential)
        assert problems(found.metrics()) == []
        assert found.values("feedloom.gateway.unauthenticated") == {
            ("none",): 1,
            ("malformed",): 2,
            ("token",): 1,
        }
    authenticator.close()


def test_a_round_of_training_records_by_the_catalogue(tmp_path: Path) -> None:
    import threading

    from infra.contracts.config_sections import TrainerConfig
    from tests.learning import feedback as examples
    from tests.learning import prepare, settings_at
    from trainer.pile import read_shards, shard_paths
    from trainer.recording import RoundRecord
    from trainer.rounds import Inputs, curated_feedback, run_round

    settings = settings_at(tmp_path)
    parent = prepare(settings)
    config: TrainerConfig = msgspec.convert(settings.trainer.config, TrainerConfig)
    inputs = Inputs(
        parent=parent,
        feedback=[*examples(12, model="default"), *examples(2, model="default")],
        measuring=examples(9, model="default", start=40),
        replay=list(read_shards(shard_paths(settings.shards / "train"))),
        heldout=list(read_shards(shard_paths(settings.shards / "heldout"))),
    )
    curated = curated_feedback(inputs, config, settings.trainer, now_ms=1)
    with metered() as found:
        with RoundRecord(
            settings, config, curated, model="default", version="2", parent="1"
        ) as record:
            assert found.values("feedloom.trainer.rounds.open") == {("default",): 1}
            trained = run_round(
                inputs,
                curated,
                config,
                settings.trainer,
                progress=record.progress,
                stop=threading.Event(),
            )
            assert trained is not None
            record.finish(trained)
        metrics = found.metrics()
        assert problems(metrics) == []
        assert found.values("feedloom.trainer.rounds.open") == {("default",): 0}
        verdicts = {
            ("forgetting", "default"),
            ("preference_accuracy", "default"),
            ("win_rate", "default"),
            ("safety", "default"),
        }
        gates = found.values("feedloom.trainer.gates")
        assert {where[:2] for where in gates} == verdicts
        assert set(gates.values()) == {1}
        (forgetting,) = (c.value for c in trained.gate.checks if c.name == "forgetting")
        assert found.values("feedloom.trainer.forgetting") == {("default",): forgetting}
        assert {name for name in metrics if name.startswith("feedloom.trainer.")} >= {
            f"feedloom.trainer.{name}"
            for name in (
                *("examples", "dropped_examples", "steps", "tokens", "step.loss", "rounds"),
                *("learning_rate", "gradient_norm", "throughput", "round.duration"),
                *("heldout.loss", "win_rate"),
            )
        }
