"""The engine of the workers that the peers' users write: vLLM's AsyncLLM, as vLLM documents it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


def build(model: str) -> Any:
    """Blocks for seconds. Call it in the event loop that will run the engine."""
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype=os.environ["PEERS_DTYPE"],
            max_num_seqs=256,
            enforce_eager=True,
            block_size=32,
            distributed_executor_backend="uni",
            kv_cache_memory_bytes=512 * 1024**2,
            disable_log_stats=True,
            seed=0,
        )
    )


async def stream(
    engine: Any, request_id: str, prompt: str, max_tokens: int
) -> AsyncIterator[tuple[str, int, bool]]:
    """Text of each delta, its number of tokens, and whether it is the last."""
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=0.7,
        ignore_eos=True,
        output_kind=RequestOutputKind.DELTA,
    )
    async for output in engine.generate(prompt, params, request_id):
        delta = output.outputs[0]
        yield delta.text, len(delta.token_ids), output.finished
