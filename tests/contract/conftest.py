"""Engines for the contract suite. vLLM's is built once, with a tiny model made on the spot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from stream_workers.engine import Engine

WORDS = "the quick brown fox jumps over the lazy dog and then returns to its den for the night"


@dataclass
class Weights:
    """Two versions of one model, on disk."""

    first: Path
    second: Path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("weights")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    paths = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(made),
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                max_position_embeddings=256,
                eos_token_id=made.eos_token_id,
                bos_token_id=None,
            )
        )
        path = root / str(seed)
        model.save_pretrained(path)
        made.save_pretrained(path)
        paths.append(path)
    return Weights(*paths)


class Engines:
    """Builds vLLM's engine when it is first asked for, and keeps it."""

    def __init__(self) -> None:
        self._vllm: Engine | None = None

    async def vllm(self, weights: Weights) -> Engine:
        """Serving ``default@1``, whatever the test before did to it."""
        if self._vllm is None:
            from stream_workers.engine_vllm import VllmEngine, VllmOptions

            options = VllmOptions(
                path=str(weights.first), version="default@1", max_num_seqs=16, kv_cache_gb=0.25
            )
            self._vllm = VllmEngine.build(options)
        await self._vllm.switch(str(weights.first), "default@1", "keep")
        return self._vllm

    async def close(self) -> None:
        if self._vllm is not None:
            await self._vllm.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engines() -> AsyncIterator[Engines]:
    made = Engines()
    yield made
    await made.close()


@pytest_asyncio.fixture(
    params=[
        "memory",
        # vLLM's own imports warn of deprecations, which are not ours to mend.
        pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.filterwarnings("default")]),
    ],
    loop_scope="session",
)
async def engine(request: pytest.FixtureRequest, engines: Engines, weights: Weights) -> Engine:
    if request.param == "vllm":
        return await engines.vllm(weights)
    from stream_workers.engine_memory import MemoryEngine

    return MemoryEngine(version="default@1", max_model_len=256, token_interval_s=0.001)
