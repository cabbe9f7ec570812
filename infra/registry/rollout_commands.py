"""``feedloom models promote|rollback|pin|unpin|status``: which version serves, and where."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from infra.registry.state import DEFAULT_MODEL, named

if TYPE_CHECKING:
    from infra.contracts.events import RolloutChanged, WorkerStatusReported
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


@click.command()
@_model
@_reason
def rollback(model: str, reason: str) -> None:
    """Bring back the version of MODEL that was stable before; a candidate goes too.

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
        click.echo(_rollout(rollout))
    for worker in sorted(workers, key=lambda one: one.worker_id):
        click.echo(_worker(worker, state))
    if not workers:
        click.echo("no worker has reported")


def _rollout(rollout: RolloutChanged) -> str:
    lines = [
        f"{rollout.model}: {rollout.stable} is stable"
        + (", pinned" if rollout.pinned else "")
        + (", after a rollback" if rollout.state == "rolled_back" else "")
    ]
    if rollout.candidate is not None:
        lines.append(f"  candidate {rollout.candidate}, {rollout.candidate_weight:.1%} of requests")
    who = rollout.actor or "somebody"
    why = f": {rollout.reason}" if rollout.reason else ""
    lines.append(f"  revision {rollout.revision}, {_moment(rollout.changed_at_ms)}, by {who}{why}")
    for what, names in (("retired", rollout.retired), ("rolled back", rollout.rolled_back)):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    return "\n".join(lines)


def _worker(worker: WorkerStatusReported, state: RegistryState) -> str:
    served = ", ".join(f"{model}@{version}" for model, version in sorted(worker.versions.items()))
    line = f"worker {worker.worker_id}: {worker.state}, {served or 'no version'}"
    behind = [
        model
        for model, version in worker.versions.items()
        if (rollout := state.rollout(model)) is not None and rollout.stable != version
    ]
    if worker.state == "ready" and behind:
        line += " (not the stable version)"
    line += f", reported {_moment(worker.reported_at_ms)}"
    if worker.last_switch is not None:
        switch = worker.last_switch
        line += (
            f"; last switch {switch.from_version} to {switch.to_version} in "
            f"{switch.pause_ms:.0f} ms with {switch.in_flight} in flight"
        )
    if worker.failure is not None:
        line += f"; REFUSED {worker.failure}"
    return line


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


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
    click.echo(_rollout(event))
