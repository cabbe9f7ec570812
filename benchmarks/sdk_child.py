"""The SDK under load in a process of its own, with the telemetry that its environment asks for.

One process has one set of telemetry providers, so sides that differ in theirs cannot share one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from benchmarks.harness import isolate
from benchmarks.rpc import keep_stdout, serve
from benchmarks.sdk_side import through_kafka
from benchmarks.turns import drive
from infra.contracts.bus import Bus
from infra.kafka.bus import KafkaBus
from infra.settings import KafkaSettings, TelemetrySettings
from observability.setup import configure_telemetry

SERVICE = "benchmark-client"


async def _run(bus: Bus) -> None:
    async def handle(command: Mapping[str, Any]) -> Any:
        # Its own loop in its own thread, as a program that uses the client has it.
        return asdict(await asyncio.to_thread(through_kafka, bus, drive(command)))

    await serve(handle)


@click.command()
@click.argument("bootstrap_servers")
@click.argument("topic_prefix")
def main(bootstrap_servers: str, topic_prefix: str) -> None:
    """Apply loads until the input ends."""
    keep_stdout()
    kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix)
    # The telemetry reads its variables here; what comes after may drop them.
    with configure_telemetry(SERVICE, TelemetrySettings()), KafkaBus(kafka) as bus:
        isolate()
        asyncio.run(_run(bus))


if __name__ == "__main__":
    main()
