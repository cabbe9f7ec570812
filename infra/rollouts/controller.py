"""Watches every model's canary, and promotes, holds or rolls back as the policy says.

Single-threaded. It holds nothing that is not on the topics, so a restart loses nothing, and two
controllers come to the same verdicts.

A decision to act is published before the change of the rollout that it announces. A crash in
between leaves the canary as it was: the next look decides again, publishes again and acts. So no
change is without its decision; a decision may be there twice, or be overtaken by somebody else's
change, as the rollout's own history shows. A change is made of the revision that was decided on and
of no other: whoever was faster wins, and what they made of the rollout is looked at anew.

Knows nothing of how arms are compared (``infra.rollouts.policy``).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context

from infra.contracts.bus import Bus
from infra.contracts.errors import RetryableError
from infra.contracts.events.generation import Arm
from infra.contracts.events.model import ArmFigures, RolloutChanged, RolloutDecided
from infra.registry.client import RegistryWatcher, RolloutOvertaken, change_rollout
from infra.registry.config import ConfigWatcher
from infra.registry.state import RegistryState
from infra.registry.transitions import IllegalTransition, promoted, rolled_back
from infra.rollouts.decisions import (
    DecisionsWatcher,
    hold_is_due,
    publish_decision,
    worth_publishing,
)
from infra.rollouts.observation import Observation, policy_of
from infra.rollouts.policy import Decision
from observability.instruments import (
    ACTED,
    ALARM,
    ARM,
    MODEL,
    ROLLOUT_ALARMS,
    ROLLOUT_DECISIONS,
    ROLLOUT_ERRORS,
    ROLLOUT_ITL,
    ROLLOUT_LABELS,
    ROLLOUT_OUTCOME,
    ROLLOUT_REQUESTS,
    ROLLOUT_TOKENS,
    ROLLOUT_TTFT,
    VERDICT,
    VERSION,
    Reading,
    bounded_version,
)

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.rollouts")

ACTOR = "rollout controller"
INTERVAL_S = 5.0
IDLE_POLL_S = 0.5
OBSERVATION_POLL_S = 0.1
MUCH = 500
"""Records in one poll after which the next one does not wait: more are there."""


@dataclass
class _Watched:
    """A canary. ``seen``: what all the last look at it depended on; ``arms``: what it saw."""

    observation: Observation
    looks: int = 0
    seen: tuple[object, ...] | None = None
    arms: Mapping[Arm, ArmFigures] = field(default_factory=dict)


class Controller:
    """See the module. ``stop`` ends :meth:`run`; ``clock`` is for seconds, as ``time.time``."""

    def __init__(
        self,
        bus: Bus,
        *,
        stop: threading.Event,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._stop = stop
        self._interval_s = interval_s
        self._clock = clock
        self._registry = RegistryWatcher(bus)
        self._config = ConfigWatcher(bus)
        self._decisions = DecisionsWatcher(bus)
        self._publisher = bus.publisher(client_id="feedloom-rollouts")
        self._watched: dict[str, _Watched] = {}
        self._looked_at: Mapping[str, _Watched] = {}
        self._stops = [
            gauge.watch(self._reading(value))
            for gauge, value in (
                (ROLLOUT_REQUESTS, lambda figures: figures.requests),
                (ROLLOUT_ERRORS, lambda figures: figures.errors),
                (ROLLOUT_LABELS, lambda figures: figures.labels),
                (ROLLOUT_OUTCOME, lambda figures: figures.outcome),
                (ROLLOUT_TOKENS, lambda figures: figures.output_tokens),
                (ROLLOUT_TTFT, lambda figures: _seconds(figures.ttft_ms)),
                (ROLLOUT_ITL, lambda figures: _seconds(figures.itl_ms)),
            )
        ]

    def run(self, *, once: bool = False) -> None:
        """Follow the topics and look at every interval, until stopped (or after one look).

        Raises FatalError when the topics cannot be read.
        """
        try:
            self.catch_up()
            log.info("watching for canaries; a look every %g s", self._interval_s)
            next_look, busy = 0.0, False
            while not self._stop.is_set():
                came = self.poll(0.0 if busy else IDLE_POLL_S)
                behind = any(not one.observation.caught_up for one in self._watched.values())
                busy = behind or came >= MUCH
                if once:
                    if not behind:
                        self.look()
                        return
                elif time.monotonic() >= next_look:
                    self.look()
                    next_look = time.monotonic() + self._interval_s
        finally:
            self.close()

    def catch_up(self) -> None:
        """Read registry, settings and decisions up to their present ends; find the canaries."""
        for follower in (self._registry, self._config, self._decisions):
            follower.catch_up()
        self._follow()

    def poll(self, timeout_s: float) -> int:
        """Take in what came on every topic; how much. ``timeout_s``: of the wait for a rollout."""
        came = len(self._registry.poll(timeout_s)) + len(self._config.poll(0.0))
        self._decisions.poll(0.0)
        self._follow()
        return came + sum(
            one.observation.poll(OBSERVATION_POLL_S) for one in self._watched.values()
        )

    def look(self) -> list[RolloutDecided]:
        """Decide on every canary of which there is news; what was published.

        One whose topics are still being read is not looked at: what was read first says little of
        the whole.
        """
        published: list[RolloutDecided] = []
        # One that has ended since the last look is not shown any more.
        self._looked_at = dict(self._watched)
        for model, watched in self._watched.items():
            if not watched.observation.caught_up:
                continue
            try:
                published += self._look(model, watched)
            except RetryableError as error:
                log.warning("%s is looked at again: %s", model, error)
                watched.seen = None
        self._follow()
        return published

    def close(self) -> None:
        """Let go of the connections."""
        for stop in self._stops:
            stop()
        while self._watched:
            self._watched.popitem()[1].observation.close()
        self._publisher.close()
        for follower in (self._registry, self._config, self._decisions):
            follower.close()

    def _follow(self) -> None:
        """Observe the canaries there are, each as the policy wants it; and no others."""
        policy, state = policy_of(self._config.state.rollout), self._registry.state
        for model, watched in list(self._watched.items()):
            rollout = _canary(state, model)
            if rollout is None or not watched.observation.is_of(rollout, policy):
                log.info("%s: %s is not watched any more", model, watched.observation.experiment)
                self._watched.pop(model).observation.close()
        for model in state.models():
            rollout = _canary(state, model)
            if rollout is not None and model not in self._watched:
                log.info(
                    "%s: watching %s beside %s, experiment %s, by %s",
                    *(model, rollout.candidate, rollout.stable, rollout.experiment, policy.metric),
                )
                self._watched[model] = _Watched(Observation(self._bus, rollout, policy))

    def _look(self, model: str, watched: _Watched) -> list[RolloutDecided]:
        """Look at one canary, if anything that its decision depends on has changed."""
        rollout, observation = _canary(self._registry.state, model), watched.observation
        policy, now_ms = policy_of(self._config.state.rollout), self._now_ms()
        if rollout is None or not observation.is_of(rollout, policy):
            return []
        last = self._decisions.last(model, rollout.experiment)
        over = observation.age_hours(now_ms) >= policy.max_hours
        due = hold_is_due(last, now_ms=now_ms)
        depends_on = (observation.news, policy, rollout.revision, over, due)
        if watched.seen == depends_on:
            return []
        watched.seen = depends_on
        watched.looks = max(watched.looks, last.look if last is not None else 0) + 1
        with tracer.start_as_current_span(
            f"decide {model}",
            Context(),
            links=self._registry.links(model, rollout.candidate or rollout.stable),
            attributes={
                "feedloom.model": model,
                "feedloom.experiment": rollout.experiment,
                "feedloom.look": watched.looks,
            },
        ) as span:
            decision = observation.decide(policy, now_ms=now_ms)
            span.set_attribute("feedloom.verdict", decision.verdict)
            watched.arms = {
                "stable": decision.stable.figures,
                "candidate": decision.candidate.figures,
            }
            if policy.auto and decision.verdict != "hold":
                return self._act(rollout, decision, watched, last)
            if worth_publishing(decision, last, now_ms=now_ms):
                return [self._publish(rollout, decision, watched.looks, last)]
            return []

    def _act(
        self,
        rollout: RolloutChanged,
        decision: Decision,
        watched: _Watched,
        last: RolloutDecided | None,
    ) -> list[RolloutDecided]:
        """Carry a verdict out, or publish as a hold why the registry refuses it.

        Raises RolloutOvertaken.
        """
        change = self._change(rollout, decision)
        self._registry.catch_up()
        try:
            change(self._registry.state)
        except IllegalTransition as error:
            refused = _refused(decision, error)
            if not worth_publishing(refused, last, now_ms=self._now_ms()):
                return []
            return [self._publish(rollout, refused, watched.looks, last)]
        published = [self._publish(rollout, decision, watched.looks, last, acted=True)]
        try:
            change_rollout(self._publisher, self._registry, change)
        except IllegalTransition as error:
            refused = _refused(decision, error)
            return [*published, self._publish(rollout, refused, watched.looks, published[0])]
        return published

    def _change(
        self, rollout: RolloutChanged, decision: Decision
    ) -> Callable[[RegistryState], RolloutChanged]:
        """What a verdict makes of the rollout that it is about."""

        def change(state: RegistryState) -> RolloutChanged:
            current = state.rollout(rollout.model)
            if current != rollout:
                # Without its candidate, for one, a rollback would take out the stable version.
                raise RolloutOvertaken(f"{rollout.model} was changed while it was decided on")
            who: dict[str, Any] = {
                "now_ms": self._now_ms(),
                "actor": ACTOR,
                "reason": decision.reason,
            }
            if decision.verdict == "promote":
                return promoted(state, rollout.model, rollout.candidate or "", **who)
            return rolled_back(state, rollout.model, **who)

        return change

    def _publish(
        self,
        rollout: RolloutChanged,
        decision: Decision,
        look: int,
        last: RolloutDecided | None,
        *,
        acted: bool = False,
    ) -> RolloutDecided:
        event = decision.event(
            model=rollout.model,
            experiment=rollout.experiment,
            revision=rollout.revision,
            look=look,
            decided_at_ms=self._now_ms(),
            acted=acted,
        )
        publish_decision(self._publisher, event)
        self._decisions.catch_up()
        name = f"{rollout.model}@{rollout.candidate}"
        log.info("%s: %s%s: %s", name, event.verdict, " now" if acted else "", event.reason)
        attributes = {MODEL: rollout.model}
        ROLLOUT_DECISIONS.add(1, {**attributes, VERDICT: event.verdict, ACTED: acted})
        known = {_name(alarm) for alarm in last.alarms} if last is not None else set()
        for alarm in event.alarms:
            if _name(alarm) not in known:
                log.warning("%s: alarm: %s", name, alarm)
                ROLLOUT_ALARMS.add(1, {**attributes, ALARM: _name(alarm)})
        return event

    def _reading(self, value: Callable[[ArmFigures], float | None]) -> Reading:
        """One figure of every arm that was looked at last, where there is one."""

        def read() -> Iterable[tuple[float, Mapping[str, str]]]:
            return [
                (
                    figure,
                    {MODEL: model, ARM: arm, VERSION: bounded_version(figures.version)},
                )
                for model, watched in self._looked_at.items()
                for arm, figures in watched.arms.items()
                if (figure := value(figures)) is not None
            ]

        return read

    def _now_ms(self) -> int:
        return int(1000 * self._clock())


def _canary(state: RegistryState, model: str) -> RolloutChanged | None:
    """The model's rollout, if it is a canary."""
    rollout = state.rollout(model)
    return rollout if rollout is not None and rollout.state == "canary" else None


def _refused(decision: Decision, error: IllegalTransition) -> Decision:
    return replace(
        decision, verdict="hold", reason=f"no {decision.verdict}: {error}; {decision.reason}"
    )


def _name(alarm: str) -> str:
    return alarm.partition(":")[0]


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
