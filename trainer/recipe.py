"""How a model is trained from scratch: the names of transformers' ``TrainingArguments``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from infra.contracts.errors import ConfigurationError

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything has a default; a YAML file and the command line set what should differ."""

    num_train_epochs: Positive = 1.0
    max_steps: Annotated[int, Meta(ge=-1)] = -1
    """-1: as many as the epochs take."""
    per_device_train_batch_size: Count = 16
    per_device_eval_batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    learning_rate: Positive = 5e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: Natural = 100
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    max_grad_norm: Positive = 1.0
    logging_dir: str | None = None
    """TensorBoard's folder; by default ``logs`` beside the model."""
    logging_steps: Count = 10
    save_steps: Count = 500
    """A checkpoint each; a run that was broken off goes on from the last."""
    save_total_limit: Count = 2
    eval_steps: Natural = 0
    """0: only at the end."""
    fp16: bool = False
    """Needs a GPU."""
    bf16: bool = False
    torch_compile: bool = False
    fsdp: bool = False
    """Weights, gradients and optimizer state in shards, one a process."""
    fsdp_config: str | dict[str, Any] | None = None
    """As transformers documents it: a JSON file, or in YAML what would be in it."""
    deepspeed: str | dict[str, Any] | None = None
    """ZeRO: DeepSpeed's own configuration, likewise. Needs a GPU and the package."""
    seed: Natural = 17


def read_recipe(path: Path) -> Recipe:
    """A YAML file of some of the names. Raises ConfigurationError that says which is wrong."""
    return read_yaml(path, Recipe)


def read_yaml(path: Path, kind: type[T]) -> T:
    """A YAML file as ``kind``, an empty one as an empty mapping. Raises ConfigurationError."""
    try:
        return msgspec.yaml.decode(path.read_bytes() or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    """The recipe with other values, checked as a file's are."""
    try:
        return msgspec.convert(msgspec.to_builtins(recipe) | changes, Recipe)
    except msgspec.ValidationError as error:
        raise ConfigurationError(str(error)) from error
