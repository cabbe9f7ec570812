"""What serving costs a model by its shape: weights, cache and arithmetic of a token. Pure shapes.

A shape comes from Hugging Face's ``config.json`` or from ``models.toml``, which holds the fields of
some published ones. Dense decoder-only transformers of the Llama family are understood; for what
would be planned wrongly, such as experts, there is an error.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from infra.contracts.errors import ConfigurationError

PRESETS = "models.toml"

BYTES: dict[str, float] = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
_NOT_UNDERSTOOD = {
    "num_local_experts": "experts",
    "num_experts": "experts",
    "n_routed_experts": "experts",
    "kv_lora_rank": "latent attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
}
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes in elements. ``source``: where the numbers come from."""

    name: str
    source: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    tied: bool
    attention_bias: bool
    query_key_norm: bool
    weights: str
    cache: str

    @property
    def embedding(self) -> int:
        """Elements of one embedding table."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them, as the checkpoint has them."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        if self.attention_bias:
            attention += queries + 2 * keys
        if self.query_key_norm:
            attention += 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        tables = self.embedding if self.tied else 2 * self.embedding
        return self.layers * layer + tables + self.hidden

    @property
    def multiplied(self) -> int:
        """Parameters that every token is multiplied with: looking up a row is no product."""
        return self.parameters - (0 if self.tied else self.embedding)

    @property
    def weight_bytes(self) -> float:
        """In memory. With 8-bit weights the tables stay in 16 bits, as in published checkpoints."""
        size = BYTES[self.weights]
        if self.weights != "fp8":
            return self.parameters * size
        tables = self.embedding if self.tied else 2 * self.embedding
        return (self.parameters - tables) * size + tables * BYTES["bfloat16"]

    @property
    def read_bytes(self) -> float:
        """Of the weights, read from memory once a step."""
        if self.tied:
            return self.weight_bytes
        return self.weight_bytes - self.embedding * max(BYTES[self.weights], BYTES["bfloat16"])

    @property
    def cache_bytes(self) -> float:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[self.cache]

    @property
    def token_flops(self) -> float:
        """To multiply one token with the weights (Kaplan et al. 2020, section 2.1: 2 N)."""
        return 2.0 * self.multiplied

    def attention_flops(self, tokens: float, context: float) -> float:
        """Of ``tokens`` that each look at ``context`` others, over all layers."""
        return 4.0 * self.layers * self.heads * self.head_dim * tokens * context


def load_model(named: str, *, weights: str | None = None, cache: str | None = None) -> ModelShape:
    """A preset, or a path to ``config.json`` or to the folder with it.

    ``weights`` and ``cache`` override the number formats. Raises ConfigurationError.
    """
    known = presets()
    if named in known:
        return _shape(named, known[named], known[named]["source"], weights, cache)
    path = Path(named)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ConfigurationError(
            f"no model {named!r}: give a path to a config.json or one of {', '.join(known)}"
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} is no JSON object")
    _check_family(config, path)
    return _shape(path.parent.name or str(path), config, str(path), weights, cache)


@cache
def presets() -> Mapping[str, Mapping[str, Any]]:
    """The fields of each model that ``--model`` accepts besides paths, by its name."""
    text = files(__package__).joinpath(PRESETS).read_text("utf-8")
    return tomllib.loads(text)


def _check_family(config: dict[str, Any], path: Path) -> None:
    for field, what in _NOT_UNDERSTOOD.items():
        if config.get(field):
            raise ConfigurationError(
                f"{path} has {field}: a model with {what} would be planned wrongly. Measure one "
                "worker of it (docs/scaling.md)"
            )
    family = config.get("model_type")
    if family not in _FAMILIES:
        raise ConfigurationError(
            f"{path}: model_type {family!r} is not known here; known are {', '.join(_FAMILIES)}"
        )


def _shape(
    name: str, config: Mapping[str, Any], source: str, weights: str | None, cache: str | None
) -> ModelShape:
    def need(field: str) -> int:
        value = config.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{source}: {field} must be a positive whole number")
        return value

    heads, hidden = need("num_attention_heads"), need("hidden_size")
    family = config["model_type"]
    quantised = (config.get("quantization_config") or {}).get("quant_method")
    if quantised not in (None, "fp8") and weights is None:
        raise ConfigurationError(f"{source}: quantised by {quantised}; say --weights, such as fp8")
    given = "fp8" if quantised else config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    weights = weights or given
    # A cache in the weights' 8 bits is a choice of its own.
    cache = cache or ("bfloat16" if weights == "fp8" else weights)
    for kind in (weights, cache):
        if kind not in BYTES:
            raise ConfigurationError(f"number format {kind!r}: give one of {', '.join(BYTES)}")
    return ModelShape(
        name=name,
        source=source,
        layers=need("num_hidden_layers"),
        hidden=hidden,
        intermediate=need("intermediate_size"),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        vocabulary=need("vocab_size"),
        context=need("max_position_embeddings"),
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bool(config.get("attention_bias", False)) or family == "qwen2",
        query_key_norm=family == "qwen3",
        weights=weights,
        cache=cache,
    )
