"""``report.html`` of a training run: one file that shows what was trained, on what, how well.

Needs neither network nor scripts; reads well on light and dark screens and aloud. Everything in it
is text to the template, which escapes it: prompts and answers are anybody's.

Another kind of run writes one too, of what transformers has logged::

    write_report(
        folder / REPORT,
        Report(
            title="gpt2",
            facts=[("Steps", "500")],
            charts=charts_of(trainer.state.log_history),
            tables=[Table(caption="Scores", header=("Measure", "Value"), rows=[("Loss", "3.2")])],
        ),
    )
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from infra.contracts.events.model import GateDecision
from infra.files import whole_file
from trainer import charts
from trainer.charts import Chart, Line

REPORT = "report.html"
LOGGED: Sequence[tuple[str, str, Mapping[str, str]]] = (
    ("Loss", "nats", {"loss": "training", "eval_loss": "held-out text"}),
    ("Loss of text", "nats a token", {"loss_sft": "feedback (SFT)", "loss_replay": "replay"}),
    ("Loss of pairs", "nats a pair", {"loss_dpo": "DPO"}),
    ("Loss of ratings", "loss a rating", {"loss_kto": "KTO"}),
    ("Learning rate", "rate", {"learning_rate": "learning rate"}),
    ("Gradient norm", "norm before clipping", {"grad_norm": "gradient norm"}),
)
"""Title, unit and lines of each chart: a line's name by the name that it is logged under."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows as wide as the header; the first cell of each names it."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and what two versions answer. ``wanted``: what people said it should have been."""

    prompt: str
    before: str
    after: str
    wanted: str | None = None
    request_id: str | None = None
    """Whose feedback the prompt is from; ``None``: nobody's."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a page shows. ``facts``: name and value. Without a ``gate`` nothing was judged."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    gate: GateDecision | None = None
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sample] = ()


def charts_of(history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss, learning rate and gradient norm of ``Trainer.state.log_history``, as far as logged.

    Values that are no finite number are left out.
    """
    found = []
    for title, unit, names in LOGGED:
        lines = [
            Line(name=name, points=points)
            for key, name in names.items()
            if (points := _points(history, key))
        ]
        if lines:
            found.append(Chart(title=title, x_label="step", y_label=unit, lines=lines))
    return found


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    by_step = {one["step"]: float(one[key]) for one in history if key in one}
    return sorted((step, value) for step, value in by_step.items() if math.isfinite(value))


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files("trainer").joinpath(REPORT).read_text("utf-8"))
    return template.render(
        report=report,
        plots=[charts.plotted(chart) for chart in report.charts],
        size=charts,
        number=charts.number,
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page, whole or not at all."""
    with whole_file(path) as stream:
        stream.write(render(report).encode("utf-8", "replace"))
