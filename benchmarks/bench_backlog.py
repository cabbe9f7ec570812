"""A worker against a backlog of 100,000 requests: memory, order, nothing lost, nothing twice.

Measured: one worker (instant in-memory engine, FEEDLOOM_WORKER__JOIN_FEEDBACK=false) starts with
the whole backlog on the topic. Its resident memory (RSS, children included) is sampled until the
last offset is committed; the ratio is the median RSS after 90 % of the backlog over that at 10 %.
Keys are shared by 50 requests each. Order: a worker runs one key's requests side by side, so what
is kept is the order in which they start; it is read off the first chunk of each request on the
reply partition that all requests of the key name. Results are read `read_committed`. Not measured:
a worker's death meanwhile (see the tests), or an engine that holds memory for each request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from statistics import median
from zlib import crc32

from msgspec import structs

from benchmarks.harness import Broken, Report, Target, command
from benchmarks.processes import resident_bytes
from benchmarks.records import publish_requests, request_of
from benchmarks.stage import Deployment, Stage, wait_until
from benchmarks.written import follow
from infra.contracts.catalogue import CHUNKS, REQUESTS, RESULTS
from infra.contracts.events.generation import GenerationRequest, ReplyAddress
from infra.settings import WorkerSettings

PER_KEY = 50
MEMORY_TARGET = Target("<=", 1.1)
NONE_TARGET = Target("<=", 0)
TIMEOUT_S = 1_200.0


def measure(report: Report) -> None:
    """See the module."""
    count = 5_000 if report.quick else 100_000
    with Stage() as stage:
        place = stage.deployment("backlog")
        place.publish_model()
        report.say(f"publishing {count} requests")
        publish_requests(place.bus, backlog(count))
        started = time.monotonic()
        samples = run(place, count)
        seconds = time.monotonic() - started
        report.say(f"answered in {seconds:.0f} s; reading the answers")
        results = Counter(record.key for record in follow(place, RESULTS.name))
        starts = out_of_order(place)
        expected = {request.request_id.encode() for request in backlog(count)}
    lost, twice = len(expected - results.keys()), sum(results.values()) - len(results)
    early = next(rss for done, rss in samples if done / count >= 0.1)
    late = median(rss for done, rss in samples if done / count >= 0.9)
    report.ratio("RSS after 90% / RSS after 10% of the backlog", late / early, MEMORY_TARGET)
    report.ratio("requests without a result", lost, NONE_TARGET)
    report.ratio("second results", twice, NONE_TARGET)
    report.ratio("requests of a key that started out of order", starts, NONE_TARGET)
    report.figures = {
        "requests": count,
        "keys": count // PER_KEY,
        "seconds": seconds,
        "requests_per_s": count / seconds,
        "rss_mib": {
            "at 10%": early / 1024**2,
            "after 90%": late / 1024**2,
            "peak": max(rss for _, rss in samples) / 1024**2,
        },
        "rss_mib_over_time": series(samples, count),
    }


def backlog(count: int) -> Iterator[GenerationRequest]:
    """Requests of interleaved keys; all of a key's name one reply partition."""
    keys = count // PER_KEY
    for number in range(count):
        key = f"conversation-{number % keys}"
        request = request_of(number, key=key)
        yield structs.replace(
            request,
            reply=ReplyAddress(partition=crc32(key.encode()) % 12),
            metadata={"place": str(number // keys)},
        )


def run(place: Deployment, count: int) -> list[tuple[int, int]]:
    """Let a worker answer all of it; (requests done, bytes of RSS) over time."""
    worker = place.worker(join_feedback="false", wait=False)
    group = WorkerSettings().group
    samples: list[tuple[int, int]] = []

    def done() -> bool:
        worker.check()
        finished = place.finished(group, [REQUESTS.name])
        samples.append((finished, resident_bytes(worker.pid)))
        return finished >= count

    wait_until(done, what=f"{count} answers", timeout_s=TIMEOUT_S, poll_s=0.1)
    if place.stage.stop(worker) != 0:
        raise Broken(f"the worker did not end well:\n{worker.log_tail()}")
    return samples


def out_of_order(place: Deployment) -> int:
    """How many requests of a key came after a later one of the same key."""
    newest: dict[str, int] = {}
    places: dict[bytes | None, tuple[str, int]] = {}
    total = 0
    for request in backlog(place.written(REQUESTS.name)):
        assert request.affinity_key is not None
        places[request.request_id.encode()] = (
            request.affinity_key,
            int(request.metadata["place"]),
        )
    for record in follow(place, CHUNKS.name):
        key, position = places[record.key]
        if position < newest.get(key, -1):
            total += 1
        newest[key] = max(position, newest.get(key, -1))
    return total


def series(samples: list[tuple[int, int]], count: int) -> list[float]:
    """RSS in MiB at 0, 5, 10 ... 100 % of the backlog."""
    found: list[float] = []
    for done, rss in samples:
        while 100 * done >= 5 * len(found) * count and len(found) <= 20:
            found.append(round(rss / 1024**2, 1))
    return found


main = command(measure, name="bench_backlog", description=__doc__)

if __name__ == "__main__":
    main()
