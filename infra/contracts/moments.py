"""Moments of the contract, epoch milliseconds, as text."""

from __future__ import annotations

from datetime import UTC, datetime


def utc(at_ms: int) -> str:
    """As ISO 8601, UTC, whole seconds."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
