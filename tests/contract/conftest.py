"""Engines for the contract suite. vLLM's is built once, with a tiny model made on the spot."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from stream_workers.engine import Engine

if TYPE_CHECKING:
    from stream_workers.engine_vllm import VllmEngine

WORDS = "the quick brown fox jumps over the lazy dog and then returns to its den for the night"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'nobody' %}{{ raise_exception('nobody may speak') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
# vLLM's own imports warn of deprecations, which are not ours to mend.
VLLM_MARKS = (pytest.mark.vllm, pytest.mark.filterwarnings("default"))


@dataclass
class Weights:
    """Two versions of one model, on disk. The tokenizer of the first has a chat template."""

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
    for seed, chat_template in ((1, CHAT_TEMPLATE), (2, None)):
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
        made.chat_template = chat_template
        made.save_pretrained(path)
        paths.append(path)
    return Weights(*paths)


def build_vllm(weights: Weights) -> VllmEngine:
    """Serves ``default@1``. Full precision, as equal logits in half of it leave greedy a choice."""
    from stream_workers.engine_vllm import VllmEngine, VllmOptions

    return VllmEngine.build(
        VllmOptions(
            path=str(weights.first),
            version="default@1",
            max_num_seqs=16,
            kv_cache_gb=0.25,
            dtype="float32",
        )
    )


class Engines:
    """Builds vLLM's engine when it is first asked for, and keeps it."""

    def __init__(self) -> None:
        self._vllm: VllmEngine | None = None

    async def vllm(self, weights: Weights) -> VllmEngine:
        """Serving ``default@1``, whatever the test before did to it."""
        if self._vllm is None:
            self._vllm = build_vllm(weights)
        if self._vllm.version != "default@1":
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
    params=["memory", pytest.param("vllm", marks=VLLM_MARKS)], loop_scope="session"
)
async def engine(request: pytest.FixtureRequest, engines: Engines, weights: Weights) -> Engine:
    if request.param == "vllm":
        return await engines.vllm(weights)
    from stream_workers.engine_memory import MemoryEngine

    return MemoryEngine(version="default@1", max_model_len=256, token_interval_s=0.001)


@pytest_asyncio.fixture(loop_scope="session")
async def vllm_engine(engines: Engines, weights: Weights) -> VllmEngine:
    """For what only vLLM can do."""
    return await engines.vllm(weights)
