"""The platform's side of a load: the SDK in this process, answers from a worker elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from benchmarks.harness import Broken
from benchmarks.load import Job, Load, Window
from infra.contracts.bus import Bus
from infra.contracts.events.generation import SamplingParameters
from producers.aio import AsyncGenerationClient, AsyncGenerationHandle

RESULT_TIMEOUT_S = 60.0


class SdkSide:
    """Implements ``load.Side`` with the asynchronous client; a context manager around a load."""

    def __init__(self, bus: Bus) -> None:
        self._client = AsyncGenerationClient(bus, source="benchmark")
        self._handles: list[AsyncGenerationHandle] = []

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each chunk, until the last one."""
        sampling = SamplingParameters(max_tokens=job.max_tokens, ignore_eos=True)
        handle = await self._client.submit(job.prompt, sampling=sampling)
        self._handles.append(handle)
        async for chunk in handle.stream():
            yield len(chunk.token_ids)

    async def results(self) -> int:
        """Wait for the final result of all that was sent; returns how many. Raises Broken."""
        for handle in self._handles:
            result = await handle.result(RESULT_TIMEOUT_S)
            if result.error is not None or result.finish_reason != "length":
                raise Broken(f"{result.request_id}: {result.finish_reason} {result.error}")
        return len(self._handles)

    async def __aenter__(self) -> SdkSide:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.__aexit__(None, None, None)


def through_kafka(bus: Bus, load: Load) -> Window:
    """Apply ``load`` to a client of its own, and see that every result came."""

    async def run() -> Window:
        async with SdkSide(bus) as side:
            window = await load(side)
            if await side.results() != window.requests:
                raise Broken("not every request has a result")
            return window

    return asyncio.run(run())
