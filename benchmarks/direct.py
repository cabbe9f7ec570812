"""The engine without Kafka: a bare process that drives it in the worker's own configuration.

``engine`` drives ``stream_workers.engine_vllm.VllmEngine`` as the worker does. ``asyncllm`` drives
vLLM's ``AsyncLLM`` with the same engine arguments and nothing of this project in between.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any

import click
import uvloop

from benchmarks.harness import isolate
from benchmarks.http_side import engine_dtype
from benchmarks.load import Job, Side, closed_loop
from benchmarks.rpc import keep_stdout, serve
from infra.contracts.events.generation import SamplingParameters
from infra.cores import divide
from stream_workers.vllm_options import CPU_BLOCK_TOKENS, VllmOptions, share_the_cpu

VERSION = "default@1"


class EngineSide:
    """Implements ``load.Side`` on the worker's engine."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        from stream_workers.engine_vllm import VllmEngine

        self._engine = VllmEngine.build(VllmOptions(version=VERSION, **options))
        self._count = 0

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each delta."""
        self._count += 1
        sampling = SamplingParameters(max_tokens=job.max_tokens, ignore_eos=True)
        outputs = self._engine.generate(f"r{self._count}", job.prompt, sampling, VERSION)
        async for output in outputs:
            yield len(output.token_ids)


class AsyncLLMSide:
    """Implements ``load.Side`` on vLLM alone."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        # The worker's own environment: set before vLLM is imported, and before it starts its child.
        import_module("stream_workers.engine_vllm")
        share_the_cpu()
        from vllm import AsyncEngineArgs, SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.async_llm import AsyncLLM

        self._params: Any = lambda count: SamplingParams(
            max_tokens=count,
            temperature=0.7,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA,
        )
        self._llm: Any = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=options["path"],
                dtype=engine_dtype(),
                max_num_seqs=options["max_num_seqs"],
                enforce_eager=True,
                block_size=CPU_BLOCK_TOKENS,
                distributed_executor_backend="uni",
                kv_cache_memory_bytes=int(options["kv_cache_gb"] * 1024**3),
                disable_log_stats=True,
                seed=0,
            )
        )
        children = self._llm.engine_core.resources.engine_manager.processes
        divide(engine=[child.pid for child in children], others=[os.getpid()])
        self._count = 0

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each delta."""
        self._count += 1
        params = self._params(job.max_tokens)
        async for output in self._llm.generate(job.prompt, params, f"r{self._count}"):
            yield len(output.outputs[0].token_ids)


async def _run(kind: str, options: Mapping[str, Any]) -> None:
    side: Side = EngineSide(options) if kind == "engine" else AsyncLLMSide(options)

    async def handle(command: Mapping[str, Any]) -> Any:
        return asdict(await closed_loop(side, **command))

    await serve(handle)


@click.command()
@click.argument("kind", type=click.Choice(["engine", "asyncllm"]))
@click.argument("options")
def main(kind: str, options: str) -> None:
    """Answer load commands until the input ends. OPTIONS: JSON of VllmOptions."""
    keep_stdout()
    isolate()
    # The worker's loop.
    uvloop.run(_run(kind, json.loads(options)))


if __name__ == "__main__":
    main()
