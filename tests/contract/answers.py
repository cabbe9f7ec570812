"""Collecting what an engine answers, for the contract suite."""

from __future__ import annotations

import itertools

from infra.contracts.events.generation import SamplingParameters
from stream_workers.engine import Emitted, Engine, EngineOutput, Prompt

from .conftest import WORDS

GREEDY = SamplingParameters(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParameters(max_tokens=120, temperature=0.0, ignore_eos=True)
_ids = itertools.count()


def new_id() -> str:
    return f"contract-{next(_ids)}"


async def collect(
    engine: Engine,
    sampling: SamplingParameters,
    prompt: Prompt = WORDS,
    version: str = "default@1",
    emitted: Emitted | None = None,
) -> list[EngineOutput]:
    """All outputs of one request."""
    stream = engine.generate(new_id(), prompt, sampling, version, emitted=emitted)
    return [output async for output in stream]


def tokens(outputs: list[EngineOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def text(outputs: list[EngineOutput]) -> str:
    return "".join(output.text for output in outputs)


def completion(outputs: list[EngineOutput], index: int) -> list[EngineOutput]:
    return [output for output in outputs if output.index == index]
