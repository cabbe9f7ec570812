"""Grafana dashboards, generated from the metric catalogue.

``python -m observability.dashboards --write`` writes them to ``infra/deploy/observability``.
"""

from __future__ import annotations

from pathlib import Path

from observability.dashboards import kafka, rollout, traffic, training, workers
from observability.dashboards.panels import Dashboard, render

DASHBOARDS: tuple[Dashboard, ...] = tuple(
    module.DASHBOARD for module in (traffic, workers, rollout, training, kafka)
)


def files() -> dict[Path, str]:
    """Contents by path below ``infra/deploy/observability``."""
    folder = Path("grafana/dashboards")
    return {folder / f"{one.uid}.json": render(one) for one in DASHBOARDS}
