"""What the feedback join is tested with."""

from __future__ import annotations

from infra.contracts.events.generation import GenerationResult


def result(reason: str = "length") -> GenerationResult:
    """The answer to request ``r``."""
    return GenerationResult(
        request_id="r", submit_id="s", model="default", prompt="p", text="out",
        finish_reason=reason, prompt_tokens=1, output_tokens=1,  # type: ignore[arg-type]
        model_versions=("default@1",), created_at_ms=1, finished_at_ms=2,
    )  # fmt: skip
