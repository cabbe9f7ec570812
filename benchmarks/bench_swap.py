"""What a switch of versions costs the requests that run over it.

Measured, for full weights (in place, `keep`) and for LoRA adapters (each a new one, loaded beside):

- in one process, the engine and the worker's own switching code on the embedded model, while 64
  requests stream: windows of 5 s with a switch in their middle, each after one without. A token's
  latency is the gap to the one before it in its stream. Added gap: the longest of all streams in a
  window with a switch, less the longest of the window before it.
- through the platform, with two vLLM workers, while 64 requests stream: from the moment that the
  rollout is published until both workers say that they serve the version; and whether every request
  got its one result, all its tokens, and the same text streamed and whole.

Not measured: a switch that fails and is taken back.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Broken, Report, Target, command
from benchmarks.load import prompts
from benchmarks.models import embedded_model
from benchmarks.stage import Deployment, Stage, make_stable, publish_files
from benchmarks.stats import percentile
from infra.contracts.events.generation import SamplingParameters
from infra.registry.client import RegistryWatcher
from infra.registry.store import ArtifactStore
from infra.registry.workers import WorkersWatcher
from infra.testing import InMemoryBus
from producers.aio import AsyncGenerationClient
from stream_workers.engine import Displaced
from stream_workers.smoke import smoke
from stream_workers.versions import VersionSwitcher

STREAMS = 64
SWITCHES, QUICK_SWITCHES = 20, 3
WINDOW_S, QUICK_WINDOW_S = 5.0, 3.0
TOKENS = (100, 300)
"""The least and the most of an answer; its length is drawn."""
WORKERS = 2
RANK = 8
ADAPTERS = 3
"""The one that serves, the next, and the one before, which the last requests still use."""
KINDS = ("full", "adapter")
ADDED_GAP_MS = Target("<=", 150.0)
NONE = Target("<=", 0.0)
TIMEOUT_S = 120.0


def measure(report: Report) -> None:
    """See the module."""
    switches = QUICK_SWITCHES if report.quick else SWITCHES
    window_s = QUICK_WINDOW_S if report.quick else WINDOW_S
    with TemporaryDirectory(prefix="feedloom-swap-") as folder:
        base = embedded_model()
        report.say(f"making {switches + 1} adapters of rank {RANK}")
        adapters = make_adapters(base, Path(folder) / "adapters", switches + 1)
        for kind in KINDS:
            report.say(f"{kind}: {switches} switches in one process")
            windows = asyncio.run(
                in_process(kind, base, adapters, Path(folder) / kind, switches, window_s)
            )
            report_windows(report, kind, windows)
        with Stage() as stage:
            place = stage.deployment("swap")
            place.publish_model(base)
            report.say(f"starting {WORKERS} workers")
            for _ in range(WORKERS):
                place.worker(
                    engine="vllm",
                    pin_cores=False,
                    max_adapters=ADAPTERS,
                    max_adapter_rank=RANK,
                    wait=False,
                )
            for number in range(WORKERS):
                place.wait_ready(f"{place.kafka.topic_prefix}worker-{number}")
            place.publish_model(base, version="2")
            for number, adapter in enumerate(adapters):
                place.publish_model(adapter, version=f"a{number}", base="1")
            for kind, versions in (
                ("full", ["2", "1"] * (switches // 2 + 1)),
                ("adapter", [f"a{number}" for number in range(switches)]),
            ):
                report.say(f"{kind}: {switches} switches of {WORKERS} workers")
                asyncio.run(through_the_platform(report, place, kind, versions[:switches]))


def drawn(seed: str) -> SamplingParameters:
    """How a request is sampled; the same for the same seed."""
    tokens = random.Random(seed).randint(*TOKENS)
    return SamplingParameters(max_tokens=tokens, temperature=1.0, ignore_eos=True)


def make_adapters(base: Path, folder: Path, count: int) -> list[Path]:
    """Random ones: what they say does not matter, that they differ does."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False)
        made.append(folder / str(seed))
        get_peft_model(model, config).save_pretrained(made[-1])
    return made


@dataclass
class Window:
    """Gaps between tokens of one stream, in milliseconds; over all streams."""

    switch: float | None = None
    """How long the switch took, from the rollout to the first request sent to it, ms."""
    pause: float | None = None
    gaps: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        return max(self.gaps)


@dataclass
class Streams:
    """Requests that stream without end; what their gaps were since they were last taken."""

    engine: Any
    switcher: VersionSwitcher
    gaps: list[float] = field(default_factory=list)
    short: int = 0
    ended: int = 0
    moved: int = 0
    """Whose adapter was unloaded under them; a worker goes on with another, here they end."""

    async def run(self, slot: int, texts: Sequence[str]) -> None:
        for number in range(1_000_000):
            sampling = drawn(f"{slot} {number}")
            version = self.switcher.serving()
            text = texts[(slot + number) % len(texts)]
            count, last = 0, 0.0
            request_id = f"{slot}-{number}"
            try:
                async for output in self.engine.generate(request_id, text, sampling, version):
                    now = time.perf_counter()
                    if last and output.token_ids:
                        self.gaps.append((now - last) * 1000)
                    last, count = now, count + len(output.token_ids)
            except Displaced:
                self.moved += 1
                continue
            self.ended += 1
            self.short += count != sampling.max_tokens

    def take(self) -> list[float]:
        taken, self.gaps = self.gaps, []
        return taken


async def in_process(
    kind: str, base: Path, adapters: Sequence[Path], folder: Path, switches: int, window_s: float
) -> list[Window]:
    """Windows in turn without a switch and with one."""
    from stream_workers.engine_vllm import VllmEngine
    from stream_workers.vllm_options import VllmOptions

    engine = VllmEngine.build(
        VllmOptions(
            path=str(base),
            version="default@1",
            max_num_seqs=STREAMS,
            max_adapters=ADAPTERS if kind == "adapter" else 0,
            max_adapter_rank=RANK,
        )
    )
    bus, store = InMemoryBus(), ArtifactStore(folder)
    registry, workers = RegistryWatcher(bus), WorkersWatcher(bus)
    first = publish_files(bus, store, base, "1")
    if kind == "full":
        publish_files(bus, store, base, "2")
        order = [("2", "1")[number % 2] for number in range(switches)]
    else:
        order = [f"a{number}" for number in range(switches)]
        for number, adapter in enumerate(adapters):
            publish_files(bus, store, adapter, f"a{number}", base="1")
        # Windows without a switch are of requests that use an adapter as well.
        order.insert(0, f"a{switches}")
    switcher = VersionSwitcher(
        engine=engine,
        store=store,
        watcher=registry,
        workers=workers,
        base=first,
        path=str(base),
        worker_id="bench",
        report=lambda _: None,
        in_flight=lambda: STREAMS,
        queued=lambda: 0,
        now_ms=lambda: time.time_ns() // 1_000_000,
    )
    streams = Streams(engine, switcher)
    texts = prompts()
    windows: list[Window] = []
    try:
        # As a worker does before its first request.
        await smoke(engine, "default@1")
        if kind == "adapter":
            make_stable(bus, order.pop(0), 1)
            registry.catch_up()
            await switcher.reconcile()
        tasks = [asyncio.create_task(streams.run(slot, texts)) for slot in range(STREAMS)]
        await asyncio.sleep(window_s)
        for revision, version in enumerate(order, 2):
            streams.take()
            await asyncio.sleep(window_s)
            windows.append(Window(gaps=streams.take()))
            await asyncio.sleep(window_s / 2)
            make_stable(bus, version, revision)
            begun = time.perf_counter()
            registry.catch_up()
            await switcher.reconcile()
            took = (time.perf_counter() - begun) * 1000
            if switcher.serving() != f"default@{version}":
                raise Broken(f"{switcher.serving()} serves: {switcher.failure}")
            await asyncio.sleep(window_s / 2)
            windows.append(Window(switch=took, gaps=streams.take()))
            for task in tasks:
                if task.done():
                    await task
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await engine.close()
    if streams.short:
        raise Broken(f"{streams.short} of {streams.ended} answers were cut short")
    return windows


def report_windows(report: Report, kind: str, windows: Sequence[Window]) -> None:
    """The gaps of windows with a switch beside those without."""
    without, with_ = windows[0::2], windows[1::2]
    added = [one.longest - other.longest for other, one in zip(without, with_, strict=True)]
    label = f"{kind}: longest added token gap of {len(added)} switches, ms"
    report.ratio(label, max(added), ADDED_GAP_MS)
    took = [one.switch for one in with_ if one.switch is not None]
    figures: dict[str, Any] = {
        "added gap, ms": {"median": percentile(added, 0.5), "max": max(added)},
        "switch, from rollout to serving, ms": {
            "median": percentile(took, 0.5),
            "max": max(took),
        },
    }
    for name, group in (("without a switch", without), ("around a switch", with_)):
        gaps = [gap for one in group for gap in one.gaps]
        figures[f"token latency {name}, ms"] = {
            **{f"p{int(100 * q)}": percentile(gaps, q) for q in (0.5, 0.99)},
            "max": max(gaps),
            "tokens": len(gaps),
        }
    plain = figures["token latency without a switch, ms"]
    around = figures["token latency around a switch, ms"]
    for quantile in ("p50", "p99"):
        report.ratio(
            f"{kind}: token latency around a switch / without, {quantile}",
            around[quantile] / plain[quantile],
        )
    report.figures[f"{kind}, in one process"] = figures
    report.say(
        f"{kind}: p50 {plain['p50']:.1f} / {around['p50']:.1f}, p99 {plain['p99']:.1f} / "
        f"{around['p99']:.1f}, max {plain['max']:.0f} / {around['max']:.0f} ms; "
        f"added {max(added):.0f} ms at most"
    )


async def through_the_platform(
    report: Report, place: Deployment, kind: str, versions: Sequence[str]
) -> None:
    """Switch two workers while requests stream, and see what becomes of every one."""
    texts = prompts()
    found = {"requests": 0, "short": 0, "errors": 0, "unequal": 0, "over a switch": 0}
    served: set[str] = set()
    stop = asyncio.Event()
    times: list[float] = []
    async with AsyncGenerationClient(place.bus, source="benchmark") as client:

        async def stream(slot: int) -> None:
            number = slot
            while not stop.is_set():
                number += STREAMS
                sampling = drawn(f"{slot} {number}")
                handle = await client.submit(texts[number % len(texts)], sampling=sampling)
                text = "".join([chunk.text async for chunk in handle.stream(TIMEOUT_S)])
                result = await handle.result(TIMEOUT_S)
                found["requests"] += 1
                found["errors"] += result.error is not None
                found["short"] += result.output_tokens != sampling.max_tokens
                found["unequal"] += text != result.text
                found["over a switch"] += len(result.model_versions) > 1
                served.update(result.model_versions)

        tasks = [asyncio.create_task(stream(slot)) for slot in range(STREAMS)]
        try:
            await asyncio.sleep(5.0)
            for version in versions:
                begun = time.perf_counter()
                await asyncio.to_thread(place.serve, version)
                await asyncio.to_thread(_wait_for, place, version)
                times.append((time.perf_counter() - begun) * 1000)
                await asyncio.sleep(1.0)
            stop.set()
            await asyncio.gather(*tasks)
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
    names = {f"default@{version}" for version in versions}
    if not names <= served:
        raise Broken(f"no answer names {sorted(names - served)}")
    for what in ("short", "errors", "unequal"):
        report.ratio(f"{kind}: {what} of {found['requests']} answers", float(found[what]), NONE)
    report.figures[f"{kind}, {WORKERS} workers"] = {
        **found,
        "until both serve it, ms": {
            "median": percentile(times, 0.5),
            "max": max(times),
        },
    }
    report.say(f"{kind}: {found}; both after {percentile(times, 0.5):.0f} ms (median)")


def _wait_for(place: Deployment, version: str) -> None:
    def serve() -> bool:
        mine = [one for one in place.watch.workers.values() if one.state == "ready"]
        return len(mine) == WORKERS and all(one.versions["default"] == version for one in mine)

    place.watch.wait_for(
        f"both workers to serve {version}", serve, timeout_s=TIMEOUT_S, check=place.stage.check
    )


main = command(measure, name="bench_swap", description=__doc__)

if __name__ == "__main__":
    main()
