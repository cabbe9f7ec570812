"""What vLLM is built with, on a CPU and on GPUs. Does not import it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from infra.contracts.errors import ConfigurationError
from infra.cores import available, share
from stream_workers.sampling import MAX_BEAMS, MAX_LOGPROBS

CPU_BLOCK_TOKENS = 32
"""The prefix cache knows whole blocks. vLLM's 128 on a CPU miss most chats; 32 are as fast."""

ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The greatest ranks that vLLM makes room for."""


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What to build. ``kv_cache_gb`` counts on a CPU, ``gpu_memory_utilization`` and
    ``tensor_parallel_size`` on a GPU.

    ``max_adapters`` above 0 takes LoRA adapters beside the weights, up to ``max_adapter_rank``.
    """

    path: str
    version: str
    max_num_seqs: int = 64
    max_model_len: int | None = None
    kv_cache_gb: float = 0.5
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    dtype: str = "auto"
    seed: int = 0
    max_adapters: int = 0
    max_adapter_rank: int = 16
    pin_cores: bool = False
    """CPU only: the engine on cores of its own, this process on the rest (``infra.cores``)."""


def engine_arguments(options: VllmOptions, *, cpu: bool) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs``. ``cpu``: for a vLLM that runs on one.

    Raises ConfigurationError: the model is to be spread over several GPUs, and there is none.
    """
    arguments: dict[str, Any] = {
        "model": options.path,
        "dtype": options.dtype,
        "max_num_seqs": options.max_num_seqs,
        "max_model_len": options.max_model_len,
        "max_logprobs": max(MAX_LOGPROBS, 2 * MAX_BEAMS),
        # Fixed: with "auto" whichever request comes first decides it for all later ones.
        "structured_outputs_config": {"backend": "xgrammar"},
        "disable_log_stats": True,
        "seed": options.seed,
        # Lower numbers first, and those that came first among equals.
        "scheduling_policy": "priority",
    }
    if cpu:
        if options.tensor_parallel_size > 1:
            raise ConfigurationError(
                "worker.tensor_parallel_size is for GPUs: this vLLM runs on the CPU, as one"
            )
        arguments["distributed_executor_backend"] = "uni"
        arguments["enforce_eager"] = True
        arguments["block_size"] = CPU_BLOCK_TOKENS
        arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gb * 1024**3)
    else:
        arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        arguments["tensor_parallel_size"] = options.tensor_parallel_size
    if options.max_adapters:
        # Slots fill from the first. On a CPU a request without an adapter, in one batch with
        # others, is given the last slot's (vllm-project/vllm#48421): that one stays empty.
        slots = options.max_adapters + int(cpu)
        arguments |= {
            "enable_lora": True,
            "max_loras": slots,
            "max_cpu_loras": slots,
            "max_lora_rank": next(
                rank for rank in ADAPTER_RANKS if rank >= options.max_adapter_rank
            ),
        }
    return arguments


def share_the_cpu() -> None:
    """Run the model in the engine's own process, with no more threads than its share of cores.

    By default vLLM's CPU build has a process more, and the two spin while they wait for each other:
    on two cores the broker, the clients and this process get a turn when the answers are done.
    Settings that are there already stand. On two cores, at 1 and 64 requests: 365 and 5,092
    tokens/s on 1.1 cores, against 244 and 4,844 on 1.3 and 1.9.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(len(share(available()).engine)))
    # vLLM allows one process here only under this name; AsyncLLM's own child stays.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
