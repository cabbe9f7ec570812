"""vLLM in this process (``AsyncLLM``; its engine core is a child process). Only file importing it.

Building takes seconds during which the event loop is blocked: build before joining a consumer
group, in the loop that will run the engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from infra.contracts.errors import RequestRefused
from infra.contracts.events import SamplingParameters
from stream_workers.engine import (
    EngineDead,
    EngineGenerateError,
    EngineOutput,
    SwitchFailed,
    SwitchPolicy,
)
from stream_workers.sampling import check_sampling


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """What to build. ``kv_cache_gb`` counts on a CPU, ``gpu_memory_utilization`` on a GPU."""

    path: str
    version: str
    max_num_seqs: int = 64
    max_model_len: int | None = None
    kv_cache_gb: float = 0.5
    gpu_memory_utilization: float = 0.9
    dtype: str = "auto"
    seed: int = 0


def _prepare_environment() -> None:
    """vLLM reads these once, when it is imported or starts its child."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


class VllmEngine:
    """One model, its weights switched in place. Use :meth:`build`."""

    def __init__(self, llm: Any, options: VllmOptions, max_model_len: int) -> None:
        self._llm = llm
        self._path = options.path
        self.version = options.version
        self._max_model_len = max_model_len
        self._tokenizer = llm.get_tokenizer()
        self._closed = False

    @classmethod
    def build(cls, options: VllmOptions) -> VllmEngine:
        """Load the model. Call inside the loop that will use it; blocks it for seconds."""
        _prepare_environment()
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        on_cpu = current_platform.is_cpu()
        arguments: dict[str, Any] = {
            "model": options.path,
            "dtype": options.dtype,
            "max_num_seqs": options.max_num_seqs,
            "max_model_len": options.max_model_len,
            "enforce_eager": on_cpu,
            "disable_log_stats": True,
            "seed": options.seed,
        }
        if on_cpu:
            arguments["kv_cache_memory_bytes"] = int(options.kv_cache_gb * 1024**3)
        else:
            arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        return cls(llm, options, int(llm.model_config.max_model_len))

    async def generate(
        self, request_id: str, prompt: str, sampling: SamplingParameters, version: str
    ) -> AsyncIterator[EngineOutput]:
        """See the protocol. ``version`` salts the prefix cache: KV of older weights is missed."""
        from vllm.v1.engine.exceptions import EngineDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError as VllmGenerateError

        token_ids = self._tokenizer.encode(prompt)
        try:
            async for output in self._llm.generate(
                {"prompt_token_ids": token_ids, "cache_salt": version},
                _sampling_params(sampling),
                request_id,
            ):
                completion = output.outputs[0]
                reason = completion.finish_reason
                if reason == "error":
                    raise EngineGenerateError(f"vLLM gave up on {request_id}")
                yield EngineOutput(
                    token_ids=tuple(completion.token_ids),
                    text=completion.text,
                    prompt_tokens=len(token_ids),
                    version=self.version,
                    finish_reason=reason if reason in ("stop", "length") else None,
                )
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        except (VllmGenerateError, ValueError) as error:
            raise EngineGenerateError(str(error)) from error

    async def abort(self, request_id: str) -> None:
        """See the protocol."""
        await self._llm.abort(request_id)

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """Pause, reload in place, drop the prefix cache, resume. See the protocol."""
        from vllm.v1.engine.exceptions import EngineDeadError

        started = time.perf_counter()
        try:
            await self._llm.pause_generation(mode="keep" if policy == "keep" else "wait")
            try:
                await self._reload(path, version)
            finally:
                await self._llm.resume_generation()
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        return (time.perf_counter() - started) * 1000

    async def _reload(self, path: str, version: str) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._load_weights(path)
        except EngineDeadError:
            raise
        except Exception as error:
            # collective_rpc hands on whatever the child raised, as a bare Exception.
            try:
                await self._load_weights(self._path)
            except Exception as second:  # noqa: BLE001 - as above
                raise EngineDead(f"neither new nor old weights load: {second}") from error
            raise SwitchFailed(f"{version}: {error}") from error
        await self._llm.update_weight_version(version)
        self._path, self.version = path, version

    async def _load_weights(self, path: str) -> None:
        await self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        await self._llm.reset_prefix_cache()

    def check(self, prompt: str, sampling: SamplingParameters) -> int:
        """See the protocol."""
        check_sampling(sampling)
        if not prompt:
            raise RequestRefused("empty_prompt", "the prompt is empty")
        try:
            _sampling_params(sampling)
        except ValueError as error:
            raise RequestRefused("invalid_sampling", str(error)) from error
        count = len(self._tokenizer.encode(prompt))
        if count == 0:
            raise RequestRefused("empty_prompt", "the prompt has no tokens")
        if count >= self._max_model_len:
            raise RequestRefused(
                "prompt_too_long",
                f"the prompt has {count} tokens; the model's context is {self._max_model_len}, "
                "and one place is needed for the answer",
            )
        return count

    async def close(self) -> None:
        """End the child process too."""
        if not self._closed:
            self._closed = True
            self._llm.shutdown()


def _sampling_params(sampling: SamplingParameters) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        output_kind=RequestOutputKind.DELTA,
    )
