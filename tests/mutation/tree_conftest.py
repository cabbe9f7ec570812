"""Stands for tests/conftest.py beside the altered copies: the same few examples every time.

A failing example is not made smaller, as nobody reads it, and how long one takes says nothing.
"""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase

EXAMPLES = 40
"""Of each property, where the suite takes 100 or more: what is noticed here is noticed there."""

hypothesis.settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=EXAMPLES,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis.settings.load_profile("mutation")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test sets for itself is bounded too."""
    for item in items:
        assert isinstance(item, pytest.Function)
        machine = item.cls if item.cls is not None and hasattr(item.cls, "settings") else None
        if machine is not None:
            machine.settings = _few(machine.settings)
        elif hasattr(item.obj, SETTINGS):
            setattr(item.obj, SETTINGS, _few(getattr(item.obj, SETTINGS)))


SETTINGS = "_hypothesis_internal_use_settings"


def _few(own: hypothesis.settings) -> hypothesis.settings:
    return hypothesis.settings(own, max_examples=min(own.max_examples, EXAMPLES))
