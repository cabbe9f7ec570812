"""``feedloom models promote|canary|shadow|rollback|pin|unpin|status``: what serves, and where."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, get_args

import click

from infra.contracts.events.model import Unit
from infra.registry.state import DEFAULT_MODEL, named
from infra.registry.workers import SILENT_MS

if TYPE_CHECKING:
    from infra.contracts.config_sections import RolloutConfig
    from infra.contracts.events.model import RolloutChanged
    from infra.contracts.events.platform import WorkerStatusReported
    from infra.registry.state import RegistryState


def _reason(function: Callable[..., None]) -> Callable[..., None]:
    return click.option("--reason", default="", help="Why, for whoever reads it later.")(function)


def _model(function: Callable[..., None]) -> Callable[..., None]:
    return click.argument("model", default=DEFAULT_MODEL)(function)


@click.command()
@click.argument("version")
@_reason
def promote(version: str, reason: str) -> None:
    """Make VERSION (MODEL@VERSION, or one of the default model) the stable one."""
    from infra.registry.transitions import promoted

    model, name = named(version)
    _change(
        lambda state, now_ms, actor: promoted(
            state, model, name, now_ms=now_ms, actor=actor, reason=reason
        )
    )


def _percent(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        name,
        type=click.FloatRange(min=0, max=100, min_open=True),
        metavar="PERCENT",
        help="Per cent of the requests, above 0 and up to 100; else rollout.weight.",
    )


def _unit(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--unit",
        type=click.Choice(get_args(Unit)),
        help="Whose requests all get one version; else that of the running one, or rollout.unit.",
    )(function)


@click.command()
@click.argument("version")
@_percent("--weight")
@_unit
@_reason
def canary(version: str, weight: float | None, unit: Unit | None, reason: str) -> None:
    """Let VERSION answer a share of the requests, beside the stable version.

    `--weight 5` is 5 %. Of full weights that share of the workers serves it. Another weight for a
    running canary goes on with its experiment; another unit begins a new one. `feedloom rollouts
    show` says how it does.
    """
    _try(version, "canary", weight, unit, reason)


@click.command()
@click.argument("version")
@_percent("--share")
@_unit
@_reason
def shadow(version: str, share: float | None, unit: Unit | None, reason: str) -> None:
    """Let VERSION, an adapter, answer copies of a share of the requests; nobody is shown them.

    `--share 10` is 10 %.
    """
    _try(version, "shadow", share, unit, reason)


def _try(
    version: str,
    mode: Literal["canary", "shadow"],
    percent: float | None,
    unit: Unit | None,
    reason: str,
) -> None:
    from infra.registry.transitions import tried

    model, name = named(version)
    config = _config()

    def change(state: RegistryState, now_ms: int, actor: str) -> RolloutChanged:
        current, chosen = state.rollout(model), unit
        if chosen is None and current is not None and current.candidate == name:
            # Another unit would begin a new experiment, which nobody asked for.
            chosen = current.unit
        return tried(
            state,
            model,
            name,
            mode=mode,
            weight=config.weight if percent is None else percent / 100,
            unit=chosen or config.unit,
            now_ms=now_ms,
            actor=actor,
            reason=reason,
        )

    _change(change)


@click.command()
@_model
@_reason
def rollback(model: str, reason: str) -> None:
    """Withdraw the candidate of MODEL; without one, go back to the version that was stable before.

    What the withdrawn version had learnt is learnt again by the next round, from the version that
    then serves.
    """
    from infra.registry.transitions import rolled_back

    _change(
        lambda state, now_ms, actor: rolled_back(
            state, model, now_ms=now_ms, actor=actor, reason=reason
        )
    )


@click.command()
@_model
@_reason
def pin(model: str, reason: str) -> None:
    """Keep the stable version of MODEL, whatever the trainer publishes. Rollbacks still work."""
    _pin(model, reason, pin=True)


@click.command()
@_model
@_reason
def unpin(model: str, reason: str) -> None:
    """Take the pin off MODEL: the trainer's next version that passes its gate is rolled out."""
    _pin(model, reason, pin=False)


def _pin(model: str, reason: str, *, pin: bool) -> None:
    from infra.registry.transitions import pinned

    _change(
        lambda state, now_ms, actor: pinned(
            state, model, pin=pin, now_ms=now_ms, actor=actor, reason=reason
        )
    )


@click.command()
def status() -> None:
    """Show which version of each model serves, since when and why, and what each worker has."""
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.registry.workers import read_workers
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        state, workers = read_registry(bus), read_workers(bus)
    rollouts = [one for model in state.models() if (one := state.rollout(model)) is not None]
    if not rollouts:
        click.echo("nothing serves yet: `feedloom models bootstrap`", err=True)
    for rollout in rollouts:
        click.echo(describe(rollout))
    now_ms = time.time_ns() // 1_000_000
    for worker in sorted(workers, key=lambda one: one.worker_id):
        click.echo(_worker(worker, state, now_ms))
    if not workers:
        click.echo("no worker has reported")


def describe(rollout: RolloutChanged) -> str:
    """Which versions serve whom, since when and why; several lines."""
    lines = [
        f"{rollout.model}: {rollout.stable} is stable"
        + (", pinned" if rollout.pinned else "")
        + (", after a rollback" if rollout.state == "rolled_back" else "")
    ]
    if rollout.candidate is not None:
        whom = f"{100 * rollout.candidate_weight:.4g}% of the requests, by {rollout.unit}"
        copies = "copies of " if rollout.state == "shadow" else ""
        lines += [
            f"  {rollout.candidate} is a {rollout.state}: {copies}{whom}",
            f"  experiment {rollout.experiment}, since {_moment(rollout.started_at_ms)}",
        ]
    who = rollout.actor or "somebody"
    why = f": {rollout.reason}" if rollout.reason else ""
    lines.append(f"  revision {rollout.revision}, {_moment(rollout.changed_at_ms)}, by {who}{why}")
    for what, names in (("retired", rollout.retired), ("rolled back", rollout.rolled_back)):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return "\n".join(lines)


def _worker(worker: WorkerStatusReported, state: RegistryState, now_ms: int) -> str:
    served = ", ".join(f"{model}@{version}" for model, version in sorted(worker.versions.items()))
    line = f"worker {worker.worker_id}: {worker.state}, {served or 'no version'}"
    beside = [
        f"{model}@{version}"
        for model, loaded in sorted(worker.loaded.items())
        for version in loaded
        if version != worker.versions.get(model)
    ]
    if beside:
        line += f" and beside it {', '.join(beside)}"
    if worker.state == "ready":
        line += _standing(worker, state)
    line += f", reported {_moment(worker.reported_at_ms)}"
    silent_ms = now_ms - worker.reported_at_ms
    if worker.state == "ready" and silent_ms > SILENT_MS:
        line += f" (silent for {_span(silent_ms)})"
    if worker.last_switch is not None:
        switch = worker.last_switch
        line += (
            f"; last switch {switch.from_version} to {switch.to_version} in "
            f"{switch.pause_ms:.0f} ms with {switch.in_flight} in flight"
        )
    if worker.failure is not None:
        line += f"; REFUSED {worker.failure}"
    return line


def _standing(worker: WorkerStatusReported, state: RegistryState) -> str:
    """Of what a worker serves, when it is not the stable version everywhere."""
    others = {
        (version, rollout.candidate)
        for model, version in worker.versions.items()
        if (rollout := state.rollout(model)) is not None and rollout.stable != version
    }
    if not others:
        return ""
    canary = all(version == candidate for version, candidate in others)
    return " (the canary)" if canary else " (not the stable version)"


def _span(ms: int) -> str:
    for length, unit in ((86_400_000, "days"), (3_600_000, "h"), (60_000, "min")):
        if ms >= 2 * length:
            return f"{ms // length} {unit}"
    return f"{ms // 1000} s"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _config() -> RolloutConfig:
    """``rollout.*`` as it is in force."""
    from infra.kafka.bus import connect
    from infra.registry.config import read_config
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        return read_config(bus).rollout


def _change(change: Callable[[RegistryState, int, str], RolloutChanged]) -> None:
    from infra.kafka.bus import connect
    from infra.registry.client import RegistryWatcher, change_rollout
    from infra.registry.commands import user
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        watcher, publisher = RegistryWatcher(bus), bus.publisher(client_id="feedloom-cli")
        try:
            event = change_rollout(
                publisher,
                watcher,
                lambda state: change(state, time.time_ns() // 1_000_000, user()),
            )
        finally:
            publisher.close()
            watcher.close()
    click.echo(describe(event))
