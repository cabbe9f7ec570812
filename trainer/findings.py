"""The report of a round of feedback: which numbers it shows, in which words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.model import GateCheck
from trainer.charts import Chart, Line, number
from trainer.curation import Curated
from trainer.evaluation import Evaluation
from trainer.exams import sets_compared
from trainer.report import Report, Sample, Table, charts_of
from trainer.rounds import Trained

MOST_SETS = 6
"""Lines of a chart."""


def report_of(
    trained: Trained,
    curated: Curated,
    config: TrainerConfig,
    *,
    model: str,
    version: str,
    parent: str,
    history: Sequence[Mapping[str, float]],
    samples: Sequence[Sample],
) -> Report:
    """``history``: of every step what was logged, by the names that transformers has."""
    return Report(
        title=f"{model}@{version}",
        facts=[("Model", model), ("Version", version), ("Parent", parent), *_facts(trained)],
        gate=trained.gate,
        charts=[*charts_of(history), _heldout(trained)],
        tables=[_marks(trained), _answers(trained), _data(trained, curated), _recipe(config)],
        samples=samples,
    )


def _facts(trained: Trained) -> list[tuple[str, str]]:
    metrics = trained.metrics
    return [
        ("Objective", trained.objective),
        ("Steps", f"{trained.steps:,}"),
        ("Tokens", f"{metrics['train_tokens']:,.0f}"),
        ("Training time", f"{metrics['train_seconds']:,.1f} s"),
        ("Training loss, last tenth", number(metrics["train_loss"])),
    ]


def _heldout(trained: Trained) -> Chart:
    sets = sets_compared(trained.before, trained.after)
    return Chart(
        title="Held-out text",
        x_label="step",
        y_label="bits per byte",
        lines=[
            Line(
                name=name,
                points=[(0.0, old.bits_per_byte), (float(trained.steps), new.bits_per_byte)],
            )
            for name, old, new in sets[:MOST_SETS]
        ],
    )


def _marks(trained: Trained) -> Table:
    return Table(
        caption="Held-out text, before and after",
        header=(
            *("Set", "Loss before", "after", "Perplexity before", "after"),
            *("Bits per byte before", "after", "Change"),
        ),
        rows=[
            _compared(name, old, new)
            for name, old, new in sets_compared(trained.before, trained.after)
        ],
    )


def _compared(name: str, old: Evaluation, new: Evaluation) -> list[str]:
    values = [
        *(old.loss, new.loss, old.perplexity, new.perplexity),
        *(old.bits_per_byte, new.bits_per_byte),
    ]
    change = new.bits_per_byte / old.bits_per_byte - 1 if old.bits_per_byte else 0.0
    return [name, *map(number, values), f"{change:+.2%}"]


def _answers(trained: Trained) -> Table:
    checks = {check.name: check for check in trained.gate.checks}
    return Table(
        caption="Answers, beside the parent's",
        header=("Measure", "Value", "Interval", "Samples"),
        rows=[
            ["Win rate", *_share(checks["win_rate"], trained.metrics.get("win_rate"))],
            [
                "Preference accuracy",
                *_share(checks["preference_accuracy"], trained.metrics.get("preference_accuracy")),
            ],
            [
                "Safety list: banned patterns",
                f"{trained.after.violations} (parent: {trained.before.violations})",
                "",
                str(checks["safety"].samples),
            ],
        ],
    )


def _share(check: GateCheck, value: float | None) -> list[str]:
    """A check that had too few samples to judge has no interval."""
    if value is None:
        return ["not measured", "", "0"]
    judged = (check.low, check.high) != (check.limit, check.limit)
    interval = f"{check.low:.0%} to {check.high:.0%}" if judged else "too few to tell"
    return [f"{value:.0%}", interval, str(check.samples)]


def _data(trained: Trained, curated: Curated) -> Table:
    good = sum(one.desirable for one in curated.ratings)
    return Table(
        caption="Data",
        header=("What", "How much"),
        rows=[
            ["Requests with feedback", str(len(curated.request_ids))],
            ["Completions", str(len(curated.completions))],
            ["Pairs", str(len(curated.preferences))],
            ["Ratings", f"{len(curated.ratings)} ({good} good)"],
            ["Replay, share of the text", f"{trained.metrics['replay_share']:.0%}"],
            *(
                [f"Left out: {reason}", str(count)]
                for reason, count in sorted(curated.dropped.items())
            ),
        ],
    )


def _recipe(config: TrainerConfig) -> Table:
    return Table(
        caption="Settings",
        header=("Setting", "Value"),
        rows=[[f"trainer.{name}", str(getattr(config, name))] for name in config.__struct_fields__],
    )
