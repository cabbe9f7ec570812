"""A person's change of a rollout, by the registry's own rules."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Literal

from pydantic import Field

from infra.contracts.bus import Bus
from infra.contracts.errors import FeedloomError
from infra.contracts.events.model import RolloutChanged, Unit
from infra.registry.client import RegistryWatcher, change_rollout
from infra.registry.state import RegistryState
from infra.registry.transitions import IllegalTransition, pinned, promoted, rolled_back, tried
from producers.gateway.bodies import Body, Name

Reason = Annotated[str, Field(min_length=1, max_length=1000)]
Revision = Annotated[int, Field(ge=0)]


class RolloutBody(Body):
    """``revision``: of the rollout that the person saw; 0 where nothing served yet.

    ``version`` for promote, canary and shadow; ``weight`` (a fraction) and ``unit`` for the latter
    two.
    """

    action: Literal["canary", "shadow", "promote", "rollback", "pin", "unpin"]
    revision: Revision
    reason: Reason
    version: Name | None = None
    weight: Annotated[float, Field(ge=0, le=1)] | None = None
    unit: Unit | None = None


class MovedOn(FeedloomError):
    """What is to be changed is not what was seen. Says what stands."""


def change(
    bus: Bus, model: str, asked: RolloutBody, *, actor: str, now_ms: int, source: str
) -> RolloutChanged:
    """Publish the change and wait until it stands.

    Raises:
        MovedOn: the rollout has another revision than the one asked about; nothing is published.
        IllegalTransition: the registry's rules refuse it; nothing is published.
        RolloutOvertaken: somebody changed it at the same moment; says whose change stands.
        FatalError, DeliveryFailed, TimeoutError: the topics cannot be read or written.
    """
    with closing(RegistryWatcher(bus)) as watcher, closing(bus.publisher(client_id=source)) as out:
        return change_rollout(
            out, watcher, lambda state: _transition(state, model, asked, actor, now_ms)
        )


def _transition(
    state: RegistryState, model: str, asked: RolloutBody, actor: str, now_ms: int
) -> RolloutChanged:
    current = state.rollout(model)
    revision = 0 if current is None else current.revision
    if revision != asked.revision:
        raise MovedOn(
            f"{model} has moved on since you looked: {described(current)}; look again, then decide"
        )
    match asked.action:
        case "rollback":
            return rolled_back(state, model, now_ms=now_ms, actor=actor, reason=asked.reason)
        case "pin" | "unpin":
            pin = asked.action == "pin"
            return pinned(state, model, pin=pin, now_ms=now_ms, actor=actor, reason=asked.reason)
        case "promote":
            version = _version(asked)
            return promoted(state, model, version, now_ms=now_ms, actor=actor, reason=asked.reason)
        case "canary" | "shadow":
            if asked.weight is None or asked.unit is None:
                raise IllegalTransition(f"a {asked.action} needs a weight and a unit")
            return tried(
                state,
                model,
                _version(asked),
                mode=asked.action,
                weight=asked.weight,
                unit=asked.unit,
                now_ms=now_ms,
                actor=actor,
                reason=asked.reason,
            )


def _version(asked: RolloutBody) -> str:
    if asked.version is None:
        raise IllegalTransition(f"say which version to {asked.action}")
    return asked.version


def described(current: RolloutChanged | None) -> str:
    """What serves, in a clause."""
    if current is None:
        return "nothing serves"
    beside = (
        f" beside {current.candidate} ({current.state}, {100 * current.candidate_weight:.4g} %)"
        if current.candidate is not None
        else ""
    )
    who = current.actor or "somebody"
    return f"{current.stable} is stable{beside}, revision {current.revision} by {who}"
