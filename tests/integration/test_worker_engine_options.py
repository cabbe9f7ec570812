"""What of the settings the real engine refuses before it loads anything."""

from __future__ import annotations

import pytest

from infra.contracts.errors import ConfigurationError

# vLLM's own imports warn of deprecations.
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def test_a_model_is_not_spread_over_gpus_that_are_not_there() -> None:
    from vllm.platforms import current_platform

    from stream_workers.engine_vllm import VllmEngine
    from stream_workers.vllm_options import VllmOptions

    if not current_platform.is_cpu():
        pytest.skip("this vLLM has GPUs")
    options = VllmOptions(path="nowhere", version="1", tensor_parallel_size=2)
    with pytest.raises(ConfigurationError, match="tensor_parallel_size is for GPUs"):
        VllmEngine.build(options)
