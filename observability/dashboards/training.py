"""Training: does a round run, does it learn, what does it forget, and what passed the gate."""

from __future__ import annotations

from observability.alerts.training import MAX_FORGETTING
from observability.dashboards.panels import Dashboard, Row, Scope, graph, stat
from observability.dashboards.variables import MODEL_TRAINED, VERSION_TRAINED
from observability.instruments import (
    ARCHITECTURE,
    GATE,
    MODEL,
    MOMENT,
    OBJECTIVE,
    OUTCOME,
    PILE_STEP,
    REASON,
    VERSION,
)
from observability.promql import level, quantile, rate

_VARIABLES = (MODEL_TRAINED, VERSION_TRAINED)
_on = Scope(_VARIABLES)

_FORGETTING = _on("feedloom.trainer.forgetting")

DASHBOARD = Dashboard(
    uid="feedloom-training",
    title="Feedloom / Training",
    description="Does a round run, does it learn, what does it forget, and what passed the gate.",
    variables=_VARIABLES,
    rows=(
        Row(
            title="Now",
            height=4,
            panels=(
                stat(
                    "Open rounds",
                    "1 while a round runs.",
                    level(_on("feedloom.trainer.rounds.open")),
                ),
                stat(
                    "Steps", "Updates of the weights a second.", rate(_on("feedloom.trainer.steps"))
                ),
                stat(
                    "Throughput",
                    "Tokens a second, mean of the round so far.",
                    level(_on("feedloom.trainer.throughput")),
                    unit="suffix: tokens/s",
                ),
                stat(
                    "Forgetting",
                    "Rise of the held-out loss over the parent's, as a share of it, in the last "
                    f"round. An alert says so above {MAX_FORGETTING:g}.",
                    level(_FORGETTING, how="max"),
                    limit=MAX_FORGETTING,
                ),
                stat(
                    "Win rate",
                    "Share of held-out prompts answered better than by the parent; the best of "
                    "the chosen versions.",
                    level(_on("feedloom.trainer.win_rate"), how="max"),
                ),
                stat(
                    "Examples",
                    "Feedback examples trained on, a second.",
                    rate(_on("feedloom.trainer.examples")),
                ),
            ),
        ),
        Row(
            title="Steps",
            panels=(
                graph(
                    "Loss",
                    "Of the last step: the whole, and its parts by objective, unweighed.",
                    level(_on("feedloom.trainer.step.loss"), by=(MODEL, OBJECTIVE), how="avg"),
                ),
                graph(
                    "Gradient norm",
                    "Before clipping. Spikes come before a loss that diverges.",
                    level(
                        _on("feedloom.trainer.gradient_norm"), by=(MODEL, ARCHITECTURE), how="max"
                    ),
                    unit="none",
                    log=True,
                ),
                graph(
                    "Learning rate",
                    "Of the last step.",
                    level(
                        _on("feedloom.trainer.learning_rate"), by=(MODEL, ARCHITECTURE), how="max"
                    ),
                    unit="sci",
                ),
                graph(
                    "Steps a second",
                    "Nothing while a round is open means that it hangs, or evaluates.",
                    rate(_on("feedloom.trainer.steps"), by=(MODEL, ARCHITECTURE)),
                ),
                graph(
                    "Tokens a second",
                    "Trained on, replay included.",
                    rate(_on("feedloom.trainer.tokens"), by=(MODEL, ARCHITECTURE)),
                ),
                graph(
                    "Open rounds",
                    "1 while a round runs.",
                    level(_on("feedloom.trainer.rounds.open"), by=(MODEL,)),
                ),
            ),
        ),
        Row(
            title="Versions",
            panels=(
                graph(
                    "Held-out loss",
                    "Mean of a token of held-out text, before and after training.",
                    level(
                        _on("feedloom.trainer.heldout.loss"),
                        by=(MODEL, VERSION, MOMENT),
                        how="avg",
                    ),
                ),
                graph(
                    "Forgetting",
                    "Rise of the held-out loss over the parent's, as a share of it. Below 0 the "
                    "version got better at it, and the line stays at the bottom.",
                    level(_FORGETTING, by=(MODEL,), how="max"),
                    limit=MAX_FORGETTING,
                ),
                graph(
                    "Win rate",
                    "Share of held-out prompts answered better than by the parent: 50% is chance.",
                    level(_on("feedloom.trainer.win_rate"), by=(MODEL, VERSION), how="max"),
                    most=1,
                    limit=0.5,
                    below=True,
                ),
                graph(
                    "Rounds",
                    "Rounds ended a second, by outcome.",
                    rate(_on("feedloom.trainer.rounds"), by=(MODEL, OUTCOME)),
                ),
                graph(
                    "Gates",
                    "Verdicts on new versions, by gate: which one holds versions back.",
                    rate(_on("feedloom.trainer.gates"), by=(MODEL, GATE, OUTCOME)),
                ),
                graph(
                    "Round duration p90",
                    "From curated feedback to a measured version.",
                    quantile(0.9, _on("feedloom.trainer.round.duration"), by=(MODEL,), window="1d"),
                ),
            ),
        ),
        Row(
            title="What is learnt from",
            panels=(
                graph(
                    "Examples",
                    "Feedback examples trained on, a second, by objective.",
                    rate(_on("feedloom.trainer.examples"), by=(MODEL, OBJECTIVE)),
                ),
                graph(
                    "Left out",
                    "Examples, or parts of them, left out of training, by reason.",
                    rate(_on("feedloom.trainer.dropped_examples"), by=(MODEL, REASON)),
                ),
                graph(
                    "Pile preparation",
                    "Documents a second, by step and outcome.",
                    rate(_on("feedloom.pile.documents"), by=(PILE_STEP, OUTCOME)),
                ),
            ),
        ),
    ),
)
