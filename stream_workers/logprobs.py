"""Log-probabilities as vLLM gives them, into the contract's form. Knows only their shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from infra.contracts.events.generation import TokenLogprob, TopLogprob

IMPOSSIBLE = -9999.0
"""Stands for minus infinity, which JSON lacks; OpenAI's API has it so."""


class Entry(Protocol):
    """As ``vllm.logprobs.Logprob``."""

    logprob: float
    decoded_token: str | None


def token_logprobs(positions: Sequence[Mapping[int, Entry]], top: int) -> tuple[TokenLogprob, ...]:
    """One for each position, whose first entry is the sampled token, followed by the likeliest."""
    return tuple(_one(position, top) for position in positions)


def _one(position: Mapping[int, Entry], top: int) -> TokenLogprob:
    sampled = next(iter(position))
    entry = position[sampled]
    # The sampled one may be any of the likeliest, and is listed with them then.
    likeliest = sorted(position.items(), key=lambda item: -item[1].logprob)[:top]
    return TokenLogprob(
        token_id=sampled,
        token=entry.decoded_token or "",
        logprob=max(entry.logprob, IMPOSSIBLE),
        top=tuple(
            TopLogprob(
                token_id=token_id,
                token=other.decoded_token or "",
                logprob=max(other.logprob, IMPOSSIBLE),
            )
            for token_id, other in likeliest
        ),
    )
