"""The generation engine as the request handler sees it. Knows nothing of Kafka, Faust or vLLM.

Adapters: ``engine_memory`` (public, deterministic) and ``engine_vllm``. Both pass one contract
suite. Versions here are full names, ``model@version``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from infra.contracts.errors import FatalError, RetryableError
from infra.contracts.events.generation import ChatMessage, SamplingParameters, TokenLogprob

SwitchPolicy = Literal["keep", "drain"]
Prompt = str | tuple[ChatMessage, ...]
"""Text to continue, or a conversation to answer through the model's chat template."""


class EngineGenerateError(RetryableError):
    """One generation failed; the engine still works, so the same request may be tried again."""


class EmittedMismatch(EngineGenerateError):
    """Emitted tokens that this engine cannot go on from; the answer must begin anew."""


class Displaced(EngineGenerateError):
    """The request's adapter was unloaded; another version can go on with the answer."""


class EngineDead(FatalError):
    """The engine is gone. The worker must stop without acknowledging its unfinished requests."""


class SwitchFailed(RetryableError):
    """New weights or an adapter could not be loaded; the engine serves what it served before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Emitted:
    """What another engine has already emitted of an answer: all its deltas so far, joined.

    ``text`` may lag behind ``token_ids``, as engines hold back what they cannot show yet.
    """

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """How busy the engine is: sequences, the used fraction of the KV cache, its size in tokens."""

    running: int
    waiting: int
    kv_cache_usage: float
    kv_tokens: int


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """New tokens of completion ``index`` since its last output; its last has a ``finish_reason``.

    ``version`` is the version that produced the tokens; ``prompt_tokens`` is a count, and so is
    ``cached_tokens``: those of them that were in the prefix cache.
    ``logprobs`` has one entry per token when they were asked for. A struct, as thousands are made
    per second: it costs 0.1 us, a frozen dataclass 1 us.
    """

    token_ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    version: str
    finish_reason: Literal["stop", "length"] | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0


class Engine(Protocol):
    """Generates text with one model whose weights can be switched while it runs.

    LoRA adapters of these weights can be loaded beside them, and generate side by side.
    """

    @property
    def dead(self) -> bool:
        """Whether nothing will ever run here again: ``generate`` would raise EngineDead."""
        ...

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        version: str,
        *,
        emitted: Emitted | None = None,
        urgent: bool = False,
    ) -> AsyncIterator[EngineOutput]:
        """Deltas of ``sampling.n`` completions, each ending with a ``finish_reason``.

        ``version`` chooses a loaded adapter; anything else means the weights. Each output says what
        made it. An ``urgent`` request comes before all that wait for their first token.

        The iterator ends after the last completion; closing it early frees the request. With
        ``emitted`` the answer goes on where another engine left it: the new deltas continue
        ``emitted.token_ids`` (which count towards ``max_tokens``) and ``emitted.text`` exactly,
        so the first may carry text without tokens. ``continuation.continuable`` tells which
        sampling allows it. Greedy tokens are those of an uninterrupted run, as far as the model's
        arithmetic is; sampled ones follow the same distribution, with a seed of their own.

        Raises:
            EngineGenerateError: this request failed.
            EmittedMismatch: ``emitted`` is not of this model, or goes on after the answer's end.
            EngineDead: nothing will ever run here again.
            RequestRefused: as ``check`` does, and ``invalid_sampling`` where ``emitted`` is given
                and the sampling is not continuable.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Free what the request holds. Harmless if it is unknown or done."""
        ...

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """Serve the weights in ``path`` as ``version``; returns the pause in milliseconds.

        No adapter may be loaded: it would go on with weights that it does not fit.

        Raises:
            SwitchFailed: the old version serves again.
            EngineDead: not even the old weights could be restored.
        """
        ...

    async def load_adapter(self, path: str, version: str) -> None:
        """Load the PEFT adapter in ``path``, to generate as ``version`` from now on.

        A name stands for one adapter for ever. Raises:
            SwitchFailed: it does not fit, or there is no room for one more; nothing changed.
            EngineDead: nothing will ever run here again.
        """
        ...

    async def unload_adapter(self, version: str, policy: SwitchPolicy) -> None:
        """Unload an adapter, which nothing may choose any more. Harmless if it is unknown.

        Requests that use it end with Displaced (``keep``: another version goes on with them), or
        are waited for (``drain``). Raises EngineDead.
        """
        ...

    @property
    def max_adapters(self) -> int:
        """How many can be loaded at a time; 0: none."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """The loaded ones, in the order in which they were loaded."""
        ...

    def load(self) -> EngineLoad:
        """As of the engine's last step. Costs nothing: call it for every admission."""
        ...

    def check(self, prompt: Prompt, sampling: SamplingParameters) -> int:
        """The prompt's token count.

        Raises:
            RequestRefused: ``empty_prompt``, ``prompt_too_long``, ``invalid_sampling``,
                ``no_chat_template`` or ``invalid_messages`` (the template refuses them).
        """
        ...

    async def close(self) -> None:
        """Free everything, child processes included. Safe to call twice."""
        ...
