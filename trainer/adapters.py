"""LoRA (Hu et al. 2021): train few weights beside frozen ones, then add them in."""

from __future__ import annotations

from typing import Any

ALPHA_PER_RANK = 2


def with_adapter(model: Any, rank: int) -> Any:
    """The model with an adapter on every linear map but the head; for rank 0 the model itself."""
    if not rank:
        return model
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=ALPHA_PER_RANK * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def merged(model: Any) -> Any:
    """The plain model again, what the adapter learnt added to its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
