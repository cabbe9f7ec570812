"""The figures of each benchmark as tables and lines of Markdown. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.markdown import number, spread, table, whole

Figures = Mapping[str, Any]


def figures_of(name: str, figures: Figures) -> Iterable[str]:
    """Paragraphs for what the benchmark of that name found; of some, none."""
    show = _SHOWN.get(name)
    return () if show is None else show(figures)


def _overhead(figures: Figures) -> Iterable[str]:
    yield "![output tokens/s and TTFT against concurrency](performance.svg)"
    for title, found in figures.items():
        loads = {load: sides for load, sides in found.items() if str(load).isdigit()}
        facts = (
            ""
            if "step_ms" not in found
            else (
                f" ({found['parameters'] / 1e6:.0f}M parameters, {found['step_ms']:.0f} ms a step)"
            )
        )
        yield f"The {title}{facts}:"
        yield _load_table(loads)


def _peer(figures: Figures) -> Iterable[str]:
    yield _load_table(
        {
            load: {name: side for name, side in sides.items() if isinstance(side, dict)}
            for load, sides in figures.items()
        }
    )
    offered = figures["open loop at half load"]["offered_requests_per_s"]
    yield f"Half load is {offered:.1f} requests/s."


def _peers(figures: Figures) -> Iterable[str]:
    yield "Peers: " + ", ".join(f"{name} {it}" for name, it in figures["versions"].items()) + "."
    heads = ["load", "side", "tokens/s, median (spread)", "TTFT p50, ms", "p95", "p99"]
    heads += ["ITL p50, ms", "p95", "p99", "CPU, ms a request", "broker's", "client's", "lines"]
    rows = [
        [
            load.removeprefix("concurrency "),
            name,
            spread(found["tokens_per_s"]),
            *(number(found["ttft_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            *(number(found["itl_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            *(
                number(1000 * found["cpu_s_per_request"][who])
                for who in ("side", "broker", "client")
            ),
            str(figures["lines"][name]["total"]),
        ]
        for load, sides in figures.items()
        if load.startswith("concurrency ")
        for name, found in sides.items()
    ]
    yield table(heads, rows)
    parts = ("worker", "client", "settings", "total")
    yield "Lines:"
    yield table(
        ["side", *parts],
        [[name, *(str(it[part]) for part in parts)] for name, it in figures["lines"].items()],
    )
    for load, ours in figures.items():
        if load.startswith("ahead, "):
            for name, measures in ours.items():
                better = "; ".join(
                    f"{what}: {', '.join(who)}" for what, who in measures.items() if who
                )
                yield f"Ahead of {name} at {load.removeprefix('ahead, ')}: {better or 'none'}."


def _load_table(loads: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for load, sides in loads.items():
        for name, found in sides.items():
            rate, ttft, itl = found["tokens_per_s"], found["ttft_ms"], found["itl_ms"]
            rows.append(
                [
                    str(load),
                    name,
                    whole(rate),
                    *(number(ttft[quantile]) for quantile in ("p50", "p95", "p99")),
                    *(number(itl[quantile]) for quantile in ("p50", "p95")),
                ]
            )
    latencies = ["TTFT p50, ms", "p95", "p99", "ITL p50, ms", "p95"]
    return table(["load", "side", "tokens/s, median (spread)", *latencies], rows)


def _dispatch(figures: Figures) -> Iterable[str]:
    rows = []
    for side in ("worker", "bare", "faust"):
        found = figures[side]
        rate = found["requests_per_s"]
        rows.append(
            [
                side,
                whole(rate),
                f"{1000 * found['cpu_ms_per_request']['median']:.0f}",
                f"{1000 * found['broker_cpu_ms_per_request']['median']:.0f}",
                f"{found['bytes_per_request']:.0f}",
            ]
        )
    heads = ["side", "requests/s, median (spread)", "its CPU, us a request", "broker's", "bytes"]
    yield table(heads, rows)


def _scale(figures: Figures) -> Iterable[str]:
    rows = [
        [
            name,
            f"{found['results_per_s']['median']:.1f}",
            f"{found['results_per_s']['min']:.1f} to {found['results_per_s']['max']:.1f}",
            f"{found['machine_cpu_percent']:.0f}%",
        ]
        for name, found in figures.items()
        if name.endswith("workers")
    ]
    yield table(["", "results/s", "spread", "machine's CPU"], rows)


def _backlog(figures: Figures) -> Iterable[str]:
    rss = figures["rss_mib"]
    yield (
        f"{figures['requests']} requests of {figures['keys']} keys in {figures['seconds']:.0f} s "
        f"({figures['requests_per_s']:.0f}/s, the worker's start included). RSS: "
        f"{rss['at 10%']:.0f} MiB at 10 %, {rss['after 90%']:.0f} after 90 %, peak "
        f"{rss['peak']:.0f}; in steps of 5 %: "
        + ", ".join(f"{value:.0f}" for value in figures["rss_mib_over_time"])
        + "."
    )


def _outcomes(figures: Figures) -> Iterable[str]:
    kinds = ("transaction", "table")
    rows = [
        [label, *(spread(figures[kind][label]) for kind in kinds)]
        for label in figures["transaction"]
    ]
    yield table([f"median (spread); {figures['kills']} kills", *kinds], rows)


def _classes(figures: Figures) -> Iterable[str]:
    rows = [
        [
            load,
            name,
            *(spread(found["ttft_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            spread(found["itl_p50_ms"]),
            spread(found["batch_tokens_per_s"]),
        ]
        for load, sides in figures.items()
        for name, found in sides.items()
    ]
    heads = ["interactive load", "", "TTFT p50, ms", "p95", "p99", "ITL p50, ms", "batch tokens/s"]
    yield table(heads, rows)


def _affinity(figures: Figures) -> Iterable[str]:
    yield (
        f"{figures['conversations']} conversations of {figures['turns']} turns on "
        f"{figures['workers']} workers, each with room for {figures['kv_tokens_a_worker']} tokens."
    )
    rows = [
        [name, spread(figures[name]["hit_rate"]), spread(figures[name]["ttft_p50_ms"])]
        for name in ("affinity", "round-robin")
    ]
    yield table(["median (spread)", "hit rate", "worker's TTFT p50, ms"], rows)


def _cancellation(figures: Figures) -> Iterable[str]:
    rows = [
        [load, str(found["cancelled"]), *(number(value) for value in found["ms"].values())]
        for load, found in figures.items()
    ]
    yield table(["", "cancelled", "p50, ms", "p95", "p99", "longest"], rows)


def _swap(figures: Figures) -> Iterable[str]:
    rows = []
    for name, found in figures.items():
        for kind, latency in found.items():
            if kind.startswith("token latency"):
                values = [number(latency[quantile]) for quantile in ("p50", "p99", "max")]
                rows.append([name, kind.removeprefix("token latency "), *values])
    yield table(["", "token latency, ms", "p50", "p99", "longest"], rows)
    rows = [
        [name, what, number(found[what]["median"]), number(found[what]["max"])]
        for name, found in figures.items()
        for what in found
        if isinstance(found[what], Mapping) and "median" in found[what]
    ]
    yield table(["", "", "median", "longest"], rows)
    rows = [
        [name, *(str(found[what]) for what in _SWAP_ANSWERS)]
        for name, found in figures.items()
        if "requests" in found
    ]
    yield table(["", *_SWAP_ANSWERS], rows)


_SWAP_ANSWERS = ("requests", "short", "errors", "unequal", "over a switch")


def _pile(figures: Figures) -> Iterable[str]:
    yield f"{figures['documents']:,} documents, {figures['megabytes']:.1f} MB of text."
    rows = [
        [name, *(spread(sides[side]) if side in sides else "-" for side in _PILE_SIDES)]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
    ]
    yield table(["MB/s of a core", *_PILE_SIDES], rows)


_PILE_SIDES = ("feedloom", "datatrove")


def _train(figures: Figures) -> Iterable[str]:
    yield f"{figures['threads']} threads."
    rows = [
        [name, side, spread(found)]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
        for side, found in sides.items()
        if isinstance(found, Mapping)
    ]
    yield table(["", "side", "tokens/s, median (spread)"], rows)
    rows = [
        [name, side, f"{value:.4g}"]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
        for side, value in sides.items()
        if not isinstance(value, Mapping)
    ]
    yield table(["", "side", ""], rows)


def _mfu(figures: Figures) -> Iterable[str]:
    rows = [
        ["device", figures["device"]],
        ["dense bf16 peak, TFLOP/s", f"{figures['peak_tflops']:g}"],
        ["reached, TFLOP/s", number(figures["tflops"])],
        ["parameters", f"{figures['parameters']:,}"],
        ["FLOPs a token", f"{figures['flops_per_token']:,}"],
        ["rows a step x tokens", f"{figures['batch']} x {figures['context']}"],
        ["torch.compile", "yes" if figures["compiled"] else "no"],
        ["ms a step", number(figures["step_ms"])],
        ["tokens/s", f"{figures['tokens_per_s']:,.0f}"],
        ["peak memory, MB", f"{figures['peak_memory_mb']:,.0f}"],
    ]
    yield table(["", ""], rows)


def _profile(figures: Figures) -> Iterable[str]:
    cpu = figures["cpu_us_per_request_while_profiled"]
    yield f"{figures['samples']} samples; {cpu:.0f} us of CPU a request while profiled."
    yield table(
        ["part", "share"],
        [[part, f"{100 * share:.1f} %"] for part, share in figures["shares"].items()],
    )
    yield "The project's own functions, with what they call:"
    yield table(
        ["function", "share"],
        [[f"`{name}`", f"{100 * share:.1f} %"] for name, share in figures["functions"].items()],
    )


def _telemetry(figures: Figures) -> Iterable[str]:
    yield _load_table({k: v for k, v in figures.items() if k.startswith("closed loop")})


_SHOWN: Mapping[str, Callable[[Figures], Iterable[str]]] = {
    "bench_overhead": _overhead,
    "bench_http_peer": _peer,
    "bench_gateway": _peer,
    "bench_peers": _peers,
    "bench_telemetry": _telemetry,
    "bench_dispatch": _dispatch,
    "bench_scale": _scale,
    "bench_backlog": _backlog,
    "bench_outcomes": _outcomes,
    "bench_classes": _classes,
    "bench_affinity": _affinity,
    "bench_cancellation": _cancellation,
    "bench_swap": _swap,
    "bench_pile": _pile,
    "bench_train": _train,
    "bench_mfu": _mfu,
    "profile_dispatch": _profile,
}
