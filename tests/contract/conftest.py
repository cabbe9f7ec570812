"""Engines for the contract suite. vLLM's is built once, with a tiny model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from stream_workers.engine import Engine
from tests.conftest import WORDS, Weights

if TYPE_CHECKING:
    from stream_workers.engine_vllm import VllmEngine

__all__ = ["WORDS", "Weights"]

# vLLM's own imports warn of deprecations, which are not ours to mend.
VLLM_MARKS = (pytest.mark.vllm, pytest.mark.filterwarnings("default"))


def build_vllm(weights: Weights) -> VllmEngine:
    """Serves ``default@1``. Full precision, as equal logits in half of it leave greedy a choice."""
    from stream_workers.engine_vllm import VllmEngine
    from stream_workers.vllm_options import VllmOptions

    return VllmEngine.build(
        VllmOptions(
            path=str(weights.first),
            version="default@1",
            max_num_seqs=16,
            kv_cache_gb=0.25,
            max_adapters=2,
            max_adapter_rank=8,
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
        for version in self._vllm.adapters:
            await self._vllm.unload_adapter(version, "drain")
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
