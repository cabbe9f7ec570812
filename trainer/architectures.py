"""Model families by name, fresh and of any size, with what each is trained to do.

A family that needs tokens which the tokenizer lacks (a mask, sentinels) has them above its ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infra.contracts.errors import ConfigurationError
from trainer.baselines import LstmLanguageModel
from trainer.objectives import (
    Collator,
    MaskedCollator,
    Objective,
    PiecesCollator,
    SpanCorruptionCollator,
    stacked,
)

SENTINELS = 100
"""As T5 has: so many spans at most in one document's piece."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of a model. ``vocabulary``, ``end`` and ``padding`` are the tokenizer's."""

    vocabulary: int
    end: int
    padding: int
    context: int = 512
    width: int = 256
    layers: int = 4
    heads: int = 4

    @property
    def mask(self) -> int:
        """The id above the tokenizer's, for families that mask."""
        return self.vocabulary

    @property
    def sentinels(self) -> list[int]:
        """Ids above the tokenizer's, for families that take spans out."""
        return list(range(self.vocabulary, self.vocabulary + SENTINELS))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family. ``packs``: trained on rows of several documents, its attention is one that
    transformers' ``AttentionInterface`` can replace.
    """

    name: str
    objective: Objective
    build: Callable[[Shape], Any]
    packs: bool = False

    def collator(self, shape: Shape) -> Collator:
        """Blocks into this family's batches."""
        if self.objective == "causal":
            return stacked
        if self.objective == "causal-pieces":
            return PiecesCollator(shape.padding)
        if self.objective == "masked":
            return MaskedCollator(
                mask=shape.mask, padding=shape.padding, vocabulary=shape.vocabulary
            )
        return SpanCorruptionCollator(
            sentinels=shape.sentinels, end=shape.end, padding=shape.padding
        )


def architecture(name: str) -> Architecture:
    """By name. Raises ConfigurationError."""
    found = ARCHITECTURES.get(name)
    if found is None:
        raise ConfigurationError(
            f"there is no architecture {name!r}; there are {', '.join(ARCHITECTURES)}"
        )
    return found


def _special(shape: Shape) -> dict[str, int]:
    return {
        "bos_token_id": shape.end,
        "eos_token_id": shape.end,
        "pad_token_id": shape.padding,
    }


def _size(shape: Shape) -> dict[str, int]:
    """By the names that most families have."""
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
    }


def _gpt_size(shape: Shape) -> dict[str, int]:
    """By the names of GPT-2, which GPT-J has too."""
    return {
        "n_positions": shape.context,
        "n_embd": shape.width,
        "n_layer": shape.layers,
        "n_head": shape.heads,
    }


def _gated(width: int) -> int:
    """8/3 of the width, rounded up to a multiple of 64 (Touvron et al. 2023)."""
    return -(-8 * width // 3 // 64) * 64


def _llama(shape: Shape) -> Any:
    """Embeddings are tied: in a small model they hold a quarter of the parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            intermediate_size=_gated(shape.width),
            num_key_value_heads=shape.heads,
            max_position_embeddings=shape.context,
            tie_word_embeddings=True,
            **_size(shape),
            **_special(shape),
        )
    )


def _gpt2(shape: Shape) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=shape.vocabulary,
            # Text is seen about once: nothing is there to overfit, and half the kernels go.
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **_gpt_size(shape),
            **_special(shape),
        )
    )


def _gptj(shape: Shape) -> Any:
    from transformers import GPTJConfig, GPTJForCausalLM

    return GPTJForCausalLM(
        GPTJConfig(
            vocab_size=shape.vocabulary,
            rotary_dim=shape.width // shape.heads // 2,
            **_gpt_size(shape),
            **_special(shape),
        )
    )


def _gpt_neox(shape: Shape) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=shape.vocabulary,
            intermediate_size=4 * shape.width,
            max_position_embeddings=shape.context,
            **_size(shape),
            **_special(shape),
        )
    )


def _t5(shape: Shape) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=shape.vocabulary + SENTINELS,
            d_model=shape.width,
            d_kv=shape.width // shape.heads,
            d_ff=4 * shape.width,
            num_layers=shape.layers,
            num_heads=shape.heads,
            pad_token_id=shape.padding,
            eos_token_id=shape.end,
            decoder_start_token_id=shape.padding,
        )
    )


def _bert(shape: Shape) -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=shape.vocabulary + 1,
            intermediate_size=4 * shape.width,
            max_position_embeddings=shape.context,
            pad_token_id=shape.padding,
            **_size(shape),
        )
    )


def _roberta(shape: Shape) -> Any:
    from transformers import RobertaConfig, RobertaForMaskedLM

    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=shape.vocabulary + 1,
            intermediate_size=4 * shape.width,
            # Its positions begin behind the padding's id.
            max_position_embeddings=shape.context + shape.padding + 1,
            **_size(shape),
            **_special(shape),
        )
    )


def _lstm(shape: Shape) -> Any:
    return LstmLanguageModel(
        vocabulary=shape.vocabulary, width=shape.width, layers=min(2, shape.layers)
    )


ARCHITECTURES: Mapping[str, Architecture] = {
    one.name: one
    for one in (
        Architecture(name="gpt2", objective="causal", build=_gpt2, packs=True),
        Architecture(name="gptj", objective="causal", build=_gptj),
        Architecture(name="gpt-neox", objective="causal", build=_gpt_neox, packs=True),
        Architecture(name="llama", objective="causal", build=_llama, packs=True),
        Architecture(name="t5", objective="span-corruption", build=_t5),
        Architecture(name="bert", objective="masked", build=_bert),
        Architecture(name="roberta", objective="masked", build=_roberta),
        Architecture(name="rnn", objective="causal-pieces", build=_lstm),
    )
}
