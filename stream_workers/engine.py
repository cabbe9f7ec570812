"""The generation engine as the request handler sees it. Knows nothing of Kafka, Faust or vLLM.

Adapters: ``engine_memory`` (public, deterministic) and ``engine_vllm``. Both pass one contract
suite. Versions here are full names, ``model@version``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from infra.contracts.errors import FatalError, RetryableError
from infra.contracts.events import SamplingParameters

SwitchPolicy = Literal["keep", "drain"]


class EngineGenerateError(RetryableError):
    """One generation failed; the engine still works, so the same request may be tried again."""


class EngineDead(FatalError):
    """The engine is gone. The worker must stop without acknowledging its unfinished requests."""


class SwitchFailed(RetryableError):
    """New weights could not be loaded; the engine serves the old version again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOutput:
    """New tokens since the last output. ``finish_reason`` is set on the last one only.

    ``version`` is the version that produced the tokens; ``prompt_tokens`` is a count.
    """

    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    version: str
    finish_reason: Literal["stop", "length"] | None = None


class Engine(Protocol):
    """Generates text with one model whose weights can be switched while it runs."""

    def generate(
        self, request_id: str, prompt: str, sampling: SamplingParameters, version: str
    ) -> AsyncIterator[EngineOutput]:
        """Deltas, ending with a ``finish_reason``. Closing the iterator frees the request.

        Raises:
            EngineGenerateError: this request failed.
            EngineDead: nothing will ever run here again.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Free what the request holds. Harmless if it is unknown or done."""
        ...

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """Serve the weights in ``path`` as ``version``; returns the pause in milliseconds.

        Raises:
            SwitchFailed: the old version serves again.
            EngineDead: not even the old weights could be restored.
        """
        ...

    def check(self, prompt: str, sampling: SamplingParameters) -> int:
        """The prompt's token count.

        Raises:
            RequestRefused: ``empty_prompt``, ``prompt_too_long`` or ``invalid_sampling``.
        """
        ...

    async def close(self) -> None:
        """Free everything, child processes included. Safe to call twice."""
        ...
