"""What starts a round: enough feedback, its age, a fall of the live win rate, or the clock."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import islice
from statistics import NormalDist

from croniter import croniter

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.feedback import FeedbackExample

CONFIDENCE = 0.95


def liked(example: FeedbackExample) -> bool | None:
    """Whether people were content with the answer as it was; ``None`` when nothing says so."""
    if example.edited_text is not None:
        return False
    if example.ups != example.downs:
        return example.ups > example.downs
    if example.score is not None:
        return example.score >= 0.5
    return None


class LiveWinRate:
    """The share of one version's judged answers that people like, and whether it fell.

    The first ``window`` answers judged since :meth:`reset` are the measure; the newest ``window``
    of those after them are held against it.
    """

    def __init__(self) -> None:
        self._verdicts: dict[str, bool] = {}
        self._version: str | None = None

    def follow(self, version: str | None) -> None:
        """Which ``model@version`` counts from now on. Another one begins anew."""
        if version != self._version:
            self._version = version
            self.reset()

    def add(self, example: FeedbackExample) -> None:
        """Newer feedback on an answer replaces older, in its place."""
        verdict = liked(example)
        if verdict is not None and example.model_versions[-1:] == (self._version,):
            self._verdicts[example.request_id] = verdict

    def forget(self, request_id: str) -> None:
        """Whoever asked for it."""
        self._verdicts.pop(request_id, None)

    def reset(self) -> None:
        """Measure anew."""
        self._verdicts.clear()

    def fall(self, window: int) -> tuple[float, float] | None:
        """The two shares, before and now, if the second is surely the lower one.

        One-sided test of two proportions at 95 %; ``None`` before there are enough answers.
        """
        count = len(self._verdicts)
        if count < 2 * window:
            return None
        verdicts = self._verdicts.values()
        before = sum(islice(verdicts, window)) / window
        now = sum(islice(verdicts, count - window, None)) / window
        pooled = (before + now) / 2
        error = math.sqrt(2 * pooled * (1 - pooled) / window)
        if before - now <= NormalDist().inv_cdf(CONFIDENCE) * error:
            return None
        return before, now


class Schedule:
    """A cron expression in UTC, or none. ``last_s``: epoch of the last round.

    Raises ConfigurationError for an expression that is none.
    """

    def __init__(self, expression: str | None, *, last_s: float) -> None:
        if expression is not None and not croniter.is_valid(expression):
            raise ConfigurationError(
                f"trainer.schedule: {expression!r} is no cron expression, such as '0 3 * * *'"
            )
        self._expression = expression
        self._last_s = last_s

    def ran(self, now_s: float) -> None:
        """A round was run."""
        self._last_s = now_s

    def is_due(self, now_s: float) -> bool:
        """Whether its moment came since the last round; one that was missed is made up for."""
        if self._expression is None:
            return False
        moments = croniter(self._expression, datetime.fromtimestamp(now_s, tz=UTC))
        previous: float = moments.get_prev(float)
        return previous > self._last_s


def why_now(
    *,
    teaching: int,
    waiting: int,
    waited_s: float,
    fall: tuple[float, float] | None,
    scheduled: bool,
    config: TrainerConfig,
) -> str | None:
    """Why a round should start now, in words; ``None`` if it should not.

    ``teaching``: new answers whose feedback says what was right. ``waiting``: all new ones, the
    oldest of which came ``waited_s`` ago. Without new feedback there is nothing to learn.
    """
    if teaching >= config.min_examples:
        return f"count: {teaching} new answers with feedback to learn from"
    if waiting and waited_s >= config.max_wait_s:
        return f"age: feedback waits for {waited_s:.0f} s"
    drop = fall[0] - fall[1] if fall is not None else 0.0
    if waiting and fall is not None and 0 < config.drift_drop <= drop:
        return f"drift: people like {fall[1]:.0%} of the answers, before {fall[0]:.0%}"
    if waiting and scheduled:
        return "schedule"
    return None
