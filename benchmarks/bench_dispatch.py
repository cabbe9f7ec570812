"""Requests/s through a worker whose engine takes no time, beside two loops that are no worker.

Measured: N requests lie on the topic before a side starts; each is answered with one chunk and one
result (max_tokens=1). The rate is results over the time from the first record that the side wrote
to its last result, by the records' own timestamps (CreateTime: when the writer batched them), so
start-up does not count. All sides read the same records, one side after the other with nothing
else running, in several rounds; ratios are medians of the rounds' own ratios.

The worker runs `--engine memory --token-interval 0` with FEEDLOOM_WORKER__JOIN_FEEDBACK=false (the
join is not a part of answering) and everything else as shipped: validation, admission, spans,
results and offsets in transactions. The bare loop (``peers``) decodes nothing and commits offsets
after its records without a transaction; the Faust agent runs on Faust's defaults and commits every
2.8 s. Not measured: generation, and the cost of reading the answers.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Broken, Report, Target, command
from benchmarks.processes import cpu_seconds
from benchmarks.records import publish_requests, request_of
from benchmarks.stage import Deployment, Stage, wait_until
from benchmarks.stats import paired_ratio, spread
from benchmarks.written import size_of, written
from infra.contracts.catalogue import CHUNKS, REQUESTS, RESULTS
from infra.local.supervisor import Child

SIDES = ("worker", "bare", "faust")
TIMEOUT_S = 300.0


def measure(report: Report) -> None:
    """See the module."""
    count, rounds = (3_000, 2) if report.quick else (20_000, 3)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with Stage() as stage:
        place = stage.deployment("dispatch")
        place.publish_model()
        publish_requests(place.bus, (request_of(number) for number in range(count)))
        # The broker's JVM compiles what it runs often: not while the first side is measured.
        for side in SIDES:
            one_run(place, side, f"{side}-warm", count)
        for number in range(rounds):
            for side in SIDES:
                run = one_run(place, side, f"{side}-{number}", count)
                report.say(
                    f"round {number + 1}/{rounds} {side}: {run['requests_per_s']:.0f} requests/s, "
                    f"{run['cpu_ms_per_request']:.3f} ms CPU a request"
                )
                runs[side].append(run)
    rates = {side: [run["requests_per_s"] for run in runs[side]] for side in SIDES}
    report.ratio(
        "worker / bare aiokafka loop",
        paired_ratio(rates["worker"], rates["bare"]),
        Target(">=", 0.5),
    )
    report.ratio(
        "worker / plain Faust agent",
        paired_ratio(rates["worker"], rates["faust"]),
        Target(">=", 3.0),
    )
    report.figures = {
        "requests": count,
        **{
            side: {
                "requests_per_s": spread(rates[side]),
                "cpu_ms_per_request": spread([run["cpu_ms_per_request"] for run in runs[side]]),
                "broker_cpu_ms_per_request": spread(
                    [run["broker_cpu_ms_per_request"] for run in runs[side]]
                ),
                "bytes_per_request": runs[side][0]["bytes_per_request"],
            }
            for side in SIDES
        },
    }


def one_run(place: Deployment, side: str, group: str, count: int) -> dict[str, Any]:
    """Start the side in a new group, wait until all is committed, stop it, read what it wrote."""
    before = {topic: dict(place.bus.end_offsets(topic)) for topic in (CHUNKS.name, RESULTS.name)}
    child = start_side(place, side, group)
    started = place.written(CHUNKS.name)
    samples: list[tuple[int, float, float]] = []
    broker = place.stage.broker_process
    assert broker is not None

    def done() -> bool:
        child.check()
        progress = place.written(CHUNKS.name) - started
        if progress < count:
            samples.append((progress, cpu_seconds(child.pid), cpu_seconds(broker.pid)))
            return False
        return place.finished(group, [REQUESTS.name]) >= count

    wait_until(done, what=f"{count} answers of {group}", timeout_s=TIMEOUT_S)
    place.stage.stop(child)
    chunks = written(place, CHUNKS.name, before[CHUNKS.name])
    results = written(place, RESULTS.name, before[RESULTS.name])
    answered = len({record.key for record in results})
    if not len(results) == len(chunks) == answered == count:
        raise Broken(f"{group}: {len(chunks)} chunks, {len(results)} results of {count}")
    first = min(record.timestamp_ms for record in chunks + results)
    last = max(record.timestamp_ms for record in results)
    # CPU by slope, between the first sample that saw progress and the last before the end.
    moving = [sample for sample in samples if sample[0] > 0] or samples
    start, end = moving[0], moving[-1]
    steps = max(1, end[0] - start[0])
    return {
        "requests_per_s": count * 1000 / max(1, last - first),
        "cpu_ms_per_request": 1000 * (end[1] - start[1]) / steps,
        "broker_cpu_ms_per_request": 1000 * (end[2] - start[2]) / steps,
        "bytes_per_request": sum(size_of(record) for record in chunks + results) / count,
    }


def start_side(place: Deployment, side: str, group: str) -> Child:
    """A fresh process of the side."""
    if side == "worker":
        return place.worker(group=group, join_feedback="false", wait=False)
    prefix = place.kafka.topic_prefix
    return place.stage.python(
        f"{side}-{group}", "benchmarks.peers", side, place.stage.bootstrap_servers, prefix, group
    )


main = command(measure, name="bench_dispatch", description=__doc__)

if __name__ == "__main__":
    main()
