"""A deterministic engine without a model: tokens are words of the prompt, drawn by a seed.

For tests and for running the platform where vLLM is not installed. Failures can be scripted.
A word with a character beyond ASCII is two tokens, cut within that character, as byte-level
tokenizers do. There is no EOS and no grammar; ``structured`` works with ``choice`` only.
"""

from __future__ import annotations

import asyncio
import codecs
import math
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal
from zlib import crc32

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import SamplingParameters, TokenLogprob, TopLogprob
from stream_workers.adapters import Adapters
from stream_workers.continuation import AnswerText, continuable, resume
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
from stream_workers.sampling import check_sampling

VOCABULARY = 50_000


class MemoryEngine:
    """``token_interval_s`` paces tokens. ``fail_next`` generations fail after one token.

    Switching and loading take no files into account, but the folder must be there.
    """

    def __init__(
        self,
        *,
        version: str,
        max_model_len: int = 2048,
        token_interval_s: float = 0.0,
        fail_next: int = 0,
        kv_tokens: int = 65_536,
        max_adapters: int = 2,
    ) -> None:
        self.version = version
        self.dead = False
        self.fail_next = fail_next
        self._max_model_len = max_model_len
        self._interval_s = token_interval_s
        self._kv_tokens = kv_tokens
        self.max_adapters = max_adapters
        self._adapters: Adapters[str] = Adapters()
        self._active: dict[str, int] = {}
        self._aborted: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._open = asyncio.Event()
        self._open.set()
        # While a switch drains, what runs goes on to its end.
        self._pauses_streams = True

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        version: str,
        *,
        emitted: Emitted | None = None,
        urgent: bool = False,
    ) -> AsyncIterator[EngineOutput]:
        """See the protocol. Prompt, sampling and version decide the tokens; nothing waits."""
        count = self.check(prompt, sampling)
        await self._open.wait()
        with self._adapters.using(version, request_id) as adapter:
            outputs = self._generate(request_id, prompt, sampling, count, adapter, emitted)
            async with aclosing(outputs):
                async for output in outputs:
                    yield output

    async def _generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParameters,
        count: int,
        adapter: str | None,
        emitted: Emitted | None,
    ) -> AsyncGenerator[EngineOutput, None]:
        if emitted is not None and not continuable(sampling):
            raise RequestRefused("invalid_sampling", "this sampling cannot be continued")
        text = _text(prompt)
        limit = min(sampling.max_tokens, self._max_model_len - count)
        seed = sampling.seed if sampling.seed is not None else crc32(text.encode())
        # Other weights, other words.
        source = f"{seed} {adapter or self.version}"
        failing = self.fail_next > 0
        self.fail_next -= failing
        running = [_Completion(index, text, sampling, source) for index in range(sampling.n)]
        if emitted is not None:
            owed = running[0].resume(emitted, limit)
            if owed.text or owed.finish_reason is not None:
                yield self._output(running[0], owed, count, adapter)
            if owed.finish_reason is not None:
                return
        self._active[request_id] = count
        self._idle.clear()
        whole: list[EngineOutput] = []
        try:
            for step in range(limit):
                await asyncio.sleep(self._interval_s)
                if self._pauses_streams:
                    await self._open.wait()
                if adapter is not None:
                    self._adapters.check(adapter)
                if self.dead:
                    raise EngineDead("the in-memory engine was told to die")
                if failing and step == 1:
                    raise EngineGenerateError("scripted failure")
                if request_id in self._aborted:
                    return
                self._active[request_id] += len(running)
                for completion in running:
                    output = self._output(completion, completion.advance(limit), count, adapter)
                    if sampling.beam_width is None:
                        yield output
                    else:
                        whole.append(output)
                running = [one for one in running if not one.finished]
                if not running:
                    break
            for index in range(sampling.n if whole else 0):
                yield _joined([output for output in whole if output.index == index])
        finally:
            self._active.pop(request_id, None)
            self._aborted.discard(request_id)
            if not self._active:
                self._idle.set()

    def _output(
        self, completion: _Completion, delta: _Delta, prompt_tokens: int, adapter: str | None
    ) -> EngineOutput:
        return EngineOutput(
            token_ids=delta.token_ids,
            text=delta.text,
            prompt_tokens=prompt_tokens,
            version=adapter or self.version,
            finish_reason=delta.finish_reason,
            index=completion.index,
            logprobs=delta.logprobs,
        )

    async def abort(self, request_id: str) -> None:
        """End the request's stream at its next token."""
        if request_id in self._active:
            self._aborted.add(request_id)

    async def switch(self, path: str, version: str, policy: SwitchPolicy) -> float:
        """Only the version's name changes; the path must be a directory."""
        started = time.perf_counter()
        self._open.clear()
        self._pauses_streams = policy == "keep"
        try:
            if policy == "drain":
                await self._idle.wait()
            if not Path(path).is_dir():  # noqa: ASYNC240 - one stat, in tests
                raise SwitchFailed(f"{path} is not a directory")
            self.version = version
        finally:
            self._pauses_streams = True
            self._open.set()
        return (time.perf_counter() - started) * 1000

    async def load_adapter(self, path: str, version: str) -> None:
        """Only the name counts; the path must be a directory."""
        if version in self._adapters:
            return
        if not Path(path).is_dir():  # noqa: ASYNC240 - one stat, in tests
            raise SwitchFailed(f"{path} is not a directory")
        if len(self._adapters.versions()) >= self.max_adapters:
            raise SwitchFailed(f"no room for another adapter: {self.max_adapters} at most")
        self._adapters.add(version, version)

    async def unload_adapter(self, version: str, policy: SwitchPolicy) -> None:
        """See the protocol."""
        if policy == "keep":
            self._adapters.displace(version)
        await self._adapters.remove(version)

    @property
    def adapters(self) -> tuple[str, ...]:
        """See the protocol."""
        return self._adapters.versions()

    def load(self) -> EngineLoad:
        """Nothing ever waits here, and more may run than the pretended cache holds."""
        return EngineLoad(
            running=len(self._active),
            waiting=0,
            kv_cache_usage=min(1.0, sum(self._active.values()) / self._kv_tokens),
            kv_tokens=self._kv_tokens,
        )

    def check(self, prompt: Prompt, sampling: SamplingParameters) -> int:
        """Words are tokens."""
        check_sampling(sampling)
        if sampling.structured is not None and sampling.structured.choice is None:
            raise RequestRefused(
                "invalid_sampling",
                "sampling.structured must be a choice: the in-memory engine has no grammars",
            )
        count = len(_text(prompt).split())
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
        """Nothing to free; whoever still reads a stream ends it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Delta:
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


class _Completion:
    """One of a request's completions: where its tokens come from and what it has shown."""

    def __init__(self, index: int, text: str, sampling: SamplingParameters, source: str) -> None:
        self.index = index
        self.finished = False
        self._sampling = sampling
        draw = random.Random(  # nosec B311 # the same words again for the same request
            source if index == 0 else f"{source} {index}"
        )
        choice = sampling.structured.choice if sampling.structured is not None else None
        words = [f"{word} " for word in text.split()]
        if choice is not None:
            # Cut as the prompt is, but with the spaces as they are.
            words = re.findall(r"\S*\s*", draw.choice(choice))[:-1]
        pieces = [_pieces(word) for word in words]
        self._vocabulary = _Vocabulary(piece for word in pieces for piece in word)
        self._tokens = iter(
            [piece for word in pieces for piece in word]
            if choice is not None
            else _endless(draw, pieces)
        )
        self._remaining = sum(map(len, pieces)) if choice is not None else None
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._answer = AnswerText(sampling, self._decode)
        self._count = 0

    def _decode(self, token_id: int) -> str:
        piece = self._vocabulary.piece(token_id)
        if piece is None:
            raise EmittedMismatch(f"token {token_id} is no word of the prompt")
        return self._utf8.decode(piece)

    def resume(self, emitted: Emitted, limit: int) -> _Delta:
        ending = self._sampling.stop_token_ids
        resumed = resume(emitted, self._sampling, self._decode, ending=ending, limit=limit)
        self._count = len(emitted.token_ids)
        self._tokens = islice(self._tokens, self._count, None)
        self._answer = resumed.answer
        self.finished = resumed.finish_reason is not None
        return _Delta(text=resumed.owed, finish_reason=resumed.finish_reason)

    def advance(self, limit: int) -> _Delta:
        token_id = self._vocabulary.token_id(next(self._tokens))
        self._count += 1
        sampling = self._sampling
        ends = token_id in sampling.stop_token_ids and self._count > sampling.min_tokens
        reason: Literal["stop", "length"] | None = None
        if self._answer.add(token_id, ends=ends) or ends or self._count == self._remaining:
            reason = "stop"
        elif self._count >= limit:
            reason = "length"
        self.finished = reason is not None
        return _Delta(
            token_ids=(token_id,),
            text=self._answer.take(finished=self.finished),
            finish_reason=reason,
            logprobs=() if sampling.logprobs is None else (self._logprob(token_id),),
        )

    def _logprob(self, token_id: int) -> TokenLogprob:
        """All of the vocabulary is equally likely."""
        assert self._sampling.logprobs is not None
        logprob = -math.log(len(self._vocabulary.pieces))
        top = islice(self._vocabulary.pieces.items(), self._sampling.logprobs)
        return TokenLogprob(
            token_id=token_id,
            token=_shown(self._vocabulary.pieces[token_id]),
            logprob=logprob,
            top=tuple(
                TopLogprob(token_id=other, token=_shown(piece), logprob=logprob)
                for other, piece in top
            ),
        )


class _Vocabulary:
    """Token ids are hashes of the words; the later of two that collide moves to a free one."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces: dict[int, bytes] = {}
        self._ids: dict[bytes, int] = {}
        for piece in pieces:
            if piece not in self._ids:
                token_id = crc32(piece.rstrip()) % VOCABULARY
                while token_id in self.pieces:
                    token_id = (token_id + 1) % VOCABULARY
                self.pieces[token_id], self._ids[piece] = piece, token_id

    def token_id(self, piece: bytes) -> int:
        return self._ids[piece]

    def piece(self, token_id: int) -> bytes | None:
        return self.pieces.get(token_id)


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(message.content for message in prompt)


def _pieces(word: str) -> list[bytes]:
    encoded = word.encode()
    cut = next((at for at, byte in enumerate(encoded) if byte >= 0x80), None)
    return [encoded] if cut is None else [encoded[: cut + 1], encoded[cut + 1 :]]


def _endless(draw: random.Random, pieces: list[list[bytes]]) -> Iterator[bytes]:
    while True:
        yield from draw.choice(pieces)


def _shown(piece: bytes) -> str:
    return piece.decode(errors="replace")


def _joined(deltas: list[EngineOutput]) -> EngineOutput:
    """A beam's whole answer; all of it counts as the last version's."""
    last = deltas[-1]
    return EngineOutput(
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        text="".join(delta.text for delta in deltas),
        prompt_tokens=last.prompt_tokens,
        version=last.version,
        finish_reason=last.finish_reason,
        index=last.index,
    )
