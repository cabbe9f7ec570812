"""How long after a client's cancellation the engine has let go of the request.

Measured: through the platform with a vLLM worker as shipped, while other requests stream; a
request is cancelled once its first chunk has come. The time is from the call of `cancel` in the
client to the moment that the worker has aborted the request in the engine and made its result
(`finished_at_ms`, the same machine's clock), so the way through Kafka is part of it. Not measured:
what the client has yet to read.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from benchmarks.harness import Broken, Report, Target, command
from benchmarks.load import prompts
from benchmarks.models import embedded_model
from benchmarks.stage import Deployment, Stage
from benchmarks.stats import percentile
from infra.contracts.events.generation import SamplingParameters
from producers.aio import AsyncGenerationClient

BUSY, QUICK_BUSY = (1, 32), (32,)
CANCELLED, QUICK_CANCELLED = 100, 30
LONG = SamplingParameters(max_tokens=400, ignore_eos=True)
TARGET = Target("<=", 100.0)
TIMEOUT_S = 120.0


def measure(report: Report) -> None:
    """See the module."""
    with Stage() as stage:
        place = stage.deployment("cancellation")
        place.publish_model(embedded_model())
        report.say("starting the worker")
        place.worker(engine="vllm")
        for others in QUICK_BUSY if report.quick else BUSY:
            waits = asyncio.run(
                cancel_some(place, others, QUICK_CANCELLED if report.quick else CANCELLED)
            )
            found = {f"p{int(100 * q)}": percentile(waits, q) for q in (0.5, 0.95, 0.99)}
            report.say(f"beside {others}: " + ", ".join(f"{k} {v:.0f}" for k, v in found.items()))
            report.ratio(
                f"cancelled within, p99, beside {others} streams, ms", found["p99"], TARGET
            )
            report.figures[f"beside {others} streams"] = {
                "cancelled": len(waits),
                "ms": {**found, "max": max(waits)},
            }


async def cancel_some(place: Deployment, others: int, number: int) -> list[float]:
    """Milliseconds until each of ``number`` requests was aborted."""
    texts = prompts()
    waits: list[float] = []
    async with AsyncGenerationClient(place.bus, source="benchmark") as client:

        async def stream(slot: int) -> None:
            while True:
                handle = await client.submit(texts[slot % len(texts)], sampling=LONG)
                await handle.result(TIMEOUT_S)

        background = [asyncio.create_task(stream(slot)) for slot in range(others)]
        try:
            await asyncio.sleep(2.0)
            for each in range(number):
                handle = await client.submit(texts[each % len(texts)], sampling=LONG)
                await anext(handle.stream(TIMEOUT_S))
                at_ms = time.time_ns() / 1e6
                handle.cancel()
                result = await handle.result(TIMEOUT_S)
                if result.finish_reason != "cancelled":
                    raise Broken(f"{result.request_id} ended as {result.finish_reason}")
                waits.append(result.finished_at_ms - at_ms)
        finally:
            for task in background:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*background)
    return waits


main = command(measure, name="bench_cancellation", description=__doc__)

if __name__ == "__main__":
    main()
