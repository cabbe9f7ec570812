"""What a worker should have loaded, by what the registry says. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infra.contracts.events.generation import Arm
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.registry.state import RegistryState
from infra.registry.transitions import refusal


def version_name(published: ModelVersionPublished) -> str:
    """``model@version``, as chunks and results carry it."""
    return f"{published.model}@{published.version}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``base``: the full weights. ``serving``: what answers, the base or an adapter of it.

    ``candidate``: an adapter that answers beside it. ``arm``: of the worker as a whole, when the
    candidate has full weights.
    """

    base: ModelVersionPublished
    serving: ModelVersionPublished
    candidate: ModelVersionPublished | None = None
    arm: Arm = "stable"

    @property
    def adapters(self) -> tuple[ModelVersionPublished, ...]:
        """All that must be loaded, the one that serves first."""
        wanted = (self.serving, *([self.candidate] if self.candidate is not None else []))
        return tuple(one for one in wanted if one.kind == "lora")


def plan_of(state: RegistryState, rollout: RolloutChanged, *, in_cohort: bool) -> Plan | None:
    """``None``: the rollout names a version that was not published, or not yet.

    ``in_cohort``: whether this worker is one of those that serve a candidate's full weights.
    """
    model = rollout.model
    stable = state.version(model, rollout.stable)
    candidate = state.version(model, rollout.candidate) if rollout.candidate is not None else None
    if candidate is not None and candidate.kind == "full":
        if in_cohort:
            return Plan(base=candidate, serving=candidate, arm="candidate")
        candidate = None
    if stable is None:
        return None
    base = stable if stable.kind == "full" else state.version(model, stable.base or "")
    if base is None:
        return None
    return Plan(base=base, serving=stable, candidate=candidate)


def obstacle(plan: Plan, version: ModelVersionPublished) -> str | None:
    """Why a version of a plan may not be loaded, whoever made the rollout; ``None``: it may."""
    why_not = refusal(version)
    if why_not is None and version.kind == "lora" and version.base != plan.base.version:
        why_not = (
            f"it is an adapter of {version.model}@{version.base}, and the weights here are "
            f"{version_name(plan.base)}"
        )
    return why_not
