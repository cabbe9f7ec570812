"""A worker's life: version, engine, group, drain. The only place where the parts meet."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
import uuid
from concurrent.futures import Future
from typing import Any, Literal

from infra.contracts.bus import Bus, Publisher, RecordPosition
from infra.contracts.catalogue import (
    CANCELLATIONS,
    CHUNKS,
    FEEDBACK,
    REQUESTS,
    REQUESTS_BATCH,
    RESULTS,
    WORKERS,
)
from infra.contracts.codec import decode, encode, event_headers
from infra.contracts.errors import ConfigurationError, ContractError, FatalError
from infra.contracts.events import GenerationCancellation, WorkerStatusReported
from infra.registry.client import RegistryWatcher
from infra.registry.store import ArtifactStore
from infra.settings import KafkaSettings, Settings
from stream_workers.app import WorkerApp, faust_app
from stream_workers.engine import Engine
from stream_workers.handler import HandlerOptions, RequestHandler
from stream_workers.sink import KafkaSink
from stream_workers.versions import VersionSwitcher, version_name, wait_for_stable

_LOG = logging.getLogger(__name__)
EngineKind = Literal["vllm", "memory"]


def default_worker_id() -> str:
    """Unique among the workers of a machine and over its restarts."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def build_engine(kind: EngineKind, settings: Settings, path: str, version: str) -> Engine:
    """Blocks the loop for seconds with vLLM: call before joining the group."""
    worker = settings.worker
    if kind == "memory":
        from stream_workers.engine_memory import MemoryEngine

        return MemoryEngine(
            version=version, max_model_len=worker.max_model_len or 2048, token_interval_s=0.001
        )
    from stream_workers.engine_vllm import VllmEngine, VllmOptions

    return VllmEngine.build(
        VllmOptions(
            path=path,
            version=version,
            max_num_seqs=worker.max_num_seqs,
            max_model_len=worker.max_model_len,
            kv_cache_gb=worker.kv_cache_gb,
            gpu_memory_utilization=worker.gpu_memory_utilization,
        )
    )


class StatusPublisher:
    """Publishes worker statuses; a lost one is logged, as the next one replaces it."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher

    def __call__(self, status: WorkerStatusReported) -> None:
        future = self._publisher.publish(
            WORKERS.name,
            key=status.worker_id.encode(),
            value=encode(status),
            headers=event_headers(
                status, event_id=str(uuid.uuid4()), source=f"worker/{status.worker_id}"
            ),
        )
        future.add_done_callback(_log_failure)


def _log_failure(future: Future[RecordPosition]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _LOG.warning("worker status was not published: %s", error)


def joint_partitions(bus: Bus) -> int:
    """The partition count that the worker's topics share. Raises ConfigurationError."""
    names = (REQUESTS.name, REQUESTS_BATCH.name, RESULTS.name, FEEDBACK.name)
    counts = {name: len(bus.end_offsets(name)) for name in names}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ConfigurationError(
            f"these topics must have one partition count: {counts} (feedloom topics apply)"
        )
    return counts[RESULTS.name]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _follow_cancellations(bus: Bus, handler: RequestHandler) -> None:
    reader = await asyncio.to_thread(lambda: bus.reader([CANCELLATIONS.name], start="latest"))
    try:
        while True:
            for record in await asyncio.to_thread(reader.poll, 0.1):
                try:
                    handler.cancel(decode(record.value or b"", GenerationCancellation))
                except ContractError as error:
                    _LOG.warning("unreadable cancellation at %d: %s", record.offset, error)
    finally:
        reader.close()


async def run_worker(settings: Settings, kafka: KafkaSettings, bus: Bus, kind: EngineKind) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    Raises:
        FatalError: the engine died, Faust crashed, or a request could not be answered.
        ConfigurationError: topics are missing or there is no version to serve.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker_id = settings.worker.worker_id or default_worker_id()
    partitions = await asyncio.to_thread(joint_partitions, bus)
    chunk_partitions = len(await asyncio.to_thread(bus.end_offsets, CHUNKS.name))
    watcher = RegistryWatcher(bus)
    publisher = bus.publisher(client_id=worker_id)
    engine: Engine | None = None
    try:
        stable = await _unless(stop, wait_for_stable(watcher, settings.worker.model))
        if stable is None:
            return
        store = ArtifactStore(settings.artifacts)
        path = await asyncio.to_thread(store.resolve, stable)
        _LOG.info("building the %s engine for %s", kind, version_name(stable))
        engine = build_engine(kind, settings, path, version_name(stable))
        failure: asyncio.Future[None] = loop.create_future()

        def fail(error: BaseException) -> None:
            if not failure.done():
                failure.set_exception(error)

        app = faust_app(
            kafka, settings.worker, partitions=partitions, datadir=settings.home / "worker"
        )
        shell = WorkerApp(
            app,
            prefix=kafka.topic_prefix,
            max_inflight_tokens=settings.worker.max_inflight_tokens,
            on_fatal=fail,
        )
        switcher = VersionSwitcher(
            engine=engine,
            store=store,
            watcher=watcher,
            serving=stable,
            worker_id=worker_id,
            report=StatusPublisher(publisher),
            in_flight=lambda: handler.in_flight,
            now_ms=_now_ms,
        )
        shell.sink = KafkaSink(
            LazyProducer(app),
            prefix=kafka.topic_prefix,
            source=f"worker/{worker_id}",
            chunk_partitions=chunk_partitions,
        )
        handler = shell.handler = RequestHandler(
            engine=engine,
            sink=shell.sink,
            options=HandlerOptions(
                worker_id=worker_id,
                model=settings.worker.model,
                chunk_interval_s=settings.worker.chunk_interval_s,
                chunk_max_tokens=settings.worker.chunk_max_tokens,
                retries=settings.worker.engine_retries,
            ),
            serving=switcher.serving,
            now_ms=_now_ms,
            monotonic_s=time.monotonic,
        )
        switcher.announce("starting")
        await _serve(app, shell, switcher, bus, stop, failure, settings.worker.drain_timeout_s)
    finally:
        if engine is not None:
            await engine.close()
        await asyncio.to_thread(publisher.close)
        watcher.close()


class LazyProducer:
    """Faust makes its producer on start; this looks it up on each call."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def send(self, *arguments: Any) -> Any:
        """As ``sink.Producer.send``."""
        return await self._app.producer.send(*arguments)


async def _unless(stop: asyncio.Event, work: Any) -> Any:
    """The result of ``work``, or None if ``stop`` is set first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


async def _serve(
    app: Any,
    shell: WorkerApp,
    switcher: VersionSwitcher,
    bus: Bus,
    stop: asyncio.Event,
    failure: asyncio.Future[None],
    drain_timeout_s: float,
) -> None:
    assert shell.handler is not None
    await app.start()
    switcher.announce("ready")
    _LOG.info("serving %s", switcher.serving())
    background = {
        asyncio.ensure_future(stop.wait()),
        asyncio.ensure_future(switcher.follow()),
        asyncio.ensure_future(_follow_cancellations(bus, shell.handler)),
        asyncio.ensure_future(app.wait_until_stopped()),
    }
    state: Literal["stopped", "failed"] = "failed"
    try:
        done, _ = await asyncio.wait({*background, failure}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
        if not stop.is_set():
            raise FatalError("the stream application stopped by itself")
        switcher.announce("draining")
        if not await shell.drain(drain_timeout_s):
            _LOG.warning(
                "not everything ended within %.0f s; it is delivered again", drain_timeout_s
            )
        state = "stopped"
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        if failure.done():
            failure.exception()
        await app.stop()
        switcher.announce(state)
