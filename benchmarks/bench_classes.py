"""Interactive TTFT beside a full backlog of batch requests, over that without one.

Measured: an open loop of interactive requests (Poisson arrivals, 64 to 192 tokens) through the
platform with a vLLM worker as shipped, once alone and once while more batch requests wait than
the worker can answer in the window. Batch requests have 64 to 192 tokens as well, and a deadline
at the end of the window, so that a round leaves nothing to the next. Both windows of a round lie
next to each other; every other round has them in reverse order. Batch tokens/s say what the
backlog got out of it. Not measured: several tenants, more than one worker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from msgspec import structs

from benchmarks.harness import Broken, Report, Target, command, table
from benchmarks.load import job
from benchmarks.models import embedded_model
from benchmarks.records import publish_requests, request_of
from benchmarks.sdk_side import through_kafka
from benchmarks.stage import Deployment, Stage, wait_until
from benchmarks.stats import paired_ratio, spread
from benchmarks.turns import drive, order_of
from benchmarks.written import written
from infra.contracts.catalogue import REQUESTS_BATCH, RESULTS
from infra.contracts.codec import decode
from infra.contracts.events.generation import (
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
)
from infra.settings import WorkerSettings

RATES = (2.0, 8.0)
QUICK_RATES = (8.0,)
LEAD_S = 5.0
"""For the batch window to find its size before anything is measured."""
LOAD = {"ramp_s": 2.0, "window_s": 25.0}
QUICK_LOAD = {"ramp_s": 1.0, "window_s": 10.0}
BACKLOG_PER_S = 60
"""Batch requests for each second of a window: more than the engine can answer."""
TARGET = Target("<=", 1.2)
TIMEOUT_S = 120.0


def measure(report: Report) -> None:
    """See the module."""
    rounds, load = (1, QUICK_LOAD) if report.quick else (3, LOAD)
    model = embedded_model()
    with Stage() as stage:
        place = stage.deployment("classes")
        place.publish_model(model)
        report.say("starting the worker")
        place.worker(engine="vllm")
        for rate in QUICK_RATES if report.quick else RATES:
            compare(report, place, {"rate_per_s": rate, **load}, rounds)
    show(report)


def compare(report: Report, place: Deployment, load: Mapping[str, float], rounds: int) -> None:
    """Windows with and without a backlog, in turns."""
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "beside batch": []}
    rate = load["rate_per_s"]
    for number in range(rounds):
        for name in order_of(found, number):
            window = beside_batch(place, load) if name != "alone" else alone(place, load)
            found[name].append(window)
            report.say(
                f"{rate:g}/s, round {number + 1}/{rounds}, {name}: TTFT p50 "
                f"{window['ttft_ms'][0]:.0f}, p95 {window['ttft_ms'][1]:.0f} ms, "
                f"batch {window['batch_tokens_per_s']:.0f} tokens/s"
            )
    for index, quantile in enumerate(("p50", "p95")):
        report.ratio(
            f"interactive TTFT {quantile} beside batch / alone, {rate:g} requests/s",
            paired_ratio(
                *([window["ttft_ms"][index] for window in found[name]] for name in reversed(found))
            ),
            TARGET if quantile == "p95" else None,
        )
    report.figures[f"{rate:g} requests/s"] = {
        name: {
            "ttft_ms": {
                quantile: spread([window["ttft_ms"][index] for window in windows])
                for index, quantile in enumerate(("p50", "p95", "p99"))
            },
            "itl_p50_ms": spread([window["itl_ms"][0] for window in windows]),
            "interactive_tokens_per_s": spread([window["tokens_per_s"] for window in windows]),
            "batch_tokens_per_s": spread([window["batch_tokens_per_s"] for window in windows]),
        }
        for name, windows in found.items()
    }


def alone(place: Deployment, load: Mapping[str, float]) -> dict[str, Any]:
    """One window of interactive requests and nothing else."""
    time.sleep(LEAD_S)
    return {**asdict(through_kafka(place.bus, drive(load))), "batch_tokens_per_s": 0.0}


def beside_batch(place: Deployment, load: Mapping[str, float]) -> dict[str, Any]:
    """One window while the backlog lasts."""
    before = dict(place.bus.end_offsets(RESULTS.name))
    lasts_s = LEAD_S + load["ramp_s"] + load["window_s"] + 1.0
    begin_ms = time.time_ns() // 1_000_000
    count = publish_requests(
        place.bus,
        batch_requests(int(BACKLOG_PER_S * lasts_s), deadline_ms=begin_ms + int(1000 * lasts_s)),
        topic=REQUESTS_BATCH.name,
    )
    time.sleep(max(0.0, LEAD_S - (time.time_ns() / 1e6 - begin_ms) / 1000))
    started_ms = time.time_ns() // 1_000_000
    window = asdict(through_kafka(place.bus, drive(load)))
    ended_ms = time.time_ns() // 1_000_000
    published = sum(place.bus.end_offsets(REQUESTS_BATCH.name).values())
    wait_until(
        lambda: place.finished(WorkerSettings().group, [REQUESTS_BATCH.name]) >= published,
        what="the end of the backlog",
        timeout_s=TIMEOUT_S,
    )
    results = [
        result
        for record in written(place, RESULTS.name, before)
        if (result := decode(record.value or b"", GenerationResult)).tenant == "batch"
    ]
    if len(results) != count:
        raise Broken(f"{len(results)} results of {count} batch requests")
    if not any(result.finish_reason == "deadline_exceeded" for result in results):
        raise Broken("the backlog was answered before the window ended: it was not full")
    tokens = sum(
        result.output_tokens for result in results if started_ms <= result.finished_at_ms < ended_ms
    )
    return {**window, "batch_tokens_per_s": 1000 * tokens / (ended_ms - started_ms)}


def batch_requests(count: int, *, deadline_ms: int) -> Iterator[GenerationRequest]:
    """The same prompts and lengths as the interactive ones."""
    for number in range(count):
        source = job(number)
        # Ids that no other window has used.
        request = request_of(deadline_ms * 10_000 + number)
        yield structs.replace(
            request,
            prompt=source.prompt,
            sampling=SamplingParameters(max_tokens=source.max_tokens, ignore_eos=True),
            deadline_ms=deadline_ms,
            tenant="batch",
        )


def show(report: Report) -> None:
    """Latencies, side by side."""
    rows = []
    for load, sides in report.figures.items():
        for name, found in sides.items():
            quantiles = [f"{found['ttft_ms'][q]['median']:.1f}" for q in ("p50", "p95", "p99")]
            rows.append([load, name, *quantiles, f"{found['batch_tokens_per_s']['median']:.0f}"])
    table(
        "interactive",
        {
            "load": "left",
            "": "left",
            "TTFT p50 ms": "right",
            "p95": "right",
            "p99": "right",
            "batch tokens/s": "right",
        },
        rows,
    )


main = command(measure, name="bench_classes", description=__doc__)

if __name__ == "__main__":
    main()
