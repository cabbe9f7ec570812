"""A candidate answers copies of requests; the comparison is published and nobody is shown it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from opentelemetry import trace

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import (
    FinishReason,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    ShadowCompared,
    Timings,
)
from observability.instruments import SHADOWED
from observability.messaging import REQUEST_ID
from observability.tracing import span
from stream_workers.engine import Displaced, Engine, EngineDead, EngineGenerateError
from stream_workers.progress import Progress

_TRACER = trace.get_tracer("feedloom.stream_workers")
LIMIT = 4
"""Copies at a time: they take from the same engine as requests do, and may be left out."""


class Shadow:
    """Starts once the real answer is complete. ``publish`` must not wait.

    A copy is answered once, as well as it goes: when too many are under way, or the worker ends,
    it is left out, and only counted.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        publish: Callable[[ShadowCompared], None],
        worker_id: str,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
        limit: int = LIMIT,
    ) -> None:
        self._engine = engine
        self._publish = publish
        self._worker_id = worker_id
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._limit = limit
        self._running: set[asyncio.Task[None]] = set()

    def offer(self, request: GenerationRequest, result: GenerationResult, done: Progress) -> None:
        """Have the candidate of ``done.route`` answer a copy, if there is one and room for it."""
        if done.route is None or done.route.shadow is None:
            return
        if result.finish_reason not in ("stop", "length") or request.sampling.beam_width:
            return
        if len(self._running) >= self._limit:
            SHADOWED.add(1, {"feedloom.outcome": "left out"})
            return
        tokens = tuple(done.answers[min(done.answers)].token_ids)
        work = self._compare(request, result, tokens, done.route.shadow, done.route.experiment)
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def settled(self) -> None:
        """Wait for the copies under way."""
        await asyncio.gather(*self._running)

    async def close(self) -> None:
        """Leave out what is under way."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _compare(
        self,
        request: GenerationRequest,
        result: GenerationResult,
        tokens: tuple[int, ...],
        candidate: str,
        experiment: str,
    ) -> None:
        copied = _Copied()
        received = self._monotonic_s()
        with span(
            _TRACER,
            f"shadow {request.model}",
            attributes={
                REQUEST_ID: request.request_id,
                "feedloom.model": request.model,
                "feedloom.version": candidate,
                "feedloom.experiment": experiment,
            },
        ):
            try:
                await self._answer(request, candidate, copied)
            except (EngineDead, Displaced):
                SHADOWED.add(1, {"feedloom.outcome": "left out"})
                return
            except RequestRefused as error:
                copied.fail(error.code, str(error))
            except EngineGenerateError as error:
                copied.fail("engine_error", str(error))
        SHADOWED.add(1, {"feedloom.outcome": "failed" if copied.error else "answered"})
        self._publish(
            ShadowCompared(
                request_id=request.request_id,
                submit_id=request.submit_id,
                model=request.model,
                experiment=experiment,
                stable=_version(result.model_versions[-1]),
                candidate=_version(candidate),
                prompt=request.prompt,
                messages=request.messages,
                stable_text=result.text,
                candidate_text="".join(copied.text),
                stable_tokens=len(tokens),
                candidate_tokens=len(copied.token_ids),
                common_tokens=_alike(tokens, copied.token_ids),
                stable_finish=result.finish_reason,
                candidate_finish=copied.finish,
                compared_at_ms=self._now_ms(),
                stable_timings=result.timings,
                candidate_timings=copied.timings(received),
                worker_id=self._worker_id,
                tenant=request.tenant,
                error=copied.error,
            )
        )

    async def _answer(self, request: GenerationRequest, candidate: str, copied: _Copied) -> None:
        engine_id = f"{request.request_id}/{request.submit_id}/shadow"
        prompt = request.messages or request.prompt
        async for output in self._engine.generate(engine_id, prompt, request.sampling, candidate):
            if output.index != 0:
                continue
            copied.text.append(output.text)
            copied.token_ids += output.token_ids
            copied.finish = output.finish_reason or copied.finish
            if output.token_ids:
                copied.last_s = self._monotonic_s()
                copied.first_s = copied.first_s or copied.last_s


class _Copied:
    """The candidate's answer as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.finish: FinishReason = "error"
        self.error: GenerationError | None = None
        self.first_s: float | None = None
        self.last_s: float | None = None

    def fail(self, code: str, message: str) -> None:
        self.finish, self.error = "error", GenerationError(code=code, message=message)

    def timings(self, received_s: float) -> Timings:
        if self.first_s is None or self.last_s is None:
            return Timings()
        gaps = len(self.token_ids) - 1
        return Timings(
            ttft_ms=(self.first_s - received_s) * 1000,
            itl_ms=(self.last_s - self.first_s) * 1000 / gaps if gaps > 0 else None,
            total_ms=(self.last_s - received_s) * 1000,
        )


def _alike(one: tuple[int, ...], other: list[int]) -> int:
    """How many tokens both begin with."""
    for count, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return count
    return min(len(one), len(other))


def _version(name: str) -> str:
    return name.rpartition("@")[2]
