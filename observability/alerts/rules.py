"""Every alert, its bounds and the cases that prove it. What to do then: ``docs/operations``."""

from __future__ import annotations

from observability.alerts import kafka, requests, rollouts, telemetry, training, workers
from observability.alerts.model import Alert

ALERTS: tuple[Alert, ...] = tuple(
    alert
    for module in (requests, workers, kafka, rollouts, training, telemetry)
    for alert in module.ALERTS
)
