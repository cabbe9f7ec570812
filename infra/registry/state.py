"""The registry as a fold over its two topics: versions and rollouts. Pure."""

from __future__ import annotations

from infra.contracts.events.model import ModelVersionPublished, RolloutChanged

DEFAULT_MODEL = "default"


def named(reference: str) -> tuple[str, str]:
    """Model and version of ``MODEL@VERSION``, or of a version of the default model."""
    model, _, version = reference.rpartition("@")
    return model or DEFAULT_MODEL, version


class RegistryState:
    """What the events applied so far say. Versions are immutable; a rollout's revision only rises.

    Applying any of them again, or in another order between models, changes nothing.
    """

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, ModelVersionPublished]] = {}
        self._rollouts: dict[str, RolloutChanged] = {}

    def apply(self, event: ModelVersionPublished | RolloutChanged) -> bool:
        """Take in one event; ``False`` if it is stale, a duplicate, or redefines a version."""
        if isinstance(event, ModelVersionPublished):
            versions = self._versions.setdefault(event.model, {})
            if event.version in versions:
                return False
            versions[event.version] = event
            return True
        known = self._rollouts.get(event.model)
        # Of two with one revision the later stands: it is the one that compaction keeps.
        if known is not None and (event.revision < known.revision or event == known):
            return False
        self._rollouts[event.model] = event
        return True

    def version(self, model: str, version: str) -> ModelVersionPublished | None:
        """One version, if it was published."""
        return self._versions.get(model, {}).get(version)

    def versions(self, model: str) -> list[ModelVersionPublished]:
        """Every version of a model, in the order of publication."""
        return list(self._versions.get(model, {}).values())

    def models(self) -> list[str]:
        """Every model with a version, sorted. Safe while another thread applies events."""
        return sorted(model for model, versions in list(self._versions.items()) if versions)

    def rollout(self, model: str) -> RolloutChanged | None:
        """The newest rollout of a model."""
        return self._rollouts.get(model)

    def stable(self, model: str) -> ModelVersionPublished | None:
        """The version that the newest rollout calls stable, if it was published."""
        rollout = self._rollouts.get(model)
        return self.version(model, rollout.stable) if rollout else None

    def next_version(self, model: str) -> str:
        """One more than the highest whole-number version; ``"1"`` for a new model."""
        numbers = [int(name) for name in self._versions.get(model, {}) if name.isdecimal()]
        return str(max(numbers, default=0) + 1)
