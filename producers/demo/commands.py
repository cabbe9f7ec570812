"""``feedloom demo``: a state directory of its own, wiped at each run, beside the shared caches."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import click

TRAINING = {
    "num_train_epochs": "4",
    "replay_fraction": "0.9",
    "learning_rate": "0.001",
    "lora_rank": "0",
    "max_train_seconds": "75",
}
"""Unless they are set: a small model that was trained for minutes has much to learn from replayed
text, by all its weights, and nothing to lose at a rate that would spoil a better one."""


@click.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the report here.")
@click.option("--prompts", type=click.IntRange(min=1), help="How many to publish.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Prompts per second.")
@click.option("--seed", default=17, show_default=True, help="Of every sample.")
@click.option("--quiet", is_flag=True, help="Only the report.")
def demo(
    json_file: Path | None, prompts: int | None, rate: float | None, seed: int, quiet: bool
) -> None:
    """Run the whole loop on real Kafka and real vLLM, and print a report.

    Exit status 1 if anything was lost or any step did not happen.
    """
    from dataclasses import replace

    from rich.console import Console

    from infra.local.platform import LocalPlatform
    from infra.settings import TelemetrySettings, load_settings
    from observability.setup import configure_telemetry
    from observability.spans import read_spans, trace_hops
    from producers.demo.report import Trace, print_report
    from producers.demo.scenario import Stage, play

    console = Console(highlight=False)
    settings = load_settings()
    changes = {"prompts": prompts, "rate_per_s": rate}
    demo_settings = settings.demo.model_copy(
        update={key: value for key, value in changes.items() if value is not None}
    )
    began = time.monotonic()

    def say(line: str) -> None:
        if not quiet:
            console.print(f"[{time.monotonic() - began:5.0f} s] {line}", markup=False)

    shared = settings.home
    state = prepare_state(shared)
    spans = state / "spans"
    say("the default model (built once, then cached)")
    build_model(quiet=quiet)
    environment = {
        "FEEDLOOM_TELEMETRY__SPAN_DIRECTORY": str(spans),
        "FEEDLOOM_TRAINER__MIN_EXAMPLES": str(max(1, demo_settings.prompts * 3 // 4)),
        # Time to put requests in flight before the switch, which would else come at once.
        "FEEDLOOM_TRAINER__ROLLOUT_DELAY_S": "2",
    }
    for name, value in TRAINING.items():
        if name not in settings.trainer.config:
            environment[f"FEEDLOOM_TRAINER__{name.upper()}"] = value
    platform_settings = settings.model_copy(update={"home": state})
    telemetry = configure_telemetry("feedloom-demo", TelemetrySettings(span_directory=spans))
    stage = Stage(
        say=say,
        on_start=lambda prompt: None if quiet else console.print(f"\n> {prompt.prompt}", end=""),
        on_text=lambda _, text: (
            None if quiet else console.print(text, end="", style="cyan", markup=False)
        ),
    )
    with LocalPlatform(platform_settings, say, environment=environment, quiet=True) as platform:
        stage.seconds["start"] = time.monotonic() - began
        report = play(platform, demo_settings, shared / "demo" / "prompts.jsonl", stage, seed=seed)
    telemetry.shutdown()
    report = replace(
        report,
        trace=Trace(id=report.trace.id, hops=trace_hops(read_spans(spans), report.trace.id)),
        seconds={**report.seconds, "total": time.monotonic() - began},
    )
    console.print()
    print_report(report, console)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    failures = report.failures()
    for failure in failures:
        click.echo(f"feedloom demo: {failure}", err=True)
    if failures:
        sys.exit(1)


def prepare_state(shared: Path) -> Path:
    """A fresh state directory that shares the broker's jars, the built model and its shards.

    Raises ConfigurationError when an earlier demo's broker still runs there.
    """
    from infra.contracts.errors import ConfigurationError
    from infra.kafka.broker import EmbeddedKafka

    state = shared / "demo" / "state"
    if state.exists():
        if EmbeddedKafka(state).status() is not None:
            raise ConfigurationError(
                f"another demo is running in {state}; wait for it, or stop its broker with "
                f"`FEEDLOOM_HOME={state} feedloom kafka stop`"
            )
        shutil.rmtree(state)
    state.mkdir(parents=True)
    for name in ("kafka/lib", "models", "pile"):
        (shared / name).mkdir(parents=True, exist_ok=True)
        link = state / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((shared / name).resolve(), target_is_directory=True)
    return state


def build_model(*, quiet: bool) -> None:
    """Build the embedded default model, unless it is there. Its progress bar shows through."""
    import subprocess

    from infra.contracts.errors import FatalError
    from infra.local.supervisor import feedloom_command

    arguments = ["models", "bootstrap", "--no-register", *(["--quiet"] if quiet else [])]
    status = subprocess.run(feedloom_command(arguments), check=False).returncode
    if status != 0:
        raise FatalError(f"`feedloom models bootstrap` ended with status {status}")
