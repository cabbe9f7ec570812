"""Throughput of 1, 2, 4, 8 and 16 workers whose engine sleeps, over that of one worker times n.

Measured: results/s, by the results' own timestamps, in a window that begins once all workers serve
and the group has settled. Each worker runs a fixed number of requests at a time
(FEEDLOOM_WORKER__MAX_INFLIGHT_TOKENS) that sleep, so the engine takes no CPU and the throughput of
n workers is n times that of one, unless the platform itself is in the way: partitions that are not
shared out evenly, a worker that waits for another, rebalances, the broker. The backlog lies evenly
on 48 partitions and never ends. Workers join one after the other up to 16, then leave again down
to one; each count is measured on the way up and on the way down. Feedback join is off
(FEEDLOOM_WORKER__JOIN_FEEDBACK=false). Not measured: more machines, and engines that take CPU.
"""

from __future__ import annotations

import time
from collections import defaultdict

import psutil

from benchmarks.harness import Broken, Report, Target, command
from benchmarks.records import publish_requests, request_of
from benchmarks.stage import Deployment, Stage
from benchmarks.stats import event_rate, spread
from benchmarks.written import written
from infra.contracts.catalogue import RESULTS
from infra.contracts.codec import decode
from infra.contracts.events.generation import GenerationResult
from infra.local.supervisor import Child

PARTITIONS = 48
INTERVAL_S = 0.5
TOKENS = 4
AT_ONCE = 8
SETTLE_S = 8.0
TARGET = Target(">=", 0.95)


def measure(report: Report) -> None:
    """See the module."""
    counts, window_s = ((1, 2, 4), 8.0) if report.quick else ((1, 2, 4, 8, 16), 20.0)
    expected = AT_ONCE / (INTERVAL_S * TOKENS)
    # Twice what all workers of all windows can answer, as partitions are not drained evenly.
    backlog = int(4 * expected * sum(counts) * (window_s + 2 * SETTLE_S)) + 2_000
    rates: dict[int, list[float]] = {count: [] for count in counts}
    cpu: dict[int, list[float]] = {count: [] for count in counts}
    with Stage() as stage:
        place = stage.deployment("scale", partitions=PARTITIONS)
        place.publish_model()
        publish_requests(
            place.bus,
            (request_of(number, max_tokens=TOKENS) for number in range(backlog)),
            spread_over=PARTITIONS,
        )
        workers: list[Child] = []
        for count in [*counts, *reversed(counts)]:
            while len(workers) < count:
                workers.append(start_worker(place))
            while len(workers) > count:
                stage.stop(workers.pop())
            time.sleep(SETTLE_S)
            psutil.cpu_percent()
            rate = results_per_s(place, window_s, count)
            cpu[count].append(psutil.cpu_percent())
            stage.check()
            rates[count].append(rate)
            report.say(f"{count} workers: {rate:.1f} results/s, CPU {cpu[count][-1]:.0f}%")
    one = sum(rates[1]) / len(rates[1])
    for count in counts[1:]:
        mean = sum(rates[count]) / len(rates[count])
        report.ratio(f"{count} workers / {count} x one worker", mean / (count * one), TARGET)
    report.figures = {
        "requests_at_once_per_worker": AT_ONCE,
        "seconds_per_request": INTERVAL_S * TOKENS,
        "results_per_s_if_nothing_but_sleep": expected,
        **{
            f"{count} workers": {
                "results_per_s": spread(rates[count]),
                "machine_cpu_percent": spread(cpu[count])["max"],
            }
            for count in counts
        },
    }


def start_worker(place: Deployment) -> Child:
    """One more worker. A request costs its prompt (one word) and its tokens."""
    return place.worker(
        token_interval_s=INTERVAL_S,
        join_feedback="false",
        max_inflight_tokens=AT_ONCE * (1 + TOKENS),
        # Few, so that a rebalance moves few requests that wait.
        max_queued=4 * AT_ONCE,
        session_timeout_s=30,
    )


def results_per_s(place: Deployment, window_s: float, workers: int) -> float:
    """Results in the next ``window_s`` seconds, by their timestamps: the sum of the workers' rates.

    A worker's requests end in step, so each rate is the slope of its own running count.
    """
    since = dict(place.bus.end_offsets(RESULTS.name))
    begin = time.time_ns() // 1_000_000
    time.sleep(window_s + 1.0)
    times: dict[str, list[float]] = defaultdict(list)
    for record in written(place, RESULTS.name, since):
        if begin <= record.timestamp_ms < begin + 1000 * window_s:
            worker = decode(record.value or b"", GenerationResult).worker_id
            times[worker].append(record.timestamp_ms / 1000)
    if len(times) != workers or min(len(each) for each in times.values()) < 2 * AT_ONCE:
        counts = {worker: len(each) for worker, each in times.items()}
        raise Broken(f"{workers} workers, and these results: {counts}; is the backlog used up?")
    return sum(event_rate(each) for each in times.values())


main = command(measure, name="bench_scale", description=__doc__)

if __name__ == "__main__":
    main()
