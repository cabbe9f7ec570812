"""Closed and open load on anything that streams tokens, and what it measures. One event loop.

The same driver loads every side, so its own cost is the same everywhere. A delta's arrival is
noted when the consuming task has it. Rates count the tokens that arrived within the window; TTFT
is of the requests sent within it; ITL counts a delta of n tokens after a gap g as n tokens g/n
apart.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Protocol

from benchmarks.harness import Broken, project_home
from benchmarks.stats import percentile

MIN_TOKENS, MAX_TOKENS = 64, 192
SEED = 20_240


@dataclass(frozen=True, slots=True)
class Job:
    """One request: its place in the sequence that all sides share, prompt and answer length."""

    number: int
    prompt: str
    max_tokens: int


class Side(Protocol):
    """Something that answers."""

    def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each delta, as it arrives; 0 when the side does not tell."""
        ...


@dataclass(slots=True)
class Trace:
    """What became of one job; monotonic seconds."""

    job: Job
    sent: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    ended: float = 0.0


@cache
def prompts() -> tuple[str, ...]:
    """The openings that came with the embedded model."""
    path = project_home() / "demo" / "prompts.jsonl"
    return tuple(json.loads(line)["prompt"] for line in path.read_bytes().splitlines())


def job(number: int) -> Job:
    """Number ``number`` of the sequence; lengths are uniform over 64 to 192 tokens."""
    texts = prompts()
    length = random.Random(SEED + number).randint(MIN_TOKENS, MAX_TOKENS)
    return Job(number, texts[number % len(texts)], length)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Results of one window of load. Latencies in milliseconds."""

    tokens_per_s: float
    requests_per_s: float
    requests: int
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    """p50, p95, p99 of both."""
    deltas_per_token: float


async def _run(side: Side, job: Job, traces: list[Trace], timeout_s: float) -> None:
    trace = Trace(job, time.monotonic())
    traces.append(trace)
    async with asyncio.timeout(timeout_s):
        async for tokens in side.stream(job):
            trace.arrivals.append((time.monotonic(), tokens))
    trace.ended = time.monotonic()


async def closed_loop(
    side: Side, *, concurrency: int, ramp_s: float, window_s: float, timeout_s: float = 120.0
) -> Window:
    """Each of ``concurrency`` slots sends its next request when its stream has ended.

    The window begins after ``ramp_s``; after it slots send no more, and all that was sent is
    waited for. Raises Broken if an answer is missing or too short.
    """
    traces: list[Trace] = []
    numbers = iter(range(10**9))
    begin = time.monotonic() + ramp_s
    end = begin + window_s

    async def slot() -> None:
        while time.monotonic() < end:
            await _run(side, job(next(numbers)), traces, timeout_s)

    await _all(slot() for _ in range(concurrency))
    return summary(traces, begin, end)


async def open_loop(
    side: Side, *, rate_per_s: float, ramp_s: float, window_s: float, timeout_s: float = 120.0
) -> Window:
    """Poisson arrivals from a fixed seed, whether or not earlier requests have ended."""
    traces: list[Trace] = []
    draw = random.Random(SEED)
    start = time.monotonic()
    begin, end = start + ramp_s, start + ramp_s + window_s
    due, number = start, 0
    tasks: list[asyncio.Task[None]] = []
    try:
        while (due := due + draw.expovariate(rate_per_s)) < end:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(_run(side, job(number), traces, timeout_s)))
            number += 1
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return summary(traces, begin, end)


async def _all(work: Iterable[Coroutine[None, None, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(each)


def summary(traces: Sequence[Trace], begin: float, end: float) -> Window:
    """Figures of the window. Raises Broken if an answer is missing or too short."""
    gaps: list[tuple[float, int]] = []
    ttfts: list[float] = []
    tokens = 0.0
    deltas = finished = 0
    for trace in traces:
        arrivals = _counted(trace)
        total = sum(count for _, count in arrivals)
        if not trace.ended or round(total) != trace.job.max_tokens:
            raise Broken(
                f"request {trace.job.number}: {total} tokens of {trace.job.max_tokens} arrived"
            )
        tokens += sum(count for at, count in arrivals if begin <= at < end)
        deltas += sum(1 for at, _ in arrivals if begin <= at < end)
        finished += begin <= trace.ended < end
        if begin <= trace.sent < end:
            ttfts.append(1000 * (arrivals[0][0] - trace.sent))
            gaps += [
                (1000 * (later - earlier) / count, max(1, round(count)))
                for (earlier, _), (later, count) in pairwise(arrivals)
            ]
    itls = [gap for gap, count in gaps for _ in range(count)]
    quantiles = (0.5, 0.95, 0.99)
    return Window(
        tokens_per_s=tokens / (end - begin),
        requests_per_s=finished / (end - begin),
        requests=len(traces),
        ttft_ms=tuple(percentile(ttfts, quantile) for quantile in quantiles),
        itl_ms=tuple(percentile(itls, quantile) for quantile in quantiles),
        deltas_per_token=deltas / max(1, tokens),
    )


def _counted(trace: Trace) -> list[tuple[float, float]]:
    """Arrivals with tokens; where a side does not tell, its deltas share the tokens evenly."""
    if any(count for _, count in trace.arrivals):
        return [(at, float(count)) for at, count in trace.arrivals if count]
    each = trace.job.max_tokens / max(1, len(trace.arrivals))
    return [(at, each) for at, _ in trace.arrivals]


Load = Callable[[Side], Awaitable[Window]]
