"""One experiment's arms, filled from the topics and kept up to date.

What is held is a fold of ``generation.results`` and ``feedback.examples``, read without a group
from the experiment's start: whoever reads them anew comes to the same figures. One exception: of
two results with one request id compaction keeps the newer alone.

Knows nothing of registries and of what becomes of a verdict.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from time import monotonic

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record, unread
from infra.contracts.config_sections import RolloutConfig
from infra.contracts.errors import FatalError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import GenerationResult
from infra.contracts.events.model import RolloutChanged
from infra.contracts.reading import readable
from infra.rollouts.arms import Arms
from infra.rollouts.policy import Decision, Policy, decide

log = logging.getLogger(__name__)

EARLIER_MS = 60_000
"""Before the experiment's start that reading starts: whoever started it has another clock."""
MOST_RECORDS = 5_000
SILENCE_S = 60.0


def policy_of(config: RolloutConfig) -> Policy:
    """The policy that ``rollout.*`` says."""
    return Policy(**{field.name: getattr(config, field.name) for field in fields(Policy)})


class Observation:
    """What a canary has shown, as of the last :meth:`poll`. ``rollout`` must be one.

    ``news`` grows with all that may change the figures. Of ``policy`` only the fold's part counts,
    ``metric`` and ``per_user``.
    """

    def __init__(self, bus: Bus, rollout: RolloutChanged, policy: Policy) -> None:
        assert rollout.candidate is not None, "a canary has a candidate"
        self.experiment = rollout.experiment
        self.news = 0
        self._started_at_ms = rollout.started_at_ms
        self._fold = policy.metric, policy.per_user
        self._arms = Arms(
            rollout.experiment,
            stable=rollout.stable,
            candidate=rollout.candidate,
            metric=policy.metric,
            per_user=policy.per_user,
        )
        since_ms = max(0, rollout.started_at_ms - EARLIER_MS)
        self._results = _Feed(bus, catalogue.RESULTS.name, since_ms)
        try:
            self._examples = _Feed(bus, catalogue.EXAMPLES.name, since_ms)
        except BaseException:
            self._results.close()
            raise

    def is_of(self, rollout: RolloutChanged, policy: Policy) -> bool:
        """Whether it goes on for a rollout and a policy, or has to be made anew for them."""
        fold = policy.metric, policy.per_user
        return (self.experiment, self._fold) == (rollout.experiment, fold)

    @property
    def caught_up(self) -> bool:
        """Whether it has seen all that was on the topics when it was made."""
        return self._results.caught_up and self._examples.caught_up

    def poll(self, timeout_s: float) -> int:
        """Take in what came; how many records. ``timeout_s`` is for either topic.

        Feedback is read once the results that were there before are: only so much of it can be
        kept until its result comes. A record that cannot be read is logged and passed over: those
        who own the topics put it on their dead-letter topics.
        """
        results = self._results.poll(timeout_s)
        for record in results:
            self.news += self._take_result(record)
        if not self._results.caught_up:
            return len(results)
        examples = self._examples.poll(timeout_s)
        for record in examples:
            self.news += self._take_example(record)
        return len(results) + len(examples)

    def catch_up(self, silence_s: float = SILENCE_S) -> None:
        """Poll until it has caught up. Raises FatalError when nothing comes for so long."""
        deadline = monotonic() + silence_s
        while not self.caught_up:
            if self.poll(0.2):
                deadline = monotonic() + silence_s
            elif monotonic() > deadline:
                raise FatalError(
                    f"results and feedback could not be read: nothing came for {silence_s:.0f} s"
                )

    def age_hours(self, now_ms: int) -> float:
        """Since the experiment's start."""
        return max(0, now_ms - self._started_at_ms) / catalogue.HOUR_MS

    def decide(self, policy: Policy, *, now_ms: int) -> Decision:
        """What the figures say now."""
        return decide(
            self._arms.summary("stable"),
            self._arms.summary("candidate"),
            policy,
            age_hours=self.age_hours(now_ms),
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._results.close()
        self._examples.close()

    def _take_result(self, record: Record) -> bool:
        if record.value is None:
            return False
        result = readable(record, GenerationResult, log)
        return result is not None and self._arms.take_result(result)

    def _take_example(self, record: Record) -> bool:
        if record.value is None:
            return self._arms.forget(record.key_text)
        example = readable(record, FeedbackExample, log)
        return example is not None and self._arms.take_feedback(example)


class _Feed:
    """One topic, every partition of it, from a moment on."""

    def __init__(self, bus: Bus, topic: str, since_ms: int) -> None:
        self._reader = bus.reader([topic])
        try:
            self._ahead = unread(self._reader, self._reader.seek_since(since_ms))
        except BaseException:
            self._reader.close()
            raise

    @property
    def caught_up(self) -> bool:
        return not self._ahead

    def poll(self, timeout_s: float) -> Sequence[Record]:
        found = self._reader.poll(timeout_s, MOST_RECORDS)
        self._ahead = unread(self._reader, self._ahead)
        return found

    def close(self) -> None:
        self._reader.close()
