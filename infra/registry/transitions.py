"""What may become of a version, and the rollout event that makes it so. Pure.

    registered ──┬──> rejected                        by the gate, for good
                 └──> gated ──┬──> stable ──> retired  another was promoted
                        ^     v     ^ │ ^        │
                        │  candidate┤ │ └────────┘     a rollback brings back the newest retired
                        │  canary ──┘ │
                        └─ rolled_back┘                and may be promoted again by a person

A candidate answers a share of the requests (a canary), or copies of them that nobody is shown (a
shadow, or a candidate at weight 0). A rollback withdraws the candidate if there is one, and else
the stable version. An imported or pre-trained version has no gate and goes on from registered. A
pin keeps the stable version: candidates and promotions are refused until it is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from infra.contracts.errors import FeedloomError
from infra.contracts.events.model import GateDecision, ModelVersionPublished, RolloutChanged, Unit
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
            return "canary" if current.state == "canary" else "candidate"
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


def base_of(version: ModelVersionPublished) -> str | None:
    """The full version whose weights it needs: its own, or an adapter's base."""
    return version.version if version.kind == "full" else version.base


def rollout_of(state: RegistryState, model: str) -> RolloutChanged:
    """The rollout of a model. Raises IllegalTransition: no version of it serves."""
    current = state.rollout(model)
    if current is None:
        models = ", ".join(one for one in state.models() if state.rollout(one)) or "none"
        raise IllegalTransition(f"no version of {model!r} serves; models that do: {models}")
    return current


def promoted(
    state: RegistryState,
    model: str,
    version: str,
    *,
    now_ms: int,
    actor: str,
    reason: str,
) -> RolloutChanged:
    """Make a version the stable one. Raises IllegalTransition.

    A candidate that was not promoted stays one, unless it is an adapter of other weights.
    """
    target, current = _servable(state, model, version), state.rollout(model)
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
        raise IllegalTransition(f"{model}@{version} is the stable version already")
    _unpinned(current)
    retired = (*(one for one in current.retired if one != version), current.stable)
    candidate = current.candidate if current.candidate != version else None
    kept = candidate is not None and _together(target, _known(state, model, candidate)) is None
    return _changed(
        current,
        now_ms=now_ms,
        actor=actor,
        reason=reason,
        stable=version,
        retired=retired[-KEPT:],
        rolled_back=tuple(one for one in current.rolled_back if one != version),
        # What was measured beside the old version says nothing of the new one.
        **(_experiment(current, now_ms) if kept else {**_NO_CANDIDATE, "state": "steady"}),
    )


def tried(
    state: RegistryState,
    model: str,
    version: str,
    *,
    mode: Literal["canary", "shadow"],
    weight: float,
    unit: Unit,
    now_ms: int,
    actor: str,
    reason: str,
) -> RolloutChanged:
    """Make a version the candidate, or give the candidate another weight or mode.

    ``weight``: the share of units, above 0 and at most 1. A change of weight alone goes on with
    the experiment; anything else begins a new one. Raises IllegalTransition.
    """
    target, current = _servable(state, model, version), rollout_of(state, model)
    name = f"{model}@{version}"
    if not 0 < weight <= 1:
        raise IllegalTransition(f"a weight is above 0 and at most 1, not {weight:g}")
    if current.stable == version:
        raise IllegalTransition(f"{name} is the stable version already")
    _unpinned(current)
    if current.candidate is not None and current.candidate != version:
        raise IllegalTransition(
            f"{model}@{current.candidate} is the candidate ({_why(current)}): promote it, or "
            f"`feedloom models rollback {model}` withdraws it"
        )
    apart = _together(_known(state, model, current.stable), target)
    if apart is not None:
        raise IllegalTransition(f"{name} cannot serve beside {model}@{current.stable}: {apart}")
    if mode == "shadow" and target.kind == "full":
        raise IllegalTransition(
            f"{name} has full weights, which take a worker whole, and cannot answer copies beside "
            f"others: `feedloom models replay --version {name}` compares it on past requests"
        )
    same = current.candidate == version and (current.state, current.unit) == (mode, unit)
    if same and current.candidate_weight == weight:
        raise IllegalTransition(f"{name} is a {mode} at {weight:.4g} already ({_why(current)})")
    return _changed(
        current,
        now_ms=now_ms,
        actor=actor,
        reason=reason,
        candidate=version,
        candidate_weight=weight,
        unit=unit,
        state=mode,
        rolled_back=tuple(one for one in current.rolled_back if one != version),
        **({} if same else _experiment(current, now_ms, candidate=version)),
    )


def rolled_back(
    state: RegistryState, model: str, *, now_ms: int, actor: str, reason: str
) -> RolloutChanged:
    """Withdraw the candidate; without one, bring back the version that was stable before.

    Raises IllegalTransition.
    """
    current = rollout_of(state, model)
    if current.candidate is not None:
        stable, retired, gone = current.stable, current.retired, current.candidate
    elif current.retired:
        stable, retired, gone = current.retired[-1], current.retired[:-1], current.stable
        _known(state, model, stable)
    else:
        raise IllegalTransition(f"nothing was stable before {model}@{current.stable}")
    return _changed(
        current,
        now_ms=now_ms,
        actor=actor,
        reason=reason,
        stable=stable,
        retired=retired,
        rolled_back=(*(one for one in current.rolled_back if one not in (gone, stable)), gone)[
            -KEPT:
        ],
        **_NO_CANDIDATE,
        state="rolled_back",
    )


def pinned(
    state: RegistryState, model: str, *, pin: bool, now_ms: int, actor: str, reason: str
) -> RolloutChanged:
    """Keep the stable version whatever the trainer publishes, or let it go. IllegalTransition."""
    current = rollout_of(state, model)
    if current.pinned == pin:
        raise IllegalTransition(
            f"{model} is {'pinned' if pin else 'not pinned'} already ({_why(current)})"
        )
    return _changed(current, now_ms=now_ms, actor=actor, reason=reason, pinned=pin)


_NO_CANDIDATE: Mapping[str, Any] = {
    "candidate": None,
    "candidate_weight": 0.0,
    "experiment": "",
    "started_at_ms": 0,
}


def _experiment(
    current: RolloutChanged, now_ms: int, candidate: str | None = None
) -> dict[str, Any]:
    """A new one: named after its candidate and the revision that begins it, as no other is."""
    name = f"{current.model}@{candidate or current.candidate}#{current.revision + 1}"
    return {"experiment": name, "started_at_ms": now_ms}


def _servable(state: RegistryState, model: str, version: str) -> ModelVersionPublished:
    target = _known(state, model, version)
    name = f"{model}@{version}"
    why_not = refusal(target)
    if why_not is None and target.kind == "lora":
        base = state.version(model, target.base) if target.base is not None else None
        if base is None:
            why_not = f"its base {model}@{target.base or '?'} was never published"
        elif base.kind != "full":
            why_not = f"its base {model}@{base.version} is no full version"
    if why_not is not None:
        raise IllegalTransition(f"{name} may not serve: {why_not}")
    return target


def _together(stable: ModelVersionPublished, candidate: ModelVersionPublished) -> str | None:
    """Why two versions cannot serve beside each other; ``None``: they can."""
    if candidate.kind == "full" or base_of(stable) == candidate.base:
        return None
    return (
        f"it is an adapter of {candidate.model}@{candidate.base}, and the weights that serve are "
        f"{stable.model}@{base_of(stable)}"
    )


def _unpinned(current: RolloutChanged) -> None:
    if current.pinned:
        raise IllegalTransition(
            f"{current.model} is pinned to {current.stable} ({_why(current)}): "
            f"`feedloom models unpin {current.model}` first"
        )


def _changed(
    current: RolloutChanged, *, now_ms: int, actor: str, reason: str, **changes: Any
) -> RolloutChanged:
    return msgspec.structs.replace(
        current,
        revision=current.revision + 1,
        changed_at_ms=now_ms,
        actor=actor,
        reason=reason,
        **changes,
    )


def _known(state: RegistryState, model: str, version: str) -> ModelVersionPublished:
    found = state.version(model, version)
    if found is None:
        known = ", ".join(one.version for one in state.versions(model)) or "none"
        raise IllegalTransition(f"{model}@{version} was never published; versions: {known}")
    return found


def _why(current: RolloutChanged) -> str:
    said = f" by {current.actor}" if current.actor else ""
    return f"revision {current.revision}{said}: {current.reason or 'no reason given'}"
