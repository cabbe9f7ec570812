"""``feedloom models`` and ``feedloom trainer``. torch is imported once a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from infra.registry.rollout_commands import (
    canary,
    pin,
    promote,
    rollback,
    shadow,
    status,
    unpin,
)
from trainer.pretrain_command import pretrain
from trainer.round_options import read_options, round_options
from trainer.version_commands import diff, evaluate, lineage, list_versions, show, verify


@click.group()
def models() -> None:
    """Build, publish, list, compare and verify versions, and say which one serves."""


@models.command()
@click.option("--force", is_flag=True, help="Build again, even if the model is there.")
@click.option("--no-register", is_flag=True, help="Build only; needs no broker.")
@click.option("--quiet", is_flag=True, help="No progress.")
def bootstrap(force: bool, no_register: bool, quiet: bool) -> None:
    """Build the embedded default model, once, and register it as version 1."""
    from rich.progress import BarColumn, TimeElapsedColumn

    from infra.kafka.bus import connect
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from trainer import bootstrap as building
    from trainer.progress import bar

    settings = load_settings()
    with configure_telemetry("feedloom-trainer", settings.telemetry):
        with bar(BarColumn(), TimeElapsedColumn(), quiet=quiet) as say:
            built = building.bootstrap(settings, say, force=force)
        if not quiet:
            loss = built.metrics["heldout_loss_after"]
            verb = "built" if built.fresh else "already built"
            click.echo(f"{built.directory}: {verb}, held-out loss {loss:.3f} nats per token")
        if no_register:
            return
        with connect(settings) as bus:
            registered = building.register(settings, bus, built)
    if not quiet:
        click.echo("registered as version 1" if registered else "the registry has versions already")


for command in (
    *(list_versions, show, diff, lineage, verify, evaluate),
    *(promote, canary, shadow, rollback, pin, unpin, status),
):
    models.add_command(command)


@models.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="default", show_default=True)
@click.option("--base", help="For an adapter: its base version; by default the one that serves.")
@click.option("--stable", is_flag=True, help="Also make it the stable version.")
def register(directory: Path, model: str, base: str | None, stable: bool) -> None:
    """Publish the model in DIRECTORY, or the LoRA adapter (PEFT's files), as the next version."""
    from importlib.metadata import version as package_version

    from infra.contracts.errors import ConfigurationError
    from infra.contracts.events.model import Lineage
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings
    from trainer.publishing import full_version, publish, roll_out

    adapter = (directory / "adapter_config.json").is_file()
    if not adapter and not (directory / "config.json").is_file():
        raise ConfigurationError(
            f"{directory} holds neither config.json nor adapter_config.json: it is no model"
        )
    if base is not None and not adapter:
        raise ConfigurationError(f"--base is for adapters; {directory} holds a whole model")
    settings = load_settings()
    with connect(settings) as bus:
        state = read_registry(bus)
        if adapter:
            base = full_version(state, model, base)
        publisher = bus.publisher(client_id="feedloom-cli")
        try:
            version = publish(
                directory,
                model=model,
                base=base,
                lineage=Lineage(objective="imported", code_version=package_version("feedloom")),
                metrics={},
                store=ArtifactStore(settings.artifacts),
                state=state,
                publisher=publisher,
            )
            if stable:
                roll_out(version, state=state, publisher=publisher, reason="registered")
        finally:
            publisher.close()
    click.echo(f"published {model}@{version.version}")


@click.group()
def trainer() -> None:
    """Train on feedback as it comes, or a new model from scratch."""


@trainer.command()
@round_options
def run(config: Path | None, **given: Any) -> None:
    """Train whenever enough feedback waits, until SIGTERM or SIGINT.

    What is given here holds for this process, whatever `feedloom config set` says.
    """
    _serve(config, given)


@trainer.command()
@click.option("--now", is_flag=True, help="Take what feedback there is.")
@round_options
def once(now: bool, config: Path | None, **given: Any) -> None:
    """Wait for enough feedback, train one version, and end.

    What is given here holds for this process, whatever `feedloom config set` says.
    """
    _serve(config, given, once=True, now=now)


trainer.add_command(pretrain)


def _serve(
    config: Path | None, given: dict[str, Any], *, once: bool = False, now: bool = False
) -> None:
    import os
    import signal
    import threading

    from infra.kafka.bus import KafkaBus, resolve_kafka
    from infra.settings import load_settings
    from infra.stacks import tell_stacks_when_asked
    from observability.setup import configure_telemetry
    from trainer.service import TrainerService

    pinned, folder = read_options(config, given)
    settings = load_settings()
    if folder is not None:
        trainer = settings.trainer.model_copy(update={"logging_dir": folder})
        settings = settings.model_copy(update={"trainer": trainer})
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    tell_stacks_when_asked()
    # Answers come first where a worker shares the machine.
    os.nice(5)
    with (
        configure_telemetry("feedloom-trainer", settings.telemetry),
        KafkaBus(resolve_kafka(settings)) as bus,
    ):
        TrainerService(settings, bus, stop=stop, pinned=pinned).run(once=once, now=now)
