"""What the demo found, as data, as JSON, and as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Median and 95th percentile, milliseconds."""

    p50: float
    p95: float


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """One figure for the parent version and for the one trained from feedback."""

    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One request's trace: its id and each hop, ``service: span``, in order."""

    id: str
    hops: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The keys are part of the public interface of ``feedloom demo --json``."""

    sent: int
    answered: int
    lost: int
    duplicate_finals: int
    failed: int
    ttft_ms: Quantiles
    itl_ms: Quantiles
    output_tokens_per_s: float
    heldout_loss: BeforeAfter
    win_rate: BeforeAfter
    swap_pause_ms: float
    swap_in_flight: int
    versions: dict[str, int]
    feedback: dict[str, int]
    trace: Trace
    seconds: dict[str, float]

    def as_json(self) -> dict[str, object]:
        """Plain data for ``json.dump``."""
        return asdict(self)

    def failures(self) -> list[str]:
        """What makes the demo fail; empty when every step happened and nothing was lost."""
        checks = {
            f"{self.lost} requests were lost": self.lost > 0,
            f"{self.duplicate_finals} requests got more than one final": self.duplicate_finals > 0,
            f"{self.failed} requests ended in an error": self.failed > 0,
            "no new version answered anything": len(self.versions) < 2,
            "no request was in flight during the switch": self.swap_in_flight == 0,
            "the trace did not pass through the worker": len(self.trace.hops) < 3,
        }
        return [reason for reason, failed in checks.items() if failed]


def print_report(report: DemoReport, console: Console) -> None:
    """Two tables and the trace."""
    table = Table(title="Feedloom demo", title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    rows = {
        "requests sent / answered": f"{report.sent} / {report.answered}",
        "lost": str(report.lost),
        "duplicate finals": str(report.duplicate_finals),
        "TTFT p50 / p95": f"{report.ttft_ms.p50:.0f} / {report.ttft_ms.p95:.0f} ms",
        "ITL p50 / p95": f"{report.itl_ms.p50:.1f} / {report.itl_ms.p95:.1f} ms",
        "output tokens/s": f"{report.output_tokens_per_s:,.0f}",
        "feedback published": ", ".join(f"{n} {kind}" for kind, n in report.feedback.items()),
        "held-out loss": (
            f"{report.heldout_loss.before:.3f} before, {report.heldout_loss.after:.3f} after"
            " (nats per token)"
        ),
        "win rate against version 1": (
            f"{report.win_rate.before:.2f} before, {report.win_rate.after:.2f} after"
        ),
        "switch": (
            f"{report.swap_pause_ms:.0f} ms pause, {report.swap_in_flight} requests in flight"
        ),
        "answered by": ", ".join(f"{v}: {n}" for v, n in sorted(report.versions.items())),
        "seconds": ", ".join(f"{step} {s:.0f}" for step, s in report.seconds.items()),
        "trace": report.trace.id,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    for depth, hop in enumerate(report.trace.hops):
        console.print(f"  {'  ' * min(depth, 8)}└ {hop}", highlight=False)
