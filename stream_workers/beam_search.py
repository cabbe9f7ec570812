"""Beam search over any source of next-token log-probabilities. Knows no engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Beam:
    """A hypothesis: its tokens after the prompt, and the sum of their log-probabilities.

    ``finished`` beams end with an ending token.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    finished: bool = False

    @property
    def score(self) -> float:
        """The mean log-probability per token, as in Hugging Face with ``length_penalty=1``."""
        return self.logprob / max(1, len(self.token_ids))


async def beam_search(
    expand: Callable[[Sequence[Beam]], Awaitable[Sequence[Mapping[int, float]]]],
    *,
    width: int,
    max_tokens: int,
    ending: Container[int],
) -> list[Beam]:
    """The ``width`` best beams of at most ``max_tokens`` tokens, best first.

    ``expand`` gives the likeliest next tokens of each beam with their log-probabilities: twice
    ``width`` each, so that enough remain where some end the answer.
    """
    running, finished = [Beam()], list[Beam]()
    for _ in range(max_tokens):
        candidates = [
            Beam(
                token_ids=(*beam.token_ids, token),
                logprob=beam.logprob + logprob,
                finished=token in ending,
            )
            for beam, successors in zip(running, await expand(running), strict=True)
            for token, logprob in successors.items()
        ]
        finished += (beam for beam in candidates if beam.finished)
        finished = nlargest(width, finished, key=lambda beam: beam.score)
        going_on = (beam for beam in candidates if not beam.finished)
        running = nlargest(width, going_on, key=lambda beam: beam.logprob)
        if not running:
            break
        # What follows cannot raise a sum, so no running beam can end above this mean.
        if len(finished) == width and finished[-1].score >= running[0].logprob / max_tokens:
            return finished
    return nlargest(width, finished + running, key=lambda beam: beam.score)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, or the first error; then nothing is left running."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
