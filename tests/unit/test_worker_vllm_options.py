"""What vLLM is built with, by what it runs on."""

from __future__ import annotations

import pytest

from infra.contracts.errors import ConfigurationError
from stream_workers.vllm_options import VllmOptions, engine_arguments


def _options(**changed: float) -> VllmOptions:
    return VllmOptions(path="/weights", version="default@1", **changed)  # type: ignore[arg-type]


def test_a_cpu_is_given_its_cache_in_bytes_and_a_gpu_its_share() -> None:
    cpu = engine_arguments(_options(kv_cache_gb=0.25), cpu=True)
    gpu = engine_arguments(_options(gpu_memory_utilization=0.5, tensor_parallel_size=2), cpu=False)
    assert cpu["kv_cache_memory_bytes"] == 256 * 1024**2
    assert (gpu["gpu_memory_utilization"], gpu["tensor_parallel_size"]) == (0.5, 2)
    assert not {"gpu_memory_utilization", "tensor_parallel_size"} & cpu.keys()
    assert "kv_cache_memory_bytes" not in gpu


def test_a_model_is_not_spread_over_several_cpus() -> None:
    with pytest.raises(ConfigurationError, match="tensor_parallel_size is for GPUs"):
        engine_arguments(_options(tensor_parallel_size=2), cpu=True)


def test_there_is_room_for_adapters_where_they_are_wanted() -> None:
    assert "enable_lora" not in engine_arguments(_options(), cpu=True)
    gpu = engine_arguments(_options(max_adapters=2, max_adapter_rank=17), cpu=False)
    assert (gpu["max_loras"], gpu["max_lora_rank"]) == (2, 32)
    # The last slot of a CPU's stays empty.
    assert engine_arguments(_options(max_adapters=2), cpu=True)["max_loras"] == 3
