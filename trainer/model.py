"""The embedded model, a small Llama; and any decoder in a folder: loaded, saved, asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.settings import BootstrapSettings

if TYPE_CHECKING:
    import torch


def build_model(settings: BootstrapSettings, *, vocab_size: int, end: int, padding: int) -> Any:
    """A ``LlamaForCausalLM`` with fresh weights. Seed torch first."""
    from trainer.architectures import Shape, architecture

    return architecture("llama").build(
        Shape(
            vocabulary=vocab_size,
            end=end,
            padding=padding,
            context=settings.context,
            width=settings.hidden_size,
            layers=settings.layers,
            heads=settings.heads,
        )
    )


def load_model(directory: Path) -> Any:
    """The model of a folder, in float32, ready for training. Never reaches for a hub."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(  # nosec B615 # a folder
        str(directory), dtype=torch.float32, local_files_only=True, use_safetensors=True
    )


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Weights as safetensors, configuration and tokenizer, into an empty or new folder."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of one file, among the caller's own
    model.save_pretrained(str(directory), safe_serialization=True)
    tokenizer.save_pretrained(str(directory))


@contextmanager
def asked(model: Any) -> Iterator[torch.device]:
    """Neither dropout nor gradients, and the device for inputs; afterwards it is as it was."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)
