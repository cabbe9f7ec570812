"""A short generation that shows whether freshly loaded weights work at all."""

from __future__ import annotations

import asyncio
import math
import uuid

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import SamplingParameters
from stream_workers.engine import Engine, EngineGenerateError, SwitchFailed

PROMPT = "The"
TOKENS = 4
TIMEOUT_S = 30.0
"""Where every place in the engine is taken, until one of the requests there has ended."""


async def smoke(engine: Engine, version: str, timeout_s: float = TIMEOUT_S) -> None:
    """Generate a few greedy tokens as ``version``.

    Raises:
        SwitchFailed: it generates nothing, too slowly, or with probabilities that are no numbers.
        EngineDead: nothing will ever run here again.
    """
    sampling = SamplingParameters(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
    count, wrong = 0, False
    request_id = f"smoke-{uuid.uuid4()}"
    try:
        async with asyncio.timeout(timeout_s):
            async for output in engine.generate(request_id, PROMPT, sampling, version, urgent=True):
                count += len(output.token_ids)
                wrong = wrong or not all(math.isfinite(one.logprob) for one in output.logprobs)
                if output.version != version:
                    raise SwitchFailed(f"{version} was asked for and {output.version} answered")
    except TimeoutError:
        raise SwitchFailed(f"{version} gave no {TOKENS} tokens within {timeout_s:.0f} s") from None
    except (EngineGenerateError, RequestRefused) as error:
        raise SwitchFailed(f"{version} cannot generate: {error}") from error
    if wrong:
        raise SwitchFailed(f"{version} computes probabilities that are no numbers")
    if count != TOKENS:
        raise SwitchFailed(f"{version} gave {count} of {TOKENS} tokens")
