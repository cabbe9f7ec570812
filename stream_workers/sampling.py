"""Ranges that every engine refuses alike."""

from __future__ import annotations

import math

from infra.contracts.errors import RequestRefused
from infra.contracts.events import SamplingParameters


def check_sampling(sampling: SamplingParameters) -> None:
    """Raise RequestRefused ``invalid_sampling``, naming the field and what it may be."""
    rules = (
        ("max_tokens", sampling.max_tokens >= 1, "at least 1"),
        (
            "temperature",
            math.isfinite(sampling.temperature) and sampling.temperature >= 0,
            "finite and at least 0",
        ),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "at least 0 (0: no limit)"),
        (
            "repetition_penalty",
            math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0,
            "finite and above 0",
        ),
        ("stop", all(sampling.stop), "without empty strings"),
    )
    for name, holds, wanted in rules:
        if not holds:
            raise RequestRefused(
                "invalid_sampling",
                f"sampling.{name} must be {wanted}, not {getattr(sampling, name)!r}",
            )
