"""Puts an answer together from its chunks. A pure reducer.

Chunks may come twice, late, or from two workers at once when one took over from the other. Within
an attempt ``seq`` orders them; a higher attempt overrides the older one's tail from its own
``first_token`` on, and nothing of the older attempt is taken after that.
"""

from __future__ import annotations

from infra.contracts.events import GenerationChunk


class ChunkAssembler:
    """The state of one answer. ``finished`` once the last chunk of the newest attempt is in."""

    def __init__(self) -> None:
        self._kept: list[GenerationChunk] = []
        self._waiting: dict[int, GenerationChunk] = {}
        self._attempt = 0
        self._next_seq = 0
        self.finished = False

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(chunk.text for chunk in self._kept)

    @property
    def tokens(self) -> int:
        """How many tokens the answer has so far."""
        return sum(len(chunk.token_ids) for chunk in self._kept)

    def add(self, chunk: GenerationChunk) -> list[GenerationChunk]:
        """Take in one chunk; returns those that are now next in order, maybe none.

        When the first of them has a higher attempt than the last one before, text from its
        ``first_token`` on is replaced.
        """
        if chunk.attempt < self._attempt:
            return []
        if chunk.attempt > self._attempt:
            self._attempt = chunk.attempt
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
