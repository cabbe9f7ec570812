"""``feedloom rollouts run|show|decisions``: canaries, and what is decided of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from infra.contracts.bus import Bus
    from infra.contracts.events.model import RolloutChanged, RolloutDecided
    from infra.registry.state import RegistryState
    from infra.rollouts.policy import Policy

SHOWN = 5
"""Past decisions below the figures."""


@click.group()
def rollouts() -> None:
    """Watch canaries; promote, hold or roll back by what people and clocks say of them.

    A canary is begun by `feedloom models canary`, or by the trainer if rollout.strategy says so.
    The limits are the settings rollout.*; with rollout.auto off nothing is promoted or rolled back
    without a person.
    """


@rollouts.command()
@click.option(
    "--interval",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look at every canary once, and end.")
def run(interval: float, once: bool) -> None:
    """Decide on every canary, until SIGTERM or SIGINT. Several of these do no harm."""
    import signal
    import threading

    from infra.kafka.bus import connect
    from infra.rollouts.controller import Controller
    from infra.settings import load_settings
    from observability.setup import configure_telemetry

    settings = load_settings()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        configure_telemetry("feedloom-rollouts", settings.telemetry),
        connect(settings) as bus,
    ):
        Controller(bus, stop=stop, interval_s=interval).run(once=once)


@rollouts.command()
@click.argument("model", required=False)
def show(model: str | None) -> None:
    """Show both arms of MODEL's canary, or of every canary, the verdict now and the last ones.

    Reads the canary's results and feedback from its start. Of a shadow it is how the answers to
    copies compare; without either, the figures of the last decision.
    """
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.registry.config import read_config
    from infra.registry.transitions import rollout_of
    from infra.rollouts.decisions import read_decisions
    from infra.rollouts.observation import policy_of
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        state = read_registry(bus)
        policy = policy_of(read_config(bus).rollout)
        names = [model] if model is not None else _on_trial(state)
        if not names:
            click.echo("nothing is tried: `feedloom models canary VERSION` begins it", err=True)
        wanted, past = [rollout_of(state, name) for name in names], read_decisions(bus)
        for rollout in wanted:
            decided = [one for one in past if one.model == rollout.model]
            _show(bus, rollout, policy, decided)


@rollouts.command()
@click.argument("model", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Newest.")
def decisions(model: str | None, limit: int) -> None:
    """Show what was decided on MODEL, or on every model, and why; the newest last.

    ACTED says whether a change of the rollout was to follow; `feedloom models status` says what
    stands.
    """
    from infra.kafka.bus import connect
    from infra.rollouts.decisions import read_decisions
    from infra.rollouts.tables import decisions_lines
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        found = read_decisions(bus, model)
    if not found:
        click.echo("nothing was decided yet", err=True)
        return
    for line in decisions_lines(found[-limit:]):
        click.echo(line)


def _on_trial(state: RegistryState) -> list[str]:
    found = [one for name in state.models() if (one := state.rollout(name)) is not None]
    return [one.model for one in found if one.candidate is not None]


def _show(bus: Bus, rollout: RolloutChanged, policy: Policy, past: list[RolloutDecided]) -> None:
    from infra.registry.rollout_commands import describe
    from infra.rollouts.tables import checks_lines, decisions_lines, figures_lines, verdict_lines

    click.echo(describe(rollout))
    if rollout.state == "shadow":
        from infra.rollouts.shadowed import read_shadow

        for line in read_shadow(bus, rollout).lines(rollout):
            click.echo(f"  {line}")
        return
    running = rollout.state == "canary"
    event = _now(bus, rollout, policy, past) if running else past[-1] if past else None
    if event is None:
        click.echo("no canary, and nothing was decided yet")
        return
    if not running:
        click.echo("\nno canary; figures of the last decision:")
    for lines in (figures_lines(event), checks_lines(event), verdict_lines(event)):
        click.echo("\n" + "\n".join(f"  {line}" for line in lines))
    if running and not policy.auto:
        click.echo("  rollout.auto is off: nothing is promoted or rolled back without a person")
    if past:
        click.echo("\nlast decisions:")
        for line in decisions_lines(past[-SHOWN:], models=False):
            click.echo(f"  {line}")


def _now(
    bus: Bus, rollout: RolloutChanged, policy: Policy, past: list[RolloutDecided]
) -> RolloutDecided:
    """The decision as it would be now; nothing is published."""
    import time

    from infra.rollouts.observation import Observation

    now_ms = time.time_ns() // 1_000_000
    observation = Observation(bus, rollout, policy)
    try:
        observation.catch_up()
    finally:
        observation.close()
    looks = [one.look for one in past if one.experiment == rollout.experiment]
    return observation.decide(policy, now_ms=now_ms).event(
        model=rollout.model,
        experiment=rollout.experiment,
        revision=rollout.revision,
        look=max(looks, default=0),
        decided_at_ms=now_ms,
        acted=False,
    )
