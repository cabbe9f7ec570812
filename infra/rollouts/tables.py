"""A decision as text for a terminal: both arms side by side, checks beside their limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from infra.contracts.events.model import ArmFigures, GateCheck, RolloutDecided
from infra.contracts.moments import utc
from infra.rollouts.policy import breached, judged
from infra.text import columns

POINTS = " pt"
LIMITS = {"outcome": "above", "errors": "at most", "ttft": "at most", "itl": "at most"}


def figures_lines(event: RolloutDecided) -> list[str]:
    """What either arm has shown, a measure a line."""
    rows = [("", f"stable {event.stable.version}", f"candidate {event.candidate.version}")]
    rows += [
        (title, cell(event.stable), cell(event.candidate))
        for title, cell in (
            ("requests", lambda arm: f"{arm.requests:,}"),
            ("failed", _failed),
            ("answers whose feedback counts", lambda arm: f"{arm.labels:,}"),
            ("units that gave it", lambda arm: f"{arm.units:,}"),
            ("up / down", lambda arm: f"{arm.ups:,} / {arm.downs:,}"),
            ("outcome", lambda arm: _shown(arm.outcome, "{:.1%}")),
            ("edits", lambda arm: f"{arm.edits:,}"),
            ("share changed by an edit", lambda arm: _shown(arm.edit_share, "{:.1%}")),
            ("tokens of an answer", lambda arm: _shown(arm.output_tokens, "{:.1f}")),
            ("time to first token", lambda arm: _shown(arm.ttft_ms, "{:.1f} ms")),
            ("time between tokens", lambda arm: _shown(arm.itl_ms, "{:.1f} ms")),
        )
    ]
    return columns(rows, right=(1, 2))


def checks_lines(event: RolloutDecided) -> list[str]:
    """Each check's interval, its limit, and what that means so far."""
    rows = [("CHECK", "CANDIDATE AGAINST STABLE", "LIMIT", "UNITS", "")]
    rows += [
        (
            check.name,
            _interval(check),
            f"{LIMITS.get(check.name, '')} {_difference(check, check.limit)}".strip(),
            f"{check.samples:,}",
            _state(check),
        )
        for check in event.checks
    ]
    return columns(rows, right=(3,))


def verdict_lines(event: RolloutDecided) -> list[str]:
    """The verdict with its reason, and the alarms."""
    lines = [f"alarm: {alarm}" for alarm in event.alarms]
    return [*lines, f"{event.verdict}: {event.reason}"]


def decisions_lines(events: Sequence[RolloutDecided], *, models: bool = True) -> list[str]:
    """A header and a line a decision; the reason last, as long as it is."""
    rows = [("TIME", "CANDIDATE", "STABLE", "LOOK", "VERDICT", "ACTED", "REASON")]
    rows += [
        (
            utc(event.decided_at_ms),
            f"{event.model}@{event.candidate.version}" if models else event.candidate.version,
            event.stable.version,
            str(event.look),
            event.verdict,
            "yes" if event.acted else "no",
            "; ".join((event.reason, *(f"alarm: {alarm}" for alarm in event.alarms))),
        )
        for event in events
    ]
    return columns(rows, right=(3,))


def _failed(arm: ArmFigures) -> str:
    share = f" ({arm.errors / arm.requests:.1%})" if arm.requests else ""
    return f"{arm.errors:,}{share}"


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else how.format(value)


def _interval(check: GateCheck) -> str:
    if not judged(check):
        return "too few to tell"
    low = _difference(check, check.low).removesuffix(POINTS)
    return f"{_difference(check, check.value)} ({low} to {_difference(check, check.high)})"


def _difference(check: GateCheck, value: float) -> str:
    """Of shares in points, of times in per cent."""
    return f"{value:+.0%}" if check.name in ("ttft", "itl") else f"{100 * value:+.1f}{POINTS}"


def _state(check: GateCheck) -> str:
    if not judged(check):
        return "waiting"
    if check.name == "outcome":
        return "shown" if check.passed else "shown worse" if check.high < 0 else "not shown"
    if breached(check):
        return "BREACHED"
    return "ok" if check.passed else "above, may be chance"
