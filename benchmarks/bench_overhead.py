"""Output tokens/s through the platform over those of the engine driven directly.

Measured: SDK -> Kafka -> worker -> Kafka -> SDK, chunks streaming, against the same prompts and
answer lengths given to the engine in a bare process: to `VllmEngine.generate`, the worker's own
engine module (the ratios with targets), and to vLLM's `AsyncLLM` itself. Closed loop: a slot sends
its next request when its stream has ended. Every stream must be whole and every final result must
have come, or the run is broken. Engine arguments are equal on all sides (max_num_seqs 256, KV
cache 0.5 GiB, eager); prompts are the embedded model's openings, answers are 64 to 192 tokens
(EOS ignored), temperature 0.7. While one side is loaded the others' processes are stopped
(SIGSTOP); the broker stays up, idle. The worker is otherwise as shipped, feedback join included.

The platform's client runs in this process, so on a small machine it takes CPU from the engine as
the worker and the broker do; the direct sides need no client. The worker sends the first token at
once and then a chunk every 50 ms or 16 tokens, so its ITL is that of chunks shared out evenly over
their tokens. Not measured: more than one worker, or a network.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Report, Target, command, table
from benchmarks.models import embedded_model, random_llama
from benchmarks.rpc import Served
from benchmarks.stage import Stage
from benchmarks.turns import (
    KV_CACHE_GB,
    WORKER_SETTINGS,
    Contestant,
    Platform,
    condensed,
    take_turns,
    tokens_ratio,
)

LOADS = {
    1: {"concurrency": 1, "ramp_s": 2.0, "window_s": 6.0},
    16: {"concurrency": 16, "ramp_s": 3.0, "window_s": 6.0},
    64: {"concurrency": 64, "ramp_s": 4.0, "window_s": 10.0},
    256: {"concurrency": 256, "ramp_s": 8.0, "window_s": 14.0},
}
QUICK_LOADS = {
    1: {"concurrency": 1, "ramp_s": 1.0, "window_s": 3.0},
    64: {"concurrency": 64, "ramp_s": 3.0, "window_s": 6.0},
}
LARGE_LOAD = {"concurrency": 64, "ramp_s": 6.0, "window_s": 15.0}
LARGE = {"width": 512, "layers": 4}
"""Chosen so that a step of 64 sequences takes 20 to 40 ms on two cores of the machine it was
written on; the step that was measured is in the figures."""
STEP_MS = 20.0
SMALL_TARGETS = {64: Target(">=", 0.95), 256: Target(">=", 0.95)}
LARGE_TARGET = Target(">=", 0.99)
TURN_TIMEOUT_S = 180.0


class Direct:
    """A bare process with the engine in it."""

    def __init__(self, stage: Stage, kind: str, model: Path) -> None:
        options = {
            "path": str(model),
            "max_num_seqs": WORKER_SETTINGS["max_num_seqs"],
            "kv_cache_gb": KV_CACHE_GB,
            "pin_cores": True,
        }
        self.process = Served(stage, kind, "benchmarks.direct", kind, json.dumps(options))
        self.process.freeze()

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        window: dict[str, Any] = self.process.ask(TURN_TIMEOUT_S, **load)
        self.process.freeze()
        return window

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self.process.log_tail()


def measure(report: Report) -> None:
    """See the module."""
    rounds = 1 if report.quick else 3
    loads = QUICK_LOADS if report.quick else LOADS
    small = embedded_model()
    with Stage() as stage:
        place = stage.deployment("small")
        place.publish_model(small)
        report.say("starting the worker and the bare processes")
        engine, llm = Direct(stage, "engine", small), Direct(stage, "asyncllm", small)
        platform = Platform(place)
        sides: dict[str, Contestant] = {
            "platform": platform,
            "engine": engine,
            "asyncllm": llm,
        }
        report.figures["embedded model"] = figures = {}
        for concurrency, load in loads.items():
            report.say(f"concurrency {concurrency}")
            windows = take_turns(sides, load, rounds, report.say)
            report.ratio(
                f"platform / engine, concurrency {concurrency}",
                tokens_ratio(windows, "platform", "engine"),
                SMALL_TARGETS.get(concurrency),
            )
            report.ratio(
                f"platform / AsyncLLM, concurrency {concurrency}",
                tokens_ratio(windows, "platform", "asyncllm"),
            )
            figures[str(concurrency)] = condensed(windows)
        platform.close()
        for side in (engine, llm):
            side.process.close()
        if not report.quick:
            large_model(report, stage, rounds)
    show(report)


def large_model(report: Report, stage: Stage, rounds: int) -> None:
    """The same with a model whose step takes tens of milliseconds."""
    folder = stage.home / "large"
    parameters = random_llama(folder, **LARGE)
    report.say(f"a Llama of {parameters / 1e6:.0f}M random parameters")
    place = stage.deployment("large")
    place.publish_model(folder)
    engine, platform = Direct(stage, "engine", folder), Platform(place)
    concurrency = LARGE_LOAD["concurrency"]
    sides: dict[str, Contestant] = {"platform": platform, "engine": engine}
    windows = take_turns(sides, LARGE_LOAD, rounds, report.say)
    found = condensed(windows)
    step_ms = 1000 * concurrency / found["engine"]["tokens_per_s"]["median"]
    report.ratio(
        f"platform / engine, larger model ({step_ms:.0f} ms a step), concurrency {concurrency}",
        tokens_ratio(windows, "platform", "engine"),
        LARGE_TARGET if step_ms >= STEP_MS else None,
    )
    report.figures["larger model"] = {
        "parameters": parameters,
        "step_ms": step_ms,
        str(concurrency): found,
    }
    platform.close()
    engine.process.close()


def show(report: Report) -> None:
    """Latencies, side by side."""
    rows = []
    for concurrency, sides in report.figures["embedded model"].items():
        for name, found in sides.items():
            ttft, itl = found["ttft_ms"], found["itl_ms"]
            rows.append(
                [concurrency, name, f"{found['tokens_per_s']['median']:.0f}"]
                + [f"{value:.1f}" for value in (ttft["p50"], ttft["p95"], itl["p50"], itl["p95"])]
            )
    table(
        "embedded model",
        {
            "concurrency": "right",
            "side": "left",
            "tokens/s": "right",
            "TTFT p50 ms": "right",
            "p95": "right",
            "ITL p50 ms": "right",
            "p95 ": "right",
        },
        rows,
    )


main = command(measure, name="bench_overhead", description=__doc__)

if __name__ == "__main__":
    main()
