"""Benchmark documents as Markdown and SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks.harness import BUSY_PERCENT
from benchmarks.plot import Chart, Line, render

BEGIN = "<!-- figures: written by `python -m benchmarks.report` -->"
END = "<!-- end of figures -->"
Document = Mapping[str, Any]


def page(text: str, documents: Mapping[str, Document], unmeasured: Sequence[str] = ()) -> str:
    """``text`` with everything between the markers replaced. Raises ValueError without markers.

    ``unmeasured``: benchmarks without a document, which the page names too.
    """
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"the page lacks the lines {BEGIN!r} and {END!r}")
    body = "\n\n".join((*_sections(documents), *map(_unmeasured, unmeasured)))
    return f"{head}{BEGIN}\n\n{body}\n\n{END}{tail}"


def chart(documents: Mapping[str, Document]) -> str | None:
    """Throughput and TTFT against concurrency; ``None`` without figures for them."""
    overhead = documents.get("bench_overhead")
    if overhead is None:
        return None
    figures = overhead["figures"]["embedded model"]
    sides = list(next(iter(figures.values())))
    rates, latencies = [], []
    for side in sides:
        by_load = [(float(load), found[side]) for load, found in figures.items()]
        rates.append(Line(side, [(x, each["tokens_per_s"]["median"]) for x, each in by_load]))
        latencies.append(Line(side, [(x, each["ttft_ms"]["p50"]) for x, each in by_load]))
    return render(
        [
            Chart("output tokens/s", "concurrent requests", rates),
            Chart("TTFT p50, ms", "concurrent requests", latencies),
        ]
    )


def _sections(documents: Mapping[str, Document]) -> Iterable[str]:
    common = next(iter(documents.values()), {}).get("machine")
    if common is not None:
        yield f"Measured on {_machine(common)}, unless a section says otherwise."
    for name, document in documents.items():
        yield f"## {name}"
        yield _docstring(name)
        other = document["machine"] != common
        yield (
            f"`{document['command']}`, {document['at']}"
            + (f", on {_machine(document['machine'])}" if other else "")
            + "."
            + (" **A quick run: figures are rough.**" if document["quick"] else "")
            + _noise(document["busy_before_percent"])
        )
        if document["ratios"]:
            yield _ratios(document)
        yield from _FIGURES.get(name, _no_figures)(document["figures"])


def _unmeasured(name: str) -> str:
    line = f"**Not measured yet.** `python -m benchmarks.{name}`"
    return f"## {name}\n\n{_docstring(name)}\n\n{line}"


def _docstring(name: str) -> str:
    text = import_module(f"benchmarks.{name}").__doc__ or ""
    return text.strip()


def _noise(busy: float) -> str:
    if busy <= BUSY_PERCENT:
        return ""
    return f" **Other programs took {busy:.0f} % of the machine just before: figures are off.**"


def _machine(facts: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in facts["packages"].items())
    return (
        f"{facts['cores']} cores of {facts['cpu']}, {facts['memory_gib']:g} GiB, "
        f"{facts['kernel']}, Python {facts['python']}, {packages}"
    )


def _ratios(document: Document) -> str:
    rows = []
    for label, value in document["ratios"].items():
        met = document["met"].get(label)
        verdict = "" if met is None else ("met" if met else "**missed**")
        rows.append([label, _number(value), document["targets"].get(label, ""), verdict])
    return _table(["measured", "value", "target", ""], rows)


def _overhead(figures: Mapping[str, Any]) -> Iterable[str]:
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


def _peer(figures: Mapping[str, Any]) -> Iterable[str]:
    yield _load_table(
        {
            load: {name: side for name, side in sides.items() if isinstance(side, dict)}
            for load, sides in figures.items()
        }
    )
    offered = figures["open loop at half load"]["offered_requests_per_s"]
    yield f"Half load is {offered:.1f} requests/s."


def _peers(figures: Mapping[str, Any]) -> Iterable[str]:
    yield "Peers: " + ", ".join(f"{name} {it}" for name, it in figures["versions"].items()) + "."
    heads = ["load", "side", "tokens/s, median (spread)", "TTFT p50, ms", "p95", "p99"]
    heads += ["ITL p50, ms", "p95", "p99", "CPU, ms a request", "broker's", "client's", "lines"]
    rows = [
        [
            load.removeprefix("concurrency "),
            name,
            _spread(found["tokens_per_s"]),
            *(_number(found["ttft_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            *(_number(found["itl_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            *(
                _number(1000 * found["cpu_s_per_request"][who])
                for who in ("side", "broker", "client")
            ),
            str(figures["lines"][name]["total"]),
        ]
        for load, sides in figures.items()
        if load.startswith("concurrency ")
        for name, found in sides.items()
    ]
    yield _table(heads, rows)
    parts = ("worker", "client", "settings", "total")
    yield "Lines:"
    yield _table(
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
                    f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})",
                    *(_number(ttft[quantile]) for quantile in ("p50", "p95", "p99")),
                    *(_number(itl[quantile]) for quantile in ("p50", "p95")),
                ]
            )
    latencies = ["TTFT p50, ms", "p95", "p99", "ITL p50, ms", "p95"]
    return _table(["load", "side", "tokens/s, median (spread)", *latencies], rows)


def _dispatch(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for side in ("worker", "bare", "faust"):
        found = figures[side]
        rate = found["requests_per_s"]
        rows.append(
            [
                side,
                f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})",
                f"{1000 * found['cpu_ms_per_request']['median']:.0f}",
                f"{1000 * found['broker_cpu_ms_per_request']['median']:.0f}",
                f"{found['bytes_per_request']:.0f}",
            ]
        )
    heads = ["side", "requests/s, median (spread)", "its CPU, us a request", "broker's", "bytes"]
    yield _table(heads, rows)


def _scale(figures: Mapping[str, Any]) -> Iterable[str]:
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
    yield _table(["", "results/s", "spread", "machine's CPU"], rows)


def _backlog(figures: Mapping[str, Any]) -> Iterable[str]:
    rss = figures["rss_mib"]
    yield (
        f"{figures['requests']} requests of {figures['keys']} keys in {figures['seconds']:.0f} s "
        f"({figures['requests_per_s']:.0f}/s, the worker's start included). RSS: "
        f"{rss['at 10%']:.0f} MiB at 10 %, {rss['after 90%']:.0f} after 90 %, peak "
        f"{rss['peak']:.0f}; in steps of 5 %: "
        + ", ".join(f"{value:.0f}" for value in figures["rss_mib_over_time"])
        + "."
    )


def _outcomes(figures: Mapping[str, Any]) -> Iterable[str]:
    kinds = ("transaction", "table")
    rows = [
        [label, *(_spread(figures[kind][label]) for kind in kinds)]
        for label in figures["transaction"]
    ]
    yield _table([f"median (spread); {figures['kills']} kills", *kinds], rows)


def _classes(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        [
            load,
            name,
            *(_spread(found["ttft_ms"][quantile]) for quantile in ("p50", "p95", "p99")),
            _spread(found["itl_p50_ms"]),
            _spread(found["batch_tokens_per_s"]),
        ]
        for load, sides in figures.items()
        for name, found in sides.items()
    ]
    heads = ["interactive load", "", "TTFT p50, ms", "p95", "p99", "ITL p50, ms", "batch tokens/s"]
    yield _table(heads, rows)


def _affinity(figures: Mapping[str, Any]) -> Iterable[str]:
    yield (
        f"{figures['conversations']} conversations of {figures['turns']} turns on "
        f"{figures['workers']} workers, each with room for {figures['kv_tokens_a_worker']} tokens."
    )
    rows = [
        [name, _spread(figures[name]["hit_rate"]), _spread(figures[name]["ttft_p50_ms"])]
        for name in ("affinity", "round-robin")
    ]
    yield _table(["median (spread)", "hit rate", "worker's TTFT p50, ms"], rows)


def _cancellation(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        [load, str(found["cancelled"]), *(_number(value) for value in found["ms"].values())]
        for load, found in figures.items()
    ]
    yield _table(["", "cancelled", "p50, ms", "p95", "p99", "longest"], rows)


def _swap(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for name, found in figures.items():
        for kind, latency in found.items():
            if kind.startswith("token latency"):
                values = [_number(latency[quantile]) for quantile in ("p50", "p99", "max")]
                rows.append([name, kind.removeprefix("token latency "), *values])
    yield _table(["", "token latency, ms", "p50", "p99", "longest"], rows)
    rows = [
        [name, what, _number(found[what]["median"]), _number(found[what]["max"])]
        for name, found in figures.items()
        for what in found
        if isinstance(found[what], Mapping) and "median" in found[what]
    ]
    yield _table(["", "", "median", "longest"], rows)
    rows = [
        [name, *(str(found[what]) for what in _SWAP_ANSWERS)]
        for name, found in figures.items()
        if "requests" in found
    ]
    yield _table(["", *_SWAP_ANSWERS], rows)


_SWAP_ANSWERS = ("requests", "short", "errors", "unequal", "over a switch")


def _pile(figures: Mapping[str, Any]) -> Iterable[str]:
    yield f"{figures['documents']:,} documents, {figures['megabytes']:.1f} MB of text."
    rows = [
        [name, *(_spread(sides[side]) if side in sides else "-" for side in _PILE_SIDES)]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
    ]
    yield _table(["MB/s of a core", *_PILE_SIDES], rows)


_PILE_SIDES = ("feedloom", "datatrove")


def _train(figures: Mapping[str, Any]) -> Iterable[str]:
    yield f"{figures['threads']} threads."
    rows = [
        [name, side, _spread(found)]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
        for side, found in sides.items()
        if isinstance(found, Mapping)
    ]
    yield _table(["", "side", "tokens/s, median (spread)"], rows)
    rows = [
        [name, side, f"{value:.4g}"]
        for name, sides in figures.items()
        if isinstance(sides, Mapping)
        for side, value in sides.items()
        if not isinstance(value, Mapping)
    ]
    yield _table(["", "side", ""], rows)


def _mfu(figures: Mapping[str, Any]) -> Iterable[str]:
    rows = [
        ["device", figures["device"]],
        ["dense bf16 peak, TFLOP/s", f"{figures['peak_tflops']:g}"],
        ["reached, TFLOP/s", _number(figures["tflops"])],
        ["parameters", f"{figures['parameters']:,}"],
        ["FLOPs a token", f"{figures['flops_per_token']:,}"],
        ["rows a step x tokens", f"{figures['batch']} x {figures['context']}"],
        ["torch.compile", "yes" if figures["compiled"] else "no"],
        ["ms a step", _number(figures["step_ms"])],
        ["tokens/s", f"{figures['tokens_per_s']:,.0f}"],
        ["peak memory, MB", f"{figures['peak_memory_mb']:,.0f}"],
    ]
    yield _table(["", ""], rows)


def _spread(found: Mapping[str, float]) -> str:
    if found["rounds"] == 1:
        return _number(found["median"])
    return f"{_number(found['median'])} ({_number(found['min'])} to {_number(found['max'])})"


def _profile(figures: Mapping[str, Any]) -> Iterable[str]:
    cpu = figures["cpu_us_per_request_while_profiled"]
    yield f"{figures['samples']} samples; {cpu:.0f} us of CPU a request while profiled."
    yield _table(
        ["part", "share"],
        [[part, f"{100 * share:.1f} %"] for part, share in figures["shares"].items()],
    )
    yield "The project's own functions, with what they call:"
    yield _table(
        ["function", "share"],
        [[f"`{name}`", f"{100 * share:.1f} %"] for name, share in figures["functions"].items()],
    )


def _telemetry(figures: Mapping[str, Any]) -> Iterable[str]:
    yield _load_table({k: v for k, v in figures.items() if k.startswith("closed loop")})


def _no_figures(figures: Mapping[str, Any]) -> Iterable[str]:
    return ()


_FIGURES = {
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


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)
