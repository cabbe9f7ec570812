"""Tokens into chunks: the first at once, then by time or size. Pure; time is passed in.

A token waits for the next token at most: a chunk is due as soon as ``interval_s`` has passed since
the last one went out, checked when a token arrives.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDraft:
    """A chunk before it is addressed. ``first_token`` is an index into the answer."""

    seq: int
    first_token: int
    token_ids: tuple[int, ...]
    text: str
    version: str
    final: bool = False


class Coalescer:
    """One attempt's chunks. A chunk never mixes versions."""

    def __init__(self, *, interval_s: float, max_tokens: int) -> None:
        self._interval_s = interval_s
        self._max_tokens = max_tokens
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._version = ""
        self._seq = 0
        self._emitted = 0
        self._last: float | None = None

    def add(
        self, token_ids: tuple[int, ...], text: str, version: str, now_s: float
    ) -> list[ChunkDraft]:
        """Chunks that are due, none to two."""
        due: list[ChunkDraft] = []
        if self._pending and version != self._version:
            due.append(self._take(now_s))
        self._version = version
        self._tokens += token_ids
        self._text.append(text)
        if self._pending and (
            self._last is None
            or now_s - self._last >= self._interval_s
            or len(self._tokens) >= self._max_tokens
        ):
            due.append(self._take(now_s))
        return due

    def finish(self, version: str, now_s: float) -> ChunkDraft:
        """The last chunk: what is left, perhaps nothing. Call once."""
        self._version = self._version if self._pending else version
        return self._take(now_s, final=True)

    @property
    def _pending(self) -> bool:
        return bool(self._tokens) or any(self._text)

    def _take(self, now_s: float, *, final: bool = False) -> ChunkDraft:
        draft = ChunkDraft(
            seq=self._seq,
            first_token=self._emitted,
            token_ids=tuple(self._tokens),
            text="".join(self._text),
            version=self._version,
            final=final,
        )
        self._seq += 1
        self._emitted += len(self._tokens)
        self._tokens, self._text, self._last = [], [], now_s
        return draft
