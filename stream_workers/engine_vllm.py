"""vLLM in this process (``AsyncLLM``; its engine core is a child process). Only file importing it.

Importing and building take seconds during which the event loop is blocked: do both before joining
a consumer group, in the loop that will run the engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import lru_cache
from tempfile import TemporaryDirectory
from typing import Any, Literal

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import SamplingParameters, StructuredOutput
from infra.cores import divide
from observability.instruments import PREFIX_CACHE_HITS, PREFIX_CACHE_QUERIES
from observability.propagation import trace_headers
from observability.tracing import is_recording
from stream_workers.adapters import Adapters
from stream_workers.beam_search import Beam, beam_search, together
from stream_workers.continuation import AnswerText, continuable, continued_seed, resume
from stream_workers.engine import (
    Emitted,
    EmittedMismatch,
    EngineDead,
    EngineGenerateError,
    EngineLoad,
    EngineOutput,
    Prompt,
    SwitchFailed,
    SwitchPolicy,
)
from stream_workers.logprobs import token_logprobs
from stream_workers.prompt_tokens import PromptTokens
from stream_workers.sampling import check_sampling
from stream_workers.vllm_options import VllmOptions, engine_arguments, share_the_cpu
from stream_workers.weights import Weights

# vLLM reads these once, when it is imported or starts its child.
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# A regex is compiled in the event loop, which stands still meanwhile; vLLM's default is 5 s.
os.environ.setdefault("VLLM_REGEX_COMPILATION_TIMEOUT_S", "1")

import torch
from vllm import AsyncEngineArgs, SamplingParams
from vllm.exceptions import VLLMError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.detokenizer import IncrementalDetokenizer
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import PrometheusStatLogger

Deltas = AsyncGenerator[EngineOutput, None]
_SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop_token_ids",
    "ignore_eos",
    "logprobs",
)


class _LoadRecorder(PrometheusStatLogger):  # type: ignore[misc]
    """Keeps the scheduler's newest figures, and counts the prefix cache's.

    Is one of Prometheus so that vLLM adds no other.
    """

    def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
        self.running = 0
        self.kv_cache_usage = 0.0

    def record(self, scheduler_stats: Any, *_arguments: Any, **_named: Any) -> None:
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
            looked_up = scheduler_stats.prefix_cache_stats
            # Steps that take in no request, nearly all of them, cost nothing.
            if looked_up.queries:
                PREFIX_CACHE_QUERIES.add(looked_up.queries)
                PREFIX_CACHE_HITS.add(looked_up.hits)

    def log_engine_initialized(self) -> None:
        pass


class _LeanAsyncLLM(AsyncLLM):  # type: ignore[misc]
    """Has the scheduler report every step, but keeps no account of every token.

    vLLM switches both with ``log_stats``; the account costs this process 3 us a token, a quarter.
    It is kept where spans are recorded, because vLLM's spans are made from it.
    """

    def _run_output_handler(self) -> None:
        self.log_stats = self.output_processor.log_stats = is_recording()
        if is_recording():
            # vLLM's spans go where this process's go: with an endpoint of vLLM's own it would
            # start exporters besides ours, here and in its children.
            self.output_processor.tracing_enabled = True
            self.observability_config.otlp_traces_endpoint = "this process's exporters"
        super()._run_output_handler()


class VllmEngine:
    """One model, its weights switched in place. Use :meth:`build`."""

    def __init__(self, llm: Any, options: VllmOptions, sockets: TemporaryDirectory[str]) -> None:
        self._llm = llm
        self._sockets = sockets
        self._weights = Weights(llm, self._call, options.path, options.version)
        self._adapters: Adapters[LoRARequest] = Adapters()
        self.max_adapters = options.max_adapters
        self._adapter_ids = itertools.count(1)
        self._max_model_len = int(llm.model_config.max_model_len)
        cache = llm.vllm_config.cache_config
        self._kv_tokens = cache.kv_cache_size_tokens or cache.num_gpu_blocks * cache.block_size
        (self._recorder,) = llm.logger_manager.stat_loggers
        self._tokenizer = llm.get_tokenizer()
        self._tokens = PromptTokens(self._tokenizer, context=self._max_model_len)
        self._verify = lru_cache(maxsize=256)(self._verify_sampling)
        self._closed = False

    @classmethod
    def build(cls, options: VllmOptions) -> VllmEngine:
        """Load the model. Call inside the loop that will use it; blocks it for seconds.

        Raises ConfigurationError: the model is to be spread over several GPUs, and there is none.
        """
        cpu = bool(current_platform.is_cpu())
        arguments = engine_arguments(options, cpu=cpu)
        if cpu:
            share_the_cpu()
            if options.dtype == "auto" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
                # Emulated, bfloat16 is a hundred times slower; float16 is no better.
                arguments["dtype"] = "float32"
        # vLLM leaves its sockets where they are, by default in the machine's temporary folder.
        sockets = TemporaryDirectory(prefix="feedloom-vllm-")
        os.environ["VLLM_RPC_BASE_PATH"] = sockets.name
        llm = _LeanAsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments), stat_loggers=[_LoadRecorder]
        )
        if cpu and options.pin_cores:
            children = llm.engine_core.resources.engine_manager.processes
            divide(engine=[child.pid for child in children], others=[os.getpid()])
        return cls(llm, options, sockets)

    @property
    def version(self) -> str:
        """The version whose weights are loaded."""
        return self._weights.version

    @property
    def dead(self) -> bool:
        """See the protocol. vLLM watches its child; it takes milliseconds to notice."""
        return bool(self._llm.errored)

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        version: str,
        *,
        emitted: Emitted | None = None,
        urgent: bool = False,
    ) -> Deltas:
        """See the protocol. A salt keeps KV of older weights and of others' adapters apart."""
        if emitted is not None:
            return self._continued(request_id, prompt, sampling, version, emitted)
        if sampling.beam_width is not None:
            return self._beams(request_id, prompt, sampling, version)
        return self._sampled(request_id, prompt, sampling, version, urgent)

    async def _sampled(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        version: str,
        urgent: bool,
    ) -> Deltas:
        token_ids, top = self._checked(prompt, sampling), sampling.logprobs
        count, unfinished = len(token_ids), sampling.n
        params = self._sampling_params(sampling, count)
        async with self._outputs(request_id, token_ids, params, version, urgent) as outputs:
            async for output in outputs:
                for one in output.outputs:
                    reason = one.finish_reason
                    finish = None if reason is None else _finish(reason, request_id)
                    unfinished -= finish is not None
                    yield EngineOutput(
                        token_ids=tuple(one.token_ids),
                        text=one.text,
                        prompt_tokens=count,
                        version=self._made_by(version),
                        finish_reason=finish,
                        index=one.index,
                        logprobs=() if top is None else token_logprobs(one.logprobs, top),
                        cached_tokens=output.num_cached_tokens or 0,
                    )
        if unfinished:
            self._adapters.check(version)

    async def _continued(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        version: str,
        emitted: Emitted,
    ) -> Deltas:
        """To vLLM the emitted tokens are prompt; text and stop strings are seen to here."""
        if not continuable(sampling):
            raise RequestRefused("invalid_sampling", "this sampling cannot be continued")
        token_ids, done = self._checked(prompt, sampling), emitted.token_ids
        count, top = len(token_ids), sampling.logprobs
        limit = min(sampling.max_tokens, self._max_model_len - count)
        try:
            self._llm.renderer.validate_token_ids(done)
        except VLLMError as error:
            raise EmittedMismatch(str(error)) from error
        decode = self._decoder(token_ids, sampling)
        resumed = resume(emitted, sampling, decode, ending=self._ending(sampling), limit=limit)
        answer, finish = resumed.answer, resumed.finish_reason
        if resumed.owed or finish is not None:
            yield EngineOutput(
                token_ids=(),
                text=resumed.owed,
                prompt_tokens=count,
                version=self._made_by(version),
                finish_reason=finish,
            )
        if finish is not None:
            return
        params = self._sampling_params(
            sampling,
            count,
            max_tokens=limit - len(done),
            min_tokens=max(0, min(sampling.min_tokens, limit) - len(done)),
            seed=continued_seed(sampling.seed, len(done)),
            stop=[],
            detokenize=top is not None,
        )
        async with self._outputs(request_id, [*token_ids, *done], params, version) as outputs:
            async for output in outputs:
                (one,) = output.outputs
                finish = _finish(one.finish_reason, request_id)
                kept, stopped = answer.extend(one.token_ids, ends=finish == "stop")
                finish = "stop" if stopped else finish
                yield EngineOutput(
                    token_ids=tuple(one.token_ids[:kept]),
                    text=answer.take(finished=finish is not None),
                    prompt_tokens=count,
                    version=self._made_by(version),
                    finish_reason=finish,
                    logprobs=() if top is None else token_logprobs(one.logprobs[:kept], top),
                    # Of the emitted tokens, prompt to vLLM, some may be cached as well.
                    cached_tokens=min(count, output.num_cached_tokens or 0),
                )
                if finish is not None:
                    return
        self._adapters.check(version)

    async def _beams(
        self, request_id: str, prompt: Prompt, sampling: SamplingParameters, version: str
    ) -> Deltas:
        """Each step is one request per beam; the prefix cache spares them the tokens before."""
        token_ids, width = self._checked(prompt, sampling), sampling.beam_width or 1
        count, ending = len(token_ids), self._ending(sampling)
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=2 * width,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

        async def successors(beam: Beam) -> Mapping[int, float]:
            before = [*token_ids, *beam.token_ids]
            async with self._outputs(request_id, before, params, version) as outputs:
                async for output in outputs:
                    (one,) = output.outputs
                    if not one.logprobs:
                        break
                    return {token: entry.logprob for token, entry in one.logprobs[0].items()}
            self._adapters.check(version)
            raise EngineGenerateError(f"vLLM gave up on a beam of {request_id}")

        # Held between the steps as well.
        with self._adapters.using(version, request_id):
            best = await beam_search(
                lambda beams: together(map(successors, beams)),
                width=width,
                max_tokens=min(sampling.max_tokens, self._max_model_len - count),
                ending=ending,
            )
        for index, beam in enumerate(best[: sampling.n]):
            answer = AnswerText(sampling, self._decoder(token_ids, sampling))
            answer.extend(beam.token_ids, ends=beam.finished)
            yield EngineOutput(
                token_ids=beam.token_ids,
                text=answer.take(finished=True),
                prompt_tokens=count,
                version=self._made_by(version),
                finish_reason="stop" if beam.finished else "length",
                index=index,
            )

    @asynccontextmanager
    async def _outputs(
        self,
        request_id: str,
        token_ids: list[int],
        params: Any,
        version: str,
        urgent: bool = False,
    ) -> AsyncIterator[AsyncGenerator[Any, None]]:
        """vLLM's outputs, with its errors as ours. Leaving early frees the request."""
        # A tokens input with its type is taken as it is; one without goes through a thread.
        try:
            with self._adapters.using(version, request_id) as adapter:
                salt = version if adapter is not None else self._weights.salt
                tokens = tokens_input(token_ids, cache_salt=salt)
                made = self._llm.generate(
                    tokens,
                    params,
                    request_id,
                    lora_request=adapter,
                    priority=-int(urgent),
                    trace_headers=trace_headers(),
                )
                async with aclosing(made) as outputs:
                    yield outputs
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        except VLLMError as error:
            raise EngineGenerateError(str(error) or repr(error.__cause__)) from error

    def _made_by(self, version: str) -> str:
        """Which version's weights answer a request for ``version``, as things stand."""
        return version if version in self._adapters else self._weights.version

    async def abort(self, request_id: str) -> None:
        """See the protocol."""
        with suppress(EngineDeadError):
            await self._llm.abort(request_id)

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """See the protocol."""
        return await self._weights.switch(path, version, policy)

    async def load_adapter(self, path: str, version: str) -> None:
        """See the protocol. vLLM checks rank and modules again."""
        if version in self._adapters:
            return
        if len(self._adapters.versions()) >= self.max_adapters:
            raise SwitchFailed(
                f"no room for another adapter: {self.max_adapters} at most "
                "(FEEDLOOM_WORKER__MAX_ADAPTERS)"
            )
        adapter = LoRARequest(version, next(self._adapter_ids), path)
        try:
            await self._call(self._llm.add_lora(adapter))
        except EngineDead:
            raise
        except Exception as error:
            # The child's exception, as a bare one; what it has taken in already goes.
            await self._call(self._llm.remove_lora(adapter.lora_int_id))
            raise SwitchFailed(f"{version}: {error}") from error
        self._adapters.add(version, adapter)

    async def unload_adapter(self, version: str, policy: SwitchPolicy) -> None:
        """See the protocol."""
        if policy == "keep":
            for request_id in self._adapters.displace(version):
                await self.abort(request_id)
        adapter = await self._adapters.remove(version)
        if adapter is not None:
            await self._call(self._llm.remove_lora(adapter.lora_int_id))

    @property
    def adapters(self) -> tuple[str, ...]:
        """See the protocol."""
        return self._adapters.versions()

    async def _call(self, work: Awaitable[Any]) -> None:
        """Await ``work``. vLLM leaves calls unanswered that are under way when its child dies."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait(
                {task, self._llm.output_handler}, return_when=asyncio.FIRST_COMPLETED
            )
            if not task.done():
                raise EngineDead("the engine core died during a call")
            task.result()
        except EngineDeadError as error:
            raise EngineDead(str(error)) from error
        finally:
            task.cancel()

    def load(self) -> EngineLoad:
        """See the protocol. What is unfinished is known here; the rest is a step old."""
        unfinished = int(self._llm.get_num_unfinished_requests())
        running = min(self._recorder.running, unfinished)
        return EngineLoad(
            running=running,
            waiting=unfinished - running,
            kv_cache_usage=self._recorder.kv_cache_usage if unfinished else 0.0,
            kv_tokens=self._kv_tokens,
        )

    def check(self, prompt: Prompt, sampling: SamplingParameters) -> int:
        """See the protocol. Verdicts and tokens are remembered for ``generate``."""
        return len(self._checked(prompt, sampling))

    def _checked(self, prompt: Prompt, sampling: SamplingParameters) -> list[int]:
        self._verify(sampling)
        return self._tokens.of(prompt)

    def _verify_sampling(self, sampling: SamplingParameters) -> None:
        check_sampling(sampling)
        config = self._llm.vllm_config
        try:
            self._sampling_params(sampling, 0).verify(
                config.model_config,
                config.speculative_config,
                config.structured_outputs_config,
                self._tokenizer,
            )
        except (VLLMError, ValueError) as error:
            raise RequestRefused("invalid_sampling", str(error)) from error

    def _sampling_params(
        self, sampling: SamplingParameters, prompt_tokens: int, **changes: Any
    ) -> Any:
        """vLLM's form of ``sampling``, for one request only."""
        max_tokens = min(sampling.max_tokens, self._max_model_len - prompt_tokens)
        arguments = {name: getattr(sampling, name) for name in _SAME_NAMES}
        arguments |= {
            # Beams are requests of their own.
            "n": sampling.n if sampling.beam_width is None else 1,
            "max_tokens": max_tokens,
            "min_tokens": min(sampling.min_tokens, max_tokens),
            "stop": list(sampling.stop),
            "include_stop_str_in_output": sampling.include_stop,
            "structured_outputs": _structured_params(sampling.structured),
            "output_kind": RequestOutputKind.DELTA,
            # Not shared with another request, so vLLM need not copy it deeply.
            "skip_clone": True,
        }
        return SamplingParams(**(arguments | changes))

    def _ending(self, sampling: SamplingParameters) -> frozenset[int]:
        """The tokens that end an answer: the request's, the tokenizer's and the model's own."""
        params = self._sampling_params(sampling, 0)
        params.update_from_generation_config(
            self._llm.input_processor.generation_config_fields, self._tokenizer.eos_token_id
        )
        own = () if params.eos_token_id is None else (params.eos_token_id,)
        return frozenset((*own, *params.stop_token_ids))

    def _decoder(self, token_ids: list[int], sampling: SamplingParameters) -> Callable[[int], str]:
        """vLLM's detokenizer after a prompt: the text that each next token adds."""
        detokenizer = IncrementalDetokenizer.from_new_request(
            self._tokenizer,
            EngineCoreRequest(
                request_id="",
                prompt_token_ids=token_ids,
                mm_features=None,
                sampling_params=self._sampling_params(sampling, len(token_ids)),
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            ),
        )

        def decode(token_id: int) -> str:
            detokenizer.token_ids.append(token_id)
            return str(detokenizer.decode_next(token_id))

        return decode

    async def close(self) -> None:
        """End the child process too."""
        if not self._closed:
            self._closed = True
            self._llm.shutdown()
            # vLLM leaves its ZeroMQ context to the collector, which warns of it when it gets there.
            self._llm.engine_core.resources.ctx.destroy(linger=0)
            self._sockets.cleanup()


def _structured_params(structured: StructuredOutput | None) -> Any:
    if structured is None:
        return None
    return StructuredOutputsParams(
        json=structured.json_schema,
        regex=structured.regex,
        choice=None if structured.choice is None else list(structured.choice),
    )


def _finish(reason: str | None, request_id: str) -> Literal["stop", "length"] | None:
    if reason == "stop" or reason == "length":
        return "stop" if reason == "stop" else "length"
    if reason is None or reason == "abort":
        return None
    raise EngineGenerateError(f"vLLM gave up on {request_id}: {reason}")
