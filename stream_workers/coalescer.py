"""Tokens into chunks: the first at once, then by time or size. Pure; time is passed in.

Intervals begin at multiples of themselves on the clock, for all answers alike: what they have
gathered goes out after the same model step, as one request to the broker and one answer to a
reader, not as many. A token waits for the next token after that at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.contracts.events.generation import TokenLogprob

CROWD = 16
"""Requests in flight from which on what goes to Kafka is gathered for longer ..."""
WIDEST = 6
"""... up to so many times."""

BATCH = 5
"""Batch answers are gathered so many times longer: nobody reads along, and each chunk costs those
who do a turn of the worker, the broker and the client."""


def crowding(in_flight: int) -> int:
    """How many times longer to gather: a record's cost is Kafka's and the reader's, not the
    engine's, and the more streams there are the less each of them feels a wait. Whole, so that
    longer intervals end with shorter ones."""
    return min(WIDEST, max(1, round(in_flight / CROWD)))


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkDraft:
    """A chunk before it is addressed. ``first_token`` is an index into its completion."""

    first_token: int
    token_ids: tuple[int, ...]
    text: str
    version: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Coalescer:
    """One run's chunks of one completion. A chunk never mixes versions.

    ``first_token``: how many tokens of the completion were emitted by earlier runs.
    """

    def __init__(self, *, interval_s: float, max_tokens: int, first_token: int = 0) -> None:
        self._interval_s = interval_s
        self._max_tokens = max_tokens
        self._tokens: list[int] = []
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._version = ""
        self._emitted = first_token
        self._last: float | None = None

    def add(
        self,
        token_ids: tuple[int, ...],
        text: str,
        version: str,
        now_s: float,
        logprobs: tuple[TokenLogprob, ...] = (),
        *,
        last: bool = False,
    ) -> list[ChunkDraft]:
        """Chunks that are due, none to two. What comes ``last`` is left for :meth:`finish`."""
        due: list[ChunkDraft] = []
        if version != self._version:
            if self.pending:
                due.append(self._take(now_s))
            self._version = version
        self._tokens += token_ids
        if text:
            self._text.append(text)
        if logprobs:
            self._logprobs += logprobs
        if last:
            return due
        if (
            self._last is None
            or self._interval_s <= 0
            or now_s // self._interval_s > self._last // self._interval_s
            or len(self._tokens) >= self._max_tokens
        ) and self.pending:
            due.append(self._take(now_s))
        return due

    def finish(self, version: str, now_s: float) -> ChunkDraft:
        """What is left, perhaps nothing. Call once."""
        if not self.pending:
            self._version = version
        return self._take(now_s)

    @property
    def pending(self) -> bool:
        """Whether anything waits to go out."""
        return bool(self._tokens) or bool(self._text)

    def _take(self, now_s: float) -> ChunkDraft:
        draft = ChunkDraft(
            first_token=self._emitted,
            token_ids=tuple(self._tokens),
            text="".join(self._text),
            version=self._version,
            logprobs=tuple(self._logprobs),
        )
        self._emitted += len(self._tokens)
        self._tokens, self._text, self._logprobs, self._last = [], [], [], now_s
        return draft
