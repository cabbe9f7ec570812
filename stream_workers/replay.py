"""Puts past requests to a version, in an engine of its own. Knows neither topics nor pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast

from infra.contracts.errors import ConfigurationError, RequestRefused
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.registry.transitions import refusal
from stream_workers.engine import Engine, EngineGenerateError, EngineOutput
from stream_workers.plan import version_name
from stream_workers.replay_past import Answer, Case

CONCURRENCY = 16

Build = Callable[["Target"], Engine]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A version as an engine takes it. ``weights`` is the name of what is in ``path``.

    ``adapter`` is the folder of a LoRA adapter of those weights. ``refused``: why no worker would
    serve it.
    """

    name: str
    weights: str
    path: str
    adapter: str | None = None
    refused: str | None = None


def target_of(state: RegistryState, store: ArtifactStore, model: str, version: str) -> Target:
    """A version with its files checked. One that may not serve can still be tried here.

    Raises ConfigurationError for an unknown version or base; ArtifactRejected, ArtifactStoreFailed.
    """
    published = _published(state, model, version)
    if published.kind == "full":
        return Target(
            name=version_name(published),
            weights=version_name(published),
            path=store.resolve(published),
            refused=refusal(published),
        )
    if published.base is None:
        raise ConfigurationError(f"{version_name(published)} is an adapter that names no base")
    base = _published(state, model, published.base)
    if base.kind != "full":
        raise ConfigurationError(f"{version_name(base)}, a base, is itself no full version")
    return Target(
        name=version_name(published),
        weights=version_name(base),
        path=store.resolve(base),
        adapter=store.resolve(published),
        refused=refusal(published) or refusal(base),
    )


def _published(state: RegistryState, model: str, version: str) -> ModelVersionPublished:
    found = state.version(model, version)
    if found is None:
        known = ", ".join(one.version for one in state.versions(model)) or "none"
        raise ConfigurationError(f"there is no version {model}@{version}; versions: {known}")
    return found


async def answers_of(
    target: Target, cases: Sequence[Case], *, build: Build, say: Say, concurrency: int = CONCURRENCY
) -> list[Answer]:
    """A version's answers, in order; the engine is built for it and closed again.

    ``say`` is told of each tenth. Raises EngineDead, SwitchFailed.
    """
    say(f"loading {target.name}")
    engine = build(target)
    try:
        if target.adapter is not None:
            await engine.load_adapter(target.adapter, target.name)
        return await _all_answers(engine, target.name, cases, say, concurrency)
    finally:
        await engine.close()


async def _all_answers(
    engine: Engine, version: str, cases: Sequence[Case], say: Say, concurrency: int
) -> list[Answer]:
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(cases))

    async def work() -> None:
        for number, case in waiting:
            answers[number] = await _answer(engine, f"replay-{number}", case, version)
            done = len(answers)
            if done == len(cases) or done % max(1, len(cases) // 10) == 0:
                errors = sum(one.error is not None for one in answers.values())
                failed = f", {errors} failed" if errors else ""
                say(f"{version}: {done} of {len(cases)} answered{failed}")

    workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [answers[number] for number in range(len(cases))]


async def _answer(engine: Engine, request_id: str, case: Case, version: str) -> Answer:
    request = case.request
    text: list[str] = []
    versions: dict[str, None] = {}
    tokens = produced = 0
    first = last = None
    reason = None
    started = time.monotonic()
    try:
        stream = cast(
            AsyncGenerator[EngineOutput, None],
            engine.generate(
                request_id, request.messages or request.prompt, request.sampling, version
            ),
        )
        async with aclosing(stream):
            async for output in stream:
                last = time.monotonic()
                produced += len(output.token_ids)
                if first is None and produced:
                    first = last
                if output.index == 0:
                    text.append(output.text)
                    tokens += len(output.token_ids)
                    versions[output.version] = None
                    reason = output.finish_reason or reason
    except RequestRefused as error:
        return Answer(error=f"{error.code}: {error.message}")
    except EngineGenerateError as error:
        return Answer(error=f"engine_error: {error}")
    if reason is None:
        return Answer(error="engine_error: the engine ended a request without a reason")
    itl = None
    if first is not None and last is not None and produced > 1:
        itl = (last - first) * 1000 / (produced - 1)
    return Answer(
        text="".join(text),
        finish_reason=reason,
        tokens=tokens,
        ttft_ms=None if first is None else (first - started) * 1000,
        itl_ms=itl,
        versions=tuple(versions),
    )
