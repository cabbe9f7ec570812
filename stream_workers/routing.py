"""Which version answers a request: stable, an experiment's candidate, and a copy beside. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from infra.contracts.config_sections import Participation
from infra.contracts.events.generation import Arm, Assignment, GenerationRequest
from infra.contracts.events.model import Unit
from infra.rollouts.assignment import draw, unit_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """The full name of the version that answers, and of the one that answers a copy, if any.

    ``assignment`` is there when the request takes part in a canary; ``experiment`` with a copy.
    """

    version: str
    assignment: Assignment | None = None
    shadow: str | None = None
    experiment: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """An experiment as one worker can take part in it.

    ``candidate`` is the full name of an adapter that is loaded beside the serving version. Without
    it the candidate has full weights, and this worker as a whole is in ``arm``.
    """

    experiment: str
    unit: Unit
    weight: float
    candidate: str | None
    arm: Arm
    shadow: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """What a worker answers with at present: ``serving``, and whatever is on trial beside it."""

    serving: str
    trial: Trial | None = None

    def route(self, request: GenerationRequest, participation: Participation) -> Route:
        """``participation`` is the tenant's: ``stable`` and ``candidate`` take no part."""
        trial = self.trial
        if trial is None:
            return Route(version=self.serving)
        if trial.shadow:
            if participation == "stable" or self._arm(trial, request) == "stable":
                return Route(version=self.serving)
            return Route(version=self.serving, shadow=trial.candidate, experiment=trial.experiment)
        if participation != "split":
            forced = trial.candidate if participation == "candidate" else None
            return Route(version=forced or self.serving)
        unit = unit_of(request, trial.unit)
        arm = self._arm(trial, request)
        assignment = Assignment(experiment=trial.experiment, arm=arm, unit=unit)
        if arm == "candidate" and trial.candidate is not None:
            return Route(version=trial.candidate, assignment=assignment)
        return Route(version=self.serving, assignment=assignment)

    @staticmethod
    def _arm(trial: Trial, request: GenerationRequest) -> Arm:
        if trial.candidate is None:
            return trial.arm
        return draw(trial.experiment, unit_of(request, trial.unit), trial.weight)
