"""``feedloom worker``. Faust and vLLM are imported once the command runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from stream_workers.engines import EngineKind


engine_option = click.option(
    "--engine",
    type=click.Choice(["vllm", "memory"]),
    default="vllm",
    show_default=True,
    help="memory answers with words of the prompt; it needs no vLLM.",
)


@click.command()
@engine_option
@click.option(
    "--token-interval",
    "token_interval_s",
    default=0.001,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds a token, of the memory engine.",
)
def worker(engine: EngineKind, token_interval_s: float) -> None:
    """Run a stream worker until SIGTERM or SIGINT."""
    import asyncio
    import os
    import sys

    import uvloop

    from infra.kafka.bus import KafkaBus, resolve_kafka
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from stream_workers import event_loop
    from stream_workers.service import default_worker_id, run_worker

    settings = load_settings()
    if settings.worker.worker_id is None:
        named = settings.worker.model_copy(update={"worker_id": default_worker_id()})
        settings = settings.model_copy(update={"worker": named})
    kafka = resolve_kafka(settings)
    with (
        configure_telemetry(
            "feedloom-worker", settings.telemetry, instance_id=settings.worker.worker_id
        ),
        KafkaBus(kafka) as bus,
    ):
        # For every loop of the process, Faust's consumer thread included.
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        ended = event_loop.run(run_worker(settings, kafka, bus, engine, token_interval_s))
    if not ended:
        sys.stderr.flush()
        os._exit(0)
