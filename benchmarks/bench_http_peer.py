"""The platform beside `vllm serve`, vLLM's own HTTP server, under the same client load.

Measured: output tokens/s in a closed loop (the ratios), and time to first token in an open loop
at half load: Poisson arrivals from a fixed seed, at half of the lowest of the sides' request rates
in the closed loop at concurrency 64. Same model, prompts and lengths as `bench_overhead`. The
server runs twice: as it comes, with the same `max_num_seqs`, KV cache, number format and eager mode
as the worker's engine, and *tuned*: also in one process, on cores of its own and with blocks of 32
tokens, as the worker runs it. The client runs in this process on all sides, the SDK's asynchronous
one or aiohttp with server-sent events decoded by msgspec. While one side is loaded the others'
processes are stopped. Every answer must be whole, and on the platform every final result must have
come.

The server streams every token; the platform its first at once and then a chunk every 50 ms or 16
tokens, and stores all of them and the result on Kafka. Not measured: what HTTP does not offer
(replay, a worker's death), TLS, a network.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

from benchmarks.harness import Report, Target, command
from benchmarks.http_side import VllmServe
from benchmarks.models import embedded_model
from benchmarks.stage import Stage
from benchmarks.stats import spread
from benchmarks.turns import Contestant, Platform, condensed, take_turns, tokens_ratio

CONCURRENCY = 64
CLOSED = {"concurrency": CONCURRENCY, "ramp_s": 4.0, "window_s": 10.0}
QUICK_CLOSED = {"concurrency": CONCURRENCY, "ramp_s": 3.0, "window_s": 6.0}
OPEN = {"ramp_s": 3.0, "window_s": 25.0}
QUICK_OPEN = {"ramp_s": 1.0, "window_s": 6.0}
TOKENS_TARGET = Target(">=", 1.0)
LATENCIES = ((0, "p50", Target("<=", 10.0)), (2, "p99", Target("<=", 30.0)))
PEERS = ("vllm serve", "vllm serve, tuned")


def measure(report: Report) -> None:
    """See the module."""
    model = embedded_model()
    with Stage() as stage:
        place = stage.deployment("peer")
        place.publish_model(model)
        report.say("starting the worker and the server")
        compare(report, stage, model, "platform", Platform(place))


def compare(report: Report, stage: Stage, model: Path, name: str, ours: Contestant) -> None:
    """A side of the platform's, beside both of `vllm serve`, which are started here."""
    rounds = 1 if report.quick else 3
    closed, opened = (QUICK_CLOSED, QUICK_OPEN) if report.quick else (CLOSED, OPEN)
    sides: dict[str, Contestant] = {
        name: ours,
        "vllm serve": VllmServe(stage, model, tuned=False),
        "vllm serve, tuned": VllmServe(stage, model, tuned=True),
    }
    report.say(f"closed loop, concurrency {CONCURRENCY}")
    windows = take_turns(sides, closed, rounds, report.say)
    found = report.figures[f"closed loop, concurrency {CONCURRENCY}"] = condensed(windows)
    for peer in PEERS:
        report.ratio(
            f"{name} / {peer}, tokens/s, concurrency {CONCURRENCY}",
            tokens_ratio(windows, name, peer),
            TOKENS_TARGET,
        )
    rate = min(side["requests_per_s"] for side in found.values()) / 2
    report.say(f"open loop at half load, {rate:.1f} requests/s")
    windows = take_turns(sides, {"rate_per_s": rate, **opened}, rounds, report.say)
    report.figures["open loop at half load"] = {
        "offered_requests_per_s": rate,
        **condensed(windows),
    }
    for peer, (index, quantile, target) in product(PEERS, LATENCIES):
        above, below = (
            [window["ttft_ms"][index] for window in windows[side]] for side in (name, peer)
        )
        difference = [a - b for a, b in zip(above, below, strict=True)]
        report.ratio(
            f"{name} - {peer}, TTFT {quantile} at half load, ms",
            spread(difference)["median"],
            target,
        )


main = command(measure, name="bench_http_peer", description=__doc__)

if __name__ == "__main__":
    main()
