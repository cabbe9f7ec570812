"""The platform beside `vllm serve`, vLLM's own HTTP server, under the same client load.

Measured: output tokens/s in a closed loop (the ratios), and time to first token in an open loop
at half load: Poisson arrivals from a fixed seed, at half of the lower of the two sides' request
rates in the closed loop at concurrency 64. Same model, engine arguments, prompts and lengths as
`bench_overhead`; the client runs in this process on both sides, the SDK's asynchronous one or
aiohttp with server-sent events decoded by msgspec. While one side is loaded the other's processes
are stopped, and both keep the engine's threads off one core, as the worker does. Every answer must
be whole, and on the platform every final result must have come.

The server streams every token; the platform its first at once and then a chunk every 50 ms or 16
tokens, and stores all of them and the result on Kafka. Not measured: what HTTP does not offer
(replay, a worker's death), TLS, a network.
"""

from __future__ import annotations

from benchmarks.harness import Report, Target, command
from benchmarks.http_side import VllmServe
from benchmarks.models import embedded_model
from benchmarks.stage import Stage
from benchmarks.stats import spread
from benchmarks.turns import Contestant, Platform, condensed, take_turns, tokens_ratio

CLOSED = {
    64: {"concurrency": 64, "ramp_s": 4.0, "window_s": 10.0},
    256: {"concurrency": 256, "ramp_s": 8.0, "window_s": 14.0},
}
QUICK_CLOSED = {64: {"concurrency": 64, "ramp_s": 3.0, "window_s": 6.0}}
HALF_LOAD_AT = 64
OPEN = {"ramp_s": 3.0, "window_s": 25.0}
QUICK_OPEN = {"ramp_s": 1.0, "window_s": 6.0}
TOKENS_TARGET = Target(">=", 1.0)
P50_TARGET, P99_TARGET = Target("<=", 10.0), Target("<=", 30.0)


def measure(report: Report) -> None:
    """See the module."""
    rounds = 1 if report.quick else 3
    closed, opened = (QUICK_CLOSED, QUICK_OPEN) if report.quick else (CLOSED, OPEN)
    model = embedded_model()
    with Stage() as stage:
        place = stage.deployment("peer")
        place.publish_model(model)
        report.say("starting the worker and the server")
        server = VllmServe(stage, model)
        sides: dict[str, Contestant] = {"platform": Platform(place), "vllm serve": server}
        rates: list[float] = []
        for concurrency, load in closed.items():
            report.say(f"closed loop, concurrency {concurrency}")
            windows = take_turns(sides, load, rounds, report.say)
            found = report.figures[f"closed loop, concurrency {concurrency}"] = condensed(windows)
            report.ratio(
                f"platform / vllm serve, tokens/s, concurrency {concurrency}",
                tokens_ratio(windows, "platform", "vllm serve"),
                TOKENS_TARGET,
            )
            if concurrency == HALF_LOAD_AT:
                rates = [side["requests_per_s"] for side in found.values()]
        rate = min(rates) / 2
        report.say(f"open loop at half load, {rate:.1f} requests/s")
        windows = take_turns(sides, {"rate_per_s": rate, **opened}, rounds, report.say)
        report.figures["open loop at half load"] = {
            "offered_requests_per_s": rate,
            **condensed(windows),
        }
        for index, name, target in ((0, "p50", P50_TARGET), (2, "p99", P99_TARGET)):
            above, below = (
                [window["ttft_ms"][index] for window in windows[side]] for side in sides
            )
            difference = [a - b for a, b in zip(above, below, strict=True)]
            report.ratio(
                f"platform - vllm serve, TTFT {name} at half load, ms",
                spread(difference)["median"],
                target,
            )


main = command(measure, name="bench_http_peer", description=__doc__)

if __name__ == "__main__":
    main()
