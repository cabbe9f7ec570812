"""A gateway over the bus in memory, with a worker that answers as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Record
from infra.contracts.events.base import Event
from infra.contracts.events.generation import (
    Completion,
    GenerationCancellation,
    GenerationChunk,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    TokenLogprob,
    TopLogprob,
)
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import ConfigChanged, Role, WorkerStatusReported
from infra.identity.principal import Principal, Unauthenticated
from infra.settings import GatewaySettings
from producers.gateway.app import create_app
from producers.gateway.service import GatewayService
from producers.gateway.views import Views

EVERY_ROLE: tuple[Role, ...] = ("caller", "feedback", "operator", "trainer")


class KnownKeys:
    """Takes the keys that it is given, and no other."""

    def __init__(self, principals: Mapping[str, Principal]) -> None:
        self.principals = dict(principals)

    @classmethod
    def of(cls, *tenants: str) -> KnownKeys:
        return cls({f"key-{tenant}": principal(tenant) for tenant in tenants})

    def anonymous(self) -> Principal:
        raise Unauthenticated("send an API key or a token as `Authorization: Bearer ...`")

    async def authenticate(self, credential: str) -> Principal:
        try:
            return self.principals[credential]
        except KeyError:
            raise Unauthenticated("the API key is not valid") from None


def principal(tenant: str, *roles: Role, models: frozenset[str] = frozenset()) -> Principal:
    return Principal(
        tenant=tenant,
        subject="somebody",
        roles=frozenset(roles or EVERY_ROLE),
        credential=f"key-{tenant}",
        models=models,
    )


def publish(bus: Bus, topic: str, key: str, event: Event) -> None:
    publisher = bus.publisher()
    publisher.publish(topic, key=key.encode(), value=codec.encode(event)).result(10)
    publisher.close()


def seed(bus: Bus, *, model: str = "default", worker: bool = True) -> None:
    """A version that serves, and a worker that says so."""
    now = time.time_ns() // 1_000_000
    version = ModelVersionPublished(
        model=model,
        version="1",
        kind="full",
        artifact_uri="file:///nowhere",
        manifest=(),
        created_at_ms=now,
    )
    publish(bus, catalogue.REGISTRY.name, f"{model}/1", version)
    rollout = RolloutChanged(model=model, revision=1, stable="1", changed_at_ms=now)
    publish(bus, catalogue.ROLLOUTS.name, model, rollout)
    if worker:
        report_worker(bus, model=model)


def report_worker(bus: Bus, *, model: str = "default") -> None:
    report = WorkerStatusReported(
        worker_id="w1",
        state="ready",
        versions={model: "1"},
        reported_at_ms=time.time_ns() // 1_000_000,
        loaded={model: ("1",)},
    )
    publish(bus, catalogue.WORKERS.name, "w1", report)


def set_config(bus: Bus, key: str, value: str, *, revision: int = 1) -> None:
    event = ConfigChanged(key=key, value=value, revision=revision, changed_at_ms=0)
    publish(bus, catalogue.CONFIG.name, key, event)


@dataclass
class Script:
    """How a request is answered: ``pieces`` of text, each a chunk, ``n`` times over."""

    pieces: tuple[str, ...]
    finish_reason: Any = "stop"
    error: GenerationError | None = None
    before_piece: Callable[[int], None] = lambda index: None
    chunks: bool = True


def by_words(request: GenerationRequest) -> Script:
    """The words of the question, backwards."""
    asked = request.messages[-1].content if request.messages else request.prompt
    words = asked.split()[::-1][: request.sampling.max_tokens]
    return Script(tuple(word + " " for word in words))


@dataclass
class ScriptedWorker:
    """Reads requests and cancellations in a thread, answers each request in one of its own."""

    bus: Bus
    script: Callable[[GenerationRequest], Script] = by_words
    requests: list[GenerationRequest] = field(default_factory=list)
    raw: list[Record] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    answered: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        topics = [catalogue.REQUESTS.name, catalogue.REQUESTS_BATCH.name]
        self._reader = self.bus.reader([*topics, catalogue.CANCELLATIONS.name])
        self._publisher = self.bus.publisher()
        self._answering: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="scripted-worker")
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for thread in self._answering:
            thread.join()
        self._reader.close()
        self._publisher.close()

    def _run(self) -> None:
        reported = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() - reported > 10:
                # One that was not heard of for long counts as gone.
                report_worker(self.bus)
                reported = time.monotonic()
            for record in self._reader.poll(0.05):
                assert record.value is not None
                event = codec.decode_any(record.value)
                if isinstance(event, GenerationCancellation):
                    self.cancelled.add(event.request_id)
                elif isinstance(event, GenerationRequest):
                    self.raw.append(record)
                    if (event.request_id, event.submit_id) in self.answered:
                        continue
                    self.answered.add((event.request_id, event.submit_id))
                    self.requests.append(event)
                    thread = threading.Thread(target=self.answer, args=(event,))
                    thread.start()
                    self._answering.append(thread)
            self._answering = [one for one in self._answering if one.is_alive()]

    def answer(self, request: GenerationRequest) -> None:
        script = self.script(request)
        count = request.sampling.n
        seq = 0
        emitted = 0
        for place, piece in enumerate(script.pieces):
            script.before_piece(place)
            if request.request_id in self.cancelled or self._stop.is_set():
                break
            emitted += 1
            for index in range(count if script.chunks else 0):
                final = place == len(script.pieces) - 1 and index == count - 1
                self.chunk(request, seq, place, piece, index=index, final=final)
                seq += 1
        if script.chunks and not script.pieces:
            self.chunk(request, 0, 0, "", final=True)
        cut = emitted < len(script.pieces)
        self.result(request, script, emitted, cut=cut)

    def chunk(
        self,
        request: GenerationRequest,
        seq: int,
        first_token: int,
        piece: str,
        *,
        index: int = 0,
        final: bool = False,
        epoch: int = 0,
    ) -> None:
        assert request.reply is not None
        self._publisher.publish(
            catalogue.CHUNKS.name,
            key=request.request_id.encode(),
            partition=request.reply.partition,
            value=codec.encode(
                GenerationChunk(
                    request_id=request.request_id,
                    submit_id=request.submit_id,
                    attempt=0,
                    epoch=epoch,
                    seq=seq,
                    index=index,
                    first_token=first_token,
                    token_ids=(first_token,) if piece else (),
                    text=piece,
                    logprobs=_logprobs(request, (piece,) if piece else ()),
                    model_version="1",
                    emitted_at_ms=0,
                    final=final,
                )
            ),
        )

    def result(
        self, request: GenerationRequest, script: Script, emitted: int, *, cut: bool = False
    ) -> None:
        pieces = script.pieces[:emitted]
        text, count = "".join(pieces), request.sampling.n
        reason = "cancelled" if cut else script.finish_reason
        event = GenerationResult(
            request_id=request.request_id,
            submit_id=request.submit_id,
            model=request.model,
            prompt=request.prompt,
            messages=request.messages,
            text=text,
            finish_reason=reason,
            prompt_tokens=7,
            output_tokens=len(pieces) * count,
            model_versions=("1",),
            created_at_ms=request.created_at_ms,
            finished_at_ms=time.time_ns() // 1_000_000,
            tenant=request.tenant,
            user=request.user,
            error=script.error,
            logprobs=_logprobs(request, pieces),
            alternatives=tuple(
                Completion(
                    text=text,
                    finish_reason=reason,
                    output_tokens=len(pieces),
                    logprobs=_logprobs(request, pieces),
                )
                for _ in range(count - 1)
            ),
        )
        self._publisher.publish(
            catalogue.RESULTS.name, key=request.request_id.encode(), value=codec.encode(event)
        )


def _logprobs(request: GenerationRequest, pieces: tuple[str, ...]) -> tuple[TokenLogprob, ...]:
    asked = request.sampling.logprobs
    if asked is None:
        return ()
    return tuple(
        TokenLogprob(
            token_id=1,
            token=piece,
            logprob=-0.5,
            top=tuple(TopLogprob(token_id=1, token=piece, logprob=-0.5) for _ in range(asked)),
        )
        for piece in pieces
    )


@dataclass
class Running:
    """A gateway that listens. ``url`` without a slash at its end."""

    url: str
    service: GatewayService
    views: Views


@contextmanager
def running_gateway(
    bus: Bus, authenticator: Any, *, lag: Callable[[], int] | None = None, **settings: Any
) -> Iterator[Running]:
    """Served by uvicorn in a thread, on a free port of loopback."""
    configured = GatewaySettings(**{"keep_alive_s": 0.5, "patience_s": 5.0, **settings})
    views = Views(bus, lag=lag)
    service = GatewayService(bus, views, configured, source="gateway-test")
    app = create_app(bus, service, authenticator, configured, source="gateway-test")
    try:
        with served(app) as url:
            yield Running(url, service, views)
    finally:
        views.close()


@contextmanager
def served(app: Any) -> Iterator[str]:
    """An application that listens on a free port of loopback, in a thread; its address."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=0,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the gateway did not start"
            thread.join(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
