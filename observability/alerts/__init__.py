"""Prometheus alert rules, generated from the metric catalogue.

``python -m observability.alerts --write`` writes them to ``infra/deploy/observability``.
"""

from __future__ import annotations

from pathlib import Path

from observability.alerts.model import as_yaml, rule_file, test_file
from observability.alerts.objectives import recordings
from observability.alerts.rules import ALERTS

_HEAD = "# Made from observability/alerts by: python -m observability.alerts --write\n"


def files() -> dict[Path, str]:
    """Contents by path below ``infra/deploy/observability``."""
    folder = Path("prometheus")
    return {
        folder / "rules.yaml": _HEAD + as_yaml(rule_file(recordings(), ALERTS)),
        folder / "rules_test.yaml": _HEAD + as_yaml(test_file(ALERTS, "rules.yaml")),
    }
