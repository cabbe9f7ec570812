"""Builds the engine that was asked for by a worker's settings. Imports vLLM only for that."""

from __future__ import annotations

from typing import Literal

from infra.settings import WorkerSettings
from stream_workers.engine import Engine

EngineKind = Literal["vllm", "memory"]


def build_engine(
    kind: EngineKind,
    worker: WorkerSettings,
    *,
    path: str,
    version: str,
    token_interval_s: float = 0.0,
) -> Engine:
    """An engine with the weights in ``path``, which are ``version``'s.

    vLLM blocks the loop for seconds: call before joining the group. ``token_interval_s`` is the
    memory engine's pace. Raises ConfigurationError for what this machine cannot do.
    """
    if kind == "memory":
        from stream_workers.engine_memory import MemoryEngine

        return MemoryEngine(
            version=version,
            max_model_len=worker.max_model_len or 2048,
            token_interval_s=token_interval_s,
            max_adapters=worker.max_adapters,
        )
    from stream_workers.engine_vllm import VllmEngine
    from stream_workers.vllm_options import VllmOptions

    return VllmEngine.build(
        VllmOptions(
            path=path,
            version=version,
            max_num_seqs=worker.max_num_seqs,
            max_model_len=worker.max_model_len,
            kv_cache_gb=worker.kv_cache_gb,
            gpu_memory_utilization=worker.gpu_memory_utilization,
            tensor_parallel_size=worker.tensor_parallel_size,
            max_adapters=worker.max_adapters,
            max_adapter_rank=worker.max_adapter_rank,
            pin_cores=worker.pin_cores,
        )
    )
