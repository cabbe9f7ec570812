"""A deterministic engine without a model: tokens are the words of a seeded shuffle of the prompt.

For tests and for running the platform where vLLM is not installed. Failures can be scripted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from zlib import crc32

from infra.contracts.errors import RequestRefused
from infra.contracts.events import SamplingParameters
from stream_workers.engine import (
    EngineDead,
    EngineGenerateError,
    EngineOutput,
    SwitchFailed,
    SwitchPolicy,
)
from stream_workers.sampling import check_sampling


class MemoryEngine:
    """``token_interval_s`` paces tokens. ``fail_next`` generations fail after one token."""

    def __init__(
        self,
        *,
        version: str,
        max_model_len: int = 2048,
        token_interval_s: float = 0.0,
        fail_next: int = 0,
    ) -> None:
        self.version = version
        self.dead = False
        self.fail_next = fail_next
        self._max_model_len = max_model_len
        self._interval_s = token_interval_s
        self._active: set[str] = set()
        self._aborted: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()

    async def generate(
        self, request_id: str, prompt: str, sampling: SamplingParameters, version: str
    ) -> AsyncIterator[EngineOutput]:
        """See the protocol. Prompt, sampling and version decide the tokens."""
        await self._open.wait()
        words = prompt.split()
        seed = sampling.seed if sampling.seed is not None else crc32(prompt.encode())
        # Other weights, other words.
        source = random.Random(f"{seed} {self.version}")
        failing = self.fail_next > 0
        self.fail_next -= failing
        self._active.add(request_id)
        self._idle.clear()
        try:
            for index in range(sampling.max_tokens):
                await asyncio.sleep(self._interval_s)
                if self.policy_pauses_streams:
                    await self._open.wait()
                if self.dead:
                    raise EngineDead("the in-memory engine was told to die")
                if failing and index == 1:
                    raise EngineGenerateError("scripted failure")
                if request_id in self._aborted:
                    return
                word = source.choice(words)
                yield EngineOutput(
                    token_ids=(crc32(word.encode()) % 50_000,),
                    text=word + " ",
                    prompt_tokens=len(words),
                    version=self.version,
                    finish_reason="length" if index + 1 == sampling.max_tokens else None,
                )
        finally:
            self._active.discard(request_id)
            self._aborted.discard(request_id)
            if not self._active:
                self._idle.set()

    policy_pauses_streams = True

    async def abort(self, request_id: str) -> None:
        """End the request's stream at its next token."""
        if request_id in self._active:
            self._aborted.add(request_id)

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """Only the version's name changes; the path must be a directory."""
        started = time.perf_counter()
        self._open.clear()
        self.policy_pauses_streams = policy == "keep"
        try:
            if policy == "drain":
                await self._idle.wait()
            if not Path(path).is_dir():  # noqa: ASYNC240 - one stat, in tests
                raise SwitchFailed(f"{path} is not a directory")
            self.version = version
        finally:
            self.policy_pauses_streams = True
            self._open.set()
        return (time.perf_counter() - started) * 1000

    def check(self, prompt: str, sampling: SamplingParameters) -> int:
        """Words are tokens."""
        check_sampling(sampling)
        count = len(prompt.split())
        if count == 0:
            raise RequestRefused("empty_prompt", "the prompt has no tokens")
        if count >= self._max_model_len:
            raise RequestRefused(
                "prompt_too_long",
                f"the prompt has {count} tokens; the model's context is {self._max_model_len}, "
                "and one place is needed for the answer",
            )
        return count

    async def close(self) -> None:
        """Nothing to free."""
        self._active.clear()
