"""Benchmark documents as a page of Markdown and a chart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from benchmarks.figures import figures_of
from benchmarks.harness import BUSY_PERCENT
from benchmarks.markdown import number, table
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
        yield from figures_of(name, document["figures"])


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
        rows.append([label, number(value), document["targets"].get(label, ""), verdict])
    return table(["measured", "value", "target", ""], rows)
