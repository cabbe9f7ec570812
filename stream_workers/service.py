"""A worker's life: version, engine, group, drain. The only place where the parts meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from aiokafka.errors import KafkaError

from infra import heap
from infra.contracts.bus import Bus
from infra.contracts.catalogue import (
    CANCELLATIONS,
    CHUNKS,
    FEEDBACK,
    FORGOTTEN,
    REQUESTS,
    REQUESTS_BATCH,
    RESULTS,
)
from infra.contracts.codec import decode
from infra.contracts.errors import ConfigurationError, ContractError, FatalError, FeedloomError
from infra.contracts.events.generation import (
    GenerationCancellation,
    GenerationRequest,
)
from infra.kafka.topics import replicas
from infra.registry.client import RegistryWatcher
from infra.registry.store import ArtifactStore
from infra.registry.workers import WorkersWatcher
from infra.settings import KafkaSettings, Settings
from infra.stacks import tell_stacks_when_asked
from observability.instruments import (
    CONSUMER_LAG,
    ENGINE_ALIVE,
    ENGINE_RUNNING,
    ERROR_TYPE,
    KV_CACHE_USAGE,
    PARTITION_STALL,
    TOKENS_IN_FLIGHT,
    WORKER_FAILURES,
    ObservedGauge,
    Reading,
)
from observability.metrics import is_collecting
from stream_workers.admission import Scheduler
from stream_workers.app import LazyFlow, LazyProducer, aiokafka_options, faust_app
from stream_workers.coalescer import crowding
from stream_workers.configuration import Configuration, config_watcher
from stream_workers.dispatcher import Dispatcher, DispatchOptions
from stream_workers.engine import Engine, EngineDead
from stream_workers.engines import EngineKind, build_engine
from stream_workers.event_publisher import EventPublisher
from stream_workers.handler import HandlerOptions, RequestHandler
from stream_workers.health import HealthServer, Phase, Vitals
from stream_workers.jobs import Job
from stream_workers.join_agents import FeedbackJoin
from stream_workers.lag import PartitionLag
from stream_workers.outcomes import INTERVAL_S, OutcomeLog
from stream_workers.plan import version_name
from stream_workers.recovery import recover
from stream_workers.routing import Route
from stream_workers.shadow import Shadow
from stream_workers.sink import KafkaSink
from stream_workers.slack import BatchWindow
from stream_workers.transactions import Outgoing, TransactionalProducer
from stream_workers.versions import VersionSwitcher, wait_for_plan

ENGINE_WATCH_S = 0.5
ENDS_S = 5.0
"""Between two looks at where partitions end, for the lag that operators see."""
LEAVE_S = 15.0
"""For Faust to stop, and for the last reports to be written. Without a broker they would wait."""

_LOG = logging.getLogger(__name__)


def default_worker_id() -> str:
    """Unique among the workers of a machine and over its restarts."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def joint_partitions(bus: Bus) -> int:
    """The partition count that the worker's topics share. Raises ConfigurationError."""
    names = (REQUESTS.name, REQUESTS_BATCH.name, RESULTS.name, FEEDBACK.name, FORGOTTEN.name)
    counts = {name: len(bus.end_offsets(name)) for name in names}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ConfigurationError(
            f"these topics must have one partition count: {counts} (feedloom topics apply)"
        )
    return counts[RESULTS.name]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _follow_cancellations(bus: Bus, dispatcher: Dispatcher) -> None:
    reader = await asyncio.to_thread(lambda: bus.reader([CANCELLATIONS.name], start="latest"))
    try:
        while True:
            for record in await asyncio.to_thread(reader.poll, 1.0):
                try:
                    dispatcher.cancel(decode(record.value or b"", GenerationCancellation))
                except ContractError as error:
                    _LOG.warning("unreadable cancellation at %d: %s", record.offset, error)
    finally:
        reader.close()


async def run_worker(
    settings: Settings,
    kafka: KafkaSettings,
    bus: Bus,
    kind: EngineKind,
    token_interval_s: float = 0.001,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain. ``token_interval_s``: the memory engine's pace.

    Raises:
        FatalError: the engine died, Faust crashed, or a request could not be answered.
        ConfigurationError: topics are missing or there is no version to serve.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tell_stacks_when_asked(loop)
    options = settings.worker
    worker_id = options.worker_id or default_worker_id()
    async with contextlib.AsyncExitStack() as stack:
        partitions = await asyncio.to_thread(joint_partitions, bus)
        chunk_partitions = len(await asyncio.to_thread(bus.end_offsets, CHUNKS.name))
        watcher = RegistryWatcher(bus)
        stack.callback(watcher.close)
        publisher = bus.publisher(client_id=worker_id)
        stack.push_async_callback(asyncio.to_thread, publisher.close, LEAVE_S)
        configuring = await asyncio.to_thread(config_watcher, bus, options)
        stack.callback(configuring.close)
        workers = WorkersWatcher(bus)
        stack.callback(workers.close)
        await asyncio.to_thread(workers.catch_up)
        plan = await _unless(stop, wait_for_plan(watcher, options.model))
        if plan is None:
            return
        store = ArtifactStore(settings.artifacts)
        path = await asyncio.to_thread(store.resolve, plan.base)
        base = version_name(plan.base)
        _LOG.info("building the %s engine for %s", kind, base)
        engine = build_engine(
            kind, options, path=path, version=base, token_interval_s=token_interval_s
        )
        stack.push_async_callback(engine.close)
        failure: asyncio.Future[None] = loop.create_future()

        def fail(error: BaseException) -> None:
            if not failure.done():
                failure.set_exception(error)

        producer = TransactionalProducer(
            transactional_id=f"{kafka.topic_prefix}{options.group}.{worker_id}",
            timeout_s=options.transaction_timeout_s,
            client_options=aiokafka_options(kafka),
        )
        await producer.start()
        stack.push_async_callback(producer.stop)
        app = faust_app(
            kafka,
            options,
            partitions=partitions,
            replicas=await asyncio.to_thread(replicas, kafka, RESULTS.name),
            datadir=settings.home / "worker",
            stored=producer.committed,
        )
        events = EventPublisher(publisher, worker_id)
        switcher = VersionSwitcher(
            engine=engine,
            store=store,
            watcher=watcher,
            workers=workers,
            base=plan.base,
            path=path,
            worker_id=worker_id,
            report=events.status,
            in_flight=lambda: handler.in_flight,
            queued=lambda: scheduler.queued,
            now_ms=_now_ms,
            max_adapter_rank=options.max_adapter_rank,
        )
        shadow = Shadow(
            engine=engine,
            publish=events.shadow,
            worker_id=worker_id,
            now_ms=_now_ms,
            monotonic_s=time.monotonic,
        )
        stack.push_async_callback(shadow.close)
        configuration = Configuration(options, configuring)

        def route(request: GenerationRequest) -> Route:
            routing = switcher.routing
            if routing.trial is None:
                return Route(version=routing.serving)
            return routing.route(request, configuration.participation(request.tenant))

        sink = KafkaSink(
            LazyProducer(app),
            prefix=kafka.topic_prefix,
            source=f"worker/{worker_id}",
            chunk_partitions=chunk_partitions,
        )
        if options.join_feedback:
            FeedbackJoin(
                app,
                prefix=kafka.topic_prefix,
                sink=sink,
                partitions=partitions,
                window_s=options.feedback_window_s,
            )
        handler: RequestHandler[Outgoing] = RequestHandler(
            engine=engine,
            sink=sink,
            options=HandlerOptions(
                worker_id=worker_id,
                model=options.model,
                chunk_interval_s=configuring.state.worker.chunk_interval_s,
                chunk_max_tokens=configuring.state.worker.chunk_max_tokens,
                retries=options.engine_retries,
            ),
            route=route,
            settle=configuration.settle,
            shadow=shadow,
            now_ms=_now_ms,
            monotonic_s=time.monotonic,
        )
        window = BatchWindow(configuration.batch, time.monotonic())
        scheduler: Scheduler[Job] = Scheduler(configuration.limits)
        dispatcher = Dispatcher(
            handler=handler,
            scheduler=scheduler,
            batch=window,
            load=engine.load,
            recover=lambda positions: recover(bus, positions, remember=options.remember_records),
            flow=LazyFlow(app),
            on_fatal=fail,
            now_ms=_now_ms,
            options=DispatchOptions(max_queued=options.max_queued),
        )
        outcomes = OutcomeLog(
            producer,
            prefix=kafka.topic_prefix,
            trackers=dispatcher.trackers,
            position=dispatcher.position,
            interval_s=lambda: INTERVAL_S * crowding(dispatcher.in_flight),
            on_commit=app.transport.lag.committed,
        )
        dispatcher.bind(outcomes)
        app.transport.intake = dispatcher
        for stop_watching in watch(engine, scheduler, app.transport.lag):
            stack.callback(stop_watching)
        worker = _Worker(
            app=app,
            dispatcher=dispatcher,
            switcher=switcher,
            failure=failure,
            loops=[
                lambda: outcomes.run(),
                lambda: dispatcher.run(),
                lambda: switcher.follow(),
                lambda: _follow_cancellations(bus, dispatcher),
                lambda: configuration.follow(handler, scheduler, window),
                lambda: _watch_engine(engine),
                *([lambda: _follow_ends(app)] if is_collecting() else []),
            ],
        )
        if options.health_port is not None:
            health = HealthServer(
                Vitals(
                    engine_dead=lambda: engine.dead,
                    commits_failing_s=lambda: outcomes.failing_s,
                    broker_answers=producer.reachable,
                    partitions=dispatcher.health,
                    phase=lambda: worker.phase,
                    stuck_s=options.stuck_s,
                ),
                host=options.health_host,
                port=options.health_port,
            )
            await health.start()
            stack.push_async_callback(health.stop)
            _LOG.info("health at http://%s:%d/readyz", options.health_host, health.port)
        switcher.announce("starting")
        await switcher.begin(plan)
        heap.settle()
        try:
            await worker.serve(stop, options.drain_timeout_s)
        except FeedloomError as error:
            # Gauges are read no more by the time that the last figures go out.
            WORKER_FAILURES.add(1, {ERROR_TYPE: type(error).__qualname__})
            raise
        _LOG.info(
            "stopped; %d requests ended in %d transactions",
            outcomes.committed,
            outcomes.transactions,
        )


def watch(engine: Engine, scheduler: Scheduler[Any], lag: PartitionLag) -> list[Callable[[], None]]:
    """Have metrics read what is so now, whenever they are collected; returns what stops each."""
    readings: list[tuple[ObservedGauge, Reading]] = [
        (TOKENS_IN_FLIGHT, lambda: [(scheduler.inflight_tokens, {})]),
        (CONSUMER_LAG, lag.lags),
        (PARTITION_STALL, lag.stalls),
        (ENGINE_ALIVE, lambda: [(0 if engine.dead else 1, {})]),
        (ENGINE_RUNNING, lambda: [(engine.load().running, {})]),
        (KV_CACHE_USAGE, lambda: [(engine.load().kv_cache_usage, {})]),
    ]
    return [gauge.watch(reading) for gauge, reading in readings]


async def _follow_ends(app: Any) -> None:
    """What is not learnt in time is learnt at the next look."""
    while True:
        if app.transport.lag.partitions:
            try:
                await asyncio.wait_for(app.consumer.measure_ends(), ENDS_S)
            except (KafkaError, TimeoutError) as error:
                _LOG.warning("where the request topics end is unknown: %r", error)
        await asyncio.sleep(ENDS_S)


async def _watch_engine(engine: Engine) -> None:
    """An idle worker must notice too. Raises EngineDead."""
    while not engine.dead:  # noqa: ASYNC110 - a flag of another process, no event to wait for
        await asyncio.sleep(ENGINE_WATCH_S)
    raise EngineDead("the engine has ended")


async def _unless(stop: asyncio.Event, work: Any) -> Any:
    """The result of ``work``, or None if ``stop`` is set first."""
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if task.done():
        return task.result()
    task.cancel()
    return None


@dataclass
class _Worker:
    """The running parts, from joining the group to leaving it."""

    app: Any
    dispatcher: Dispatcher
    switcher: VersionSwitcher
    failure: asyncio.Future[None]
    loops: list[Callable[[], Coroutine[Any, Any, None]]]
    phase: Phase = "starting"

    async def serve(self, stop: asyncio.Event, drain_timeout_s: float) -> None:
        """Until ``stop``; then drain, commit and leave the group. Raises what went wrong."""
        stopped = asyncio.ensure_future(stop.wait())
        starting = asyncio.ensure_future(self.app.start())
        tasks: list[asyncio.Future[Any]] = [stopped, starting]
        tasks += [asyncio.ensure_future(loop()) for loop in self.loops]
        state: Literal["stopped", "failed"] = "failed"
        try:
            # It lasts until a table is read, or until a broker answers.
            await self._first_of(tasks)
            if starting.done() and not stop.is_set():
                tasks.remove(starting)
                self.phase = "ready"
                self.switcher.announce("ready")
                _LOG.info("serving %s", self.switcher.serving())
                tasks.append(asyncio.ensure_future(self.app.wait_until_stopped()))
                await self._first_of(tasks)
            if not stop.is_set():
                raise FatalError("the stream application stopped by itself")
            self.phase = "draining"
            self.switcher.announce("draining")
            if not await self.dispatcher.drain(drain_timeout_s):
                _LOG.warning(
                    "not everything ended within %.0f s; its next owner goes on with it",
                    drain_timeout_s,
                )
            state = "stopped"
        finally:
            # Leaving the group hands the partitions back at once; only then may the loops end.
            leaving = asyncio.ensure_future(self.app.stop())
            # Not wait_for: Faust takes no notice of being cancelled.
            _, late = await asyncio.wait({leaving}, timeout=LEAVE_S)
            if late:
                _LOG.warning(
                    "the group could not be left within %.0f s, as Kafka does not answer; it gives "
                    "the partitions to others after the session timeout",
                    LEAVE_S,
                )
            else:
                await leaving
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.failure.done():
                self.failure.exception()
            self.switcher.announce(state)

    async def _first_of(self, tasks: Iterable[asyncio.Future[Any]]) -> None:
        """Until one has ended. Raises what it, or the dispatcher, failed with."""
        done, _ = await asyncio.wait({*tasks, self.failure}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
