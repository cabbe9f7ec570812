"""A small model with weights of its own, for tests that train or serve one."""

from __future__ import annotations

from typing import Any


def small_llama(
    vocabulary: int, *, seed: int, width: int = 32, context: int = 64, **options: Any
) -> Any:
    """A Llama of two layers with weights drawn from the seed; ``options``: of its configuration."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
            **options,
        )
    )
