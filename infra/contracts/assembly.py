"""Puts an answer together from its chunks. A pure reducer, for readers and for new owners alike.

Chunks may come twice, late, or from two workers at once when one took over from the other. Within
a run ``seq`` orders them; a run with a higher ``(epoch, attempt)`` overrides the older one's tail
from its own ``first_token`` on, and nothing of the older run is taken after that.
"""

from __future__ import annotations

from infra.contracts.events.generation import GenerationChunk


class ChunkAssembler:
    """The state of one answer. ``finished`` once the last chunk of the newest run is in."""

    def __init__(self) -> None:
        self._kept: list[GenerationChunk] = []
        self._waiting: dict[int, GenerationChunk] = {}
        self._run = (0, 0)
        self._next_seq = 0
        self.finished = False

    @property
    def text(self) -> str:
        """The first completion so far."""
        return "".join(chunk.text for chunk in self._kept if chunk.index == 0)

    @property
    def tokens(self) -> int:
        """How many tokens all completions have so far."""
        return sum(len(chunk.token_ids) for chunk in self._kept)

    @property
    def chunks(self) -> tuple[GenerationChunk, ...]:
        """What the answer consists of so far, in order."""
        return tuple(self._kept)

    def add(self, chunk: GenerationChunk) -> list[GenerationChunk]:
        """Take in one chunk; returns those that are now next in order, maybe none.

        When the first of them is of a higher run than the last one before, text from its
        ``first_token`` on is replaced.
        """
        run = (chunk.epoch, chunk.attempt)
        if run < self._run:
            return []
        if run > self._run:
            self._run = run
            self._waiting.clear()
            self._next_seq = 0
            self.finished = False
        if chunk.seq >= self._next_seq:
            self._waiting.setdefault(chunk.seq, chunk)
        ready = []
        while not self.finished and self._next_seq in self._waiting:
            following = self._waiting.pop(self._next_seq)
            if self._next_seq == 0:
                self._kept = [c for c in self._kept if c.first_token < following.first_token]
            self._kept.append(following)
            ready.append(following)
            self._next_seq += 1
            self.finished = following.final
        return ready
