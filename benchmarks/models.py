"""The models that benchmarks serve: the embedded one, and larger ones with random weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import console, project_home
from infra.settings import BootstrapSettings, Settings


def embedded_model() -> Path:
    """The embedded default model's folder; built first where it is missing (minutes)."""
    from trainer.bootstrap import bootstrap

    def step(what: str, done: float, total: float) -> None:
        if done == 0:
            console.print(f"building the embedded model: {what}")

    return bootstrap(Settings(home=project_home()), step).directory


def random_llama(target: Path, *, width: int, layers: int, context: int = 512) -> int:
    """Write a Llama with random weights and the embedded model's tokenizer; returns its size."""
    import torch

    from trainer.model import build_model, save_model
    from trainer.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(embedded_model())
    torch.manual_seed(0)
    shape = BootstrapSettings(hidden_size=width, layers=layers, heads=width // 64, context=context)
    model = build_model(
        shape,
        vocab_size=len(tokenizer),
        end=tokenizer.eos_token_id,
        padding=tokenizer.pad_token_id,
    )
    target.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, target)
    return sum(weight.numel() for weight in model.parameters())
