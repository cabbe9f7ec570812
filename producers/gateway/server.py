"""One gateway process: everything made, served until it is told to stop, and let go of."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn

from infra import heap
from infra.contracts import catalogue
from infra.contracts.errors import ConfigurationError
from infra.identity.authenticator import PlatformAuthenticator
from infra.kafka.bus import KafkaBus, resolve_kafka
from infra.kafka.dead_letters import DeadLetters, blank_spans
from infra.kafka.lag import GroupLag
from infra.settings import Settings
from infra.stacks import tell_stacks_when_asked
from observability.setup import configure_telemetry
from producers.gateway.app import create_app
from producers.gateway.console.desk import Console
from producers.gateway.presence import Presence, free_partition, live_gateways
from producers.gateway.service import GatewayService
from producers.gateway.views import Views

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError: no broker, or the port is taken."""
    options = settings.gateway
    if not options.files_url:
        options = options.model_copy(update={"files_url": str(settings.home / "gateway-files")})
    kafka = resolve_kafka(settings)
    gateway_id = options.gateway_id or f"{socket.gethostname()}-{os.getpid()}"
    with (
        configure_telemetry("feedloom-gateway", settings.telemetry, instance_id=gateway_id),
        KafkaBus(kafka) as bus,
    ):
        authenticator = PlatformAuthenticator(bus, options)
        listening = _listen(options.host, options.port)
        lag = GroupLag(kafka, group=settings.worker.group, topic=catalogue.REQUESTS.name)
        views = Views(bus, lag=lag.measure, polls=(authenticator.poll,))
        if options.reply_partition is None:
            others = live_gateways(bus, now_ms=time.time_ns() // 1_000_000)
            partitions = len(bus.end_offsets(catalogue.CHUNKS.name))
            own = free_partition(others, partitions)
            options = options.model_copy(update={"reply_partition": own})
        service = GatewayService(bus, views, options, source=f"gateway-{gateway_id}")
        host, port = listening.getsockname()[:2]
        presence = Presence(
            bus,
            gateway_id=gateway_id,
            reply_partition=service.reply_partition,
            url=f"http://{host}:{port}",
        )
        try:
            source = f"gateway-{gateway_id}"
            console = Console(
                bus,
                service,
                source=source,
                span_directory=settings.telemetry.span_directory,
                dead_letters=DeadLetters(bus, blank=partial(blank_spans, kafka)),
            )
            app = create_app(bus, service, authenticator, options, source=source, console=console)
            log.info("gateway %s listens on http://%s:%d", gateway_id, host, port)
            heap.settle()
            _Server(
                uvicorn.Config(
                    app,
                    loop="uvloop",
                    http="httptools",
                    lifespan="on",
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=int(options.drain_timeout_s),
                    limit_concurrency=options.max_connections,
                )
            ).run(sockets=[listening])
        finally:
            presence.close()
            views.close()
            authenticator.close()
            lag.close()


class _Server(uvicorn.Server):
    """Ends in order: uvicorn would raise the signal again, before anything is let go of."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server, a second one at once."""
        tell_stacks_when_asked(asyncio.get_running_loop())
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=2048, reuse_port=False)
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}; set "
            "FEEDLOOM_GATEWAY__PORT to a free one"
        ) from error
