"""What may become of a version, and the rollout event that makes it so. Pure.

    registered ──┬──> rejected                      by the gate, for good
                 └──> gated ──> stable ──> retired  another was promoted
                        ^          │ ^        │
                        │          │ └────────┘     a rollback brings back the newest retired one
                        └ rolled_back <┘            and may be promoted again by a person

An imported or pre-trained version has no gate and goes from registered to stable. A pin keeps the
stable version: promotions are refused until it is taken off; rollbacks are not.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from infra.contracts.errors import FeedloomError
from infra.contracts.events import GateDecision, ModelVersionPublished, RolloutChanged
from infra.registry.state import RegistryState

Stage = Literal[
    "registered", "gated", "candidate", "canary", "stable", "retired", "rolled_back", "rejected"
]
KEPT = 256
"""Retired and rolled-back versions that a rollout names, the newest."""


class IllegalTransition(FeedloomError):
    """A change that the registry's rules refuse. Says why, and what would do."""


def stage_of(state: RegistryState, version: ModelVersionPublished) -> Stage:
    """Where a version stands."""
    current, name = state.rollout(version.model), version.version
    if current is not None:
        if current.stable == name:
            return "stable"
        if current.candidate == name:
            return "canary" if current.candidate_weight > 0 else "candidate"
        if name in current.rolled_back:
            return "rolled_back"
        if name in current.retired:
            return "retired"
    if version.rejected:
        return "rejected"
    return "gated" if version.gate is not None else "registered"


def refusal(version: ModelVersionPublished) -> str | None:
    """Why a version may not serve, whatever a rollout says; ``None``: it may.

    What has learnt from feedback must have passed a gate. An imported or pre-trained version is
    whoever's who registered it.
    """
    if version.gate is None:
        return "it has learnt from feedback and was through no gate" if _learnt(version) else None
    if version.gate.passed:
        return None
    return f"its gate rejected it: {reasons(version.gate)}"


def reasons(decision: GateDecision) -> str:
    """What decided, in words: the failed checks, or else all."""
    failed = [check for check in decision.checks if not check.passed]
    return "; ".join(check.reason for check in failed or decision.checks)


def _learnt(version: ModelVersionPublished) -> bool:
    return bool(version.lineage.feedback)


def promoted(
    state: RegistryState,
    model: str,
    version: str,
    *,
    now_ms: int,
    actor: str,
    reason: str,
) -> RolloutChanged:
    """Make a version the stable one. Raises IllegalTransition."""
    target, current = _known(state, model, version), state.rollout(model)
    name = f"{model}@{version}"
    why_not = refusal(target)
    if why_not is not None:
        raise IllegalTransition(f"{name} may not serve: {why_not}")
    if current is None:
        return RolloutChanged(
            model=model,
            revision=1,
            stable=version,
            changed_at_ms=now_ms,
            actor=actor,
            reason=reason,
        )
    if current.stable == version:
        raise IllegalTransition(f"{name} is the stable version already")
    if current.pinned:
        raise IllegalTransition(
            f"{model} is pinned to {current.stable} ({_why(current)}): "
            f"`feedloom models unpin {model}` first"
        )
    retired = (*(one for one in current.retired if one != version), current.stable)
    return _changed(
        current,
        now_ms=now_ms,
        actor=actor,
        reason=reason,
        stable=version,
        retired=retired[-KEPT:],
        rolled_back=tuple(one for one in current.rolled_back if one != version),
        candidate=None if current.candidate == version else current.candidate,
        candidate_weight=0.0 if current.candidate == version else current.candidate_weight,
        state="steady",
    )


def rolled_back(
    state: RegistryState, model: str, *, now_ms: int, actor: str, reason: str
) -> RolloutChanged:
    """Bring back the version that was stable before this one. Raises IllegalTransition.

    A candidate is given up with it: what is wrong may be in what they share.
    """
    current = _rollout(state, model)
    if not current.retired:
        raise IllegalTransition(f"nothing was stable before {model}@{current.stable}")
    *older, before = current.retired
    _known(state, model, before)
    gone = [current.stable, *([current.candidate] if current.candidate is not None else [])]
    kept = [one for one in current.rolled_back if one not in gone]
    return _changed(
        current,
        now_ms=now_ms,
        actor=actor,
        reason=reason,
        stable=before,
        retired=tuple(older),
        rolled_back=(*kept, *gone)[-KEPT:],
        candidate=None,
        candidate_weight=0.0,
        state="rolled_back",
    )


def pinned(
    state: RegistryState, model: str, *, pin: bool, now_ms: int, actor: str, reason: str
) -> RolloutChanged:
    """Keep the stable version whatever the trainer publishes, or let it go. IllegalTransition."""
    current = _rollout(state, model)
    if current.pinned == pin:
        raise IllegalTransition(
            f"{model} is {'pinned' if pin else 'not pinned'} already ({_why(current)})"
        )
    return _changed(current, now_ms=now_ms, actor=actor, reason=reason, pinned=pin)


def _changed(
    current: RolloutChanged, *, now_ms: int, actor: str, reason: str, **changes: object
) -> RolloutChanged:
    return msgspec.structs.replace(
        current,
        revision=current.revision + 1,
        changed_at_ms=now_ms,
        actor=actor,
        reason=reason,
        **changes,
    )


def _rollout(state: RegistryState, model: str) -> RolloutChanged:
    current = state.rollout(model)
    if current is None:
        models = ", ".join(one for one in state.models() if state.rollout(one)) or "none"
        raise IllegalTransition(f"no version of {model!r} serves; models that do: {models}")
    return current


def _known(state: RegistryState, model: str, version: str) -> ModelVersionPublished:
    found = state.version(model, version)
    if found is None:
        known = ", ".join(one.version for one in state.versions(model)) or "none"
        raise IllegalTransition(f"{model}@{version} was never published; versions: {known}")
    return found


def _why(current: RolloutChanged) -> str:
    said = f" by {current.actor}" if current.actor else ""
    return f"revision {current.revision}{said}: {current.reason or 'no reason given'}"
