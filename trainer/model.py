"""The default model: a small Llama, which vLLM serves as it would a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.settings import BootstrapSettings


def build_model(settings: BootstrapSettings, *, vocab_size: int, end: int, padding: int) -> Any:
    """A ``LlamaForCausalLM`` with fresh weights. Seed torch first.

    The shape follows Llama (Touvron et al. 2023): a gated MLP of 8/3 the width, rounded up to a
    multiple of 64, and here tied embeddings, which at this size hold a quarter of the parameters.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    width = settings.hidden_size
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=-(-8 * width // 3 // 64) * 64,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=padding,
            attn_implementation="sdpa",
        )
    )


def load_model(directory: Path) -> Any:
    """The model of a folder, in float32, ready for training. Never reaches for a hub."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, local_files_only=True, use_safetensors=True
    )


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Weights as safetensors, configuration and tokenizer, into an empty or new folder."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of one file, among the caller's own
    model.save_pretrained(str(directory), safe_serialization=True)
    tokenizer.save_pretrained(str(directory))
