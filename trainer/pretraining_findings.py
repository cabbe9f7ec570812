"""The report of a run from scratch: which numbers it shows, in which words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.charts import number
from trainer.recipe import Recipe
from trainer.report import Report, Table, charts_of
from trainer.run import Run, Scores


def report_of(run: Run, scores: Scores, history: Sequence[Mapping[str, Any]]) -> Report:
    """``history``: of every step what was logged, by the names that transformers has.

    Its last point is the evaluation of the finished model, beside those asked for by
    ``eval_steps``.
    """
    last = {"step": scores.global_step, "eval_loss": scores.eval_loss}
    return Report(
        title=f"{run.arch} from scratch",
        facts=[
            ("Family", run.arch),
            ("Objective", scores.objective),
            ("Parameters", f"{scores.parameters:,}"),
            ("Steps", f"{scores.global_step:,}"),
            ("Epochs", number(scores.epoch)),
            ("Training time", f"{scores.train_seconds:,.1f} s"),
        ],
        charts=charts_of([*history, last]) if history else [],
        tables=[_measures(scores), _sets(scores), _settings(run)],
    )


def _measures(scores: Scores) -> Table:
    loss = "-" if scores.train_loss is None else number(scores.train_loss)
    return Table(
        caption="Measures",
        header=("Measure", "Value"),
        rows=[
            ["Held-out loss, nats a token", number(scores.eval_loss)],
            ["Held-out perplexity", number(scores.eval_perplexity)],
            ["Held-out tokens", f"{scores.eval_tokens:,}"],
            ["Training loss, mean of the run", loss],
            ["Samples a second", number(scores.samples_per_s)],
            ["Tokens a second", number(scores.tokens_per_s)],
            ["Peak memory, MB", number(scores.peak_memory_mb)],
        ],
    )


def _sets(scores: Scores) -> Table:
    return Table(
        caption="Held-out text by set",
        header=("Set", "Bits per byte"),
        rows=[[name, number(value)] for name, value in sorted(scores.bits_per_byte.items())],
    )


def _settings(run: Run) -> Table:
    shape = {
        "context": run.context,
        "width": run.width,
        "layers": run.layers,
        "heads": run.heads,
    }
    recipe: Recipe = run.recipe
    values = {name: getattr(recipe, name) for name in recipe.__struct_fields__} | shape
    return Table(
        caption="Settings",
        header=("Setting", "Value"),
        rows=[[name, str(value)] for name, value in values.items()],
    )
