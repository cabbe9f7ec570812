"""Token sequences packed into training blocks of one length. Pure.

A block carries position ids that start again with each segment, which is how transformers marks
document boundaries in a packed row: attention and positions do not cross them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

IGNORED = -100
"""The label that the loss passes over (torch's ``cross_entropy``)."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Tokens and their labels, of one length. A label is its own token's id, or ``IGNORED``."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.tokens) != len(self.labels):
            raise ValueError(f"{len(self.tokens)} tokens with {len(self.labels)} labels")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row for the model: as many tokens, labels and position ids."""

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]

    @property
    def counted(self) -> int:
        """Labels that the loss counts."""
        return sum(label != IGNORED for label in self.labels)


def document(tokens: Sequence[int]) -> Segment:
    """Plain text: the loss counts every token but the first, which nothing precedes."""
    return Segment(tokens=tuple(tokens), labels=(IGNORED, *tokens[1:]) if tokens else ())


def completion(prompt: Sequence[int], target: Sequence[int]) -> Segment:
    """A prompt and its answer: the loss counts the answer alone."""
    labels = (*([IGNORED] * len(prompt)), *target)
    if not prompt:
        labels = (IGNORED, *target[1:]) if target else ()
    return Segment(tokens=(*prompt, *target), labels=labels)


def fill(segments: Iterable[Segment], size: int) -> Iterator[Block]:
    """Blocks of exactly ``size`` tokens; a segment may be cut and goes on in the next block.

    Every token appears once, in order, except an incomplete last block, which is dropped. The
    first label of each piece is ignored: what would predict it lies outside the piece.
    """
    _check(size)
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for segment in segments:
        start = 0
        while start < len(segment.tokens):
            end = start + min(size - len(tokens), len(segment.tokens) - start)
            tokens.extend(segment.tokens[start:end])
            labels.append(IGNORED)
            labels.extend(segment.labels[start + 1 : end])
            positions.extend(range(end - start))
            start = end
            if len(tokens) == size:
                yield Block(tokens=tuple(tokens), labels=tuple(labels), positions=tuple(positions))
                tokens, labels, positions = [], [], []


def fit(segments: Iterable[Segment], size: int, *, padding: int) -> list[Block]:
    """Blocks of exactly ``size`` tokens in which no segment is cut that fits into one.

    First fit, longest first. What is longer than ``size`` goes on in pieces of their own, each of
    which begins with the last token of the one before, so that every label is counted once. The
    rest of a block is ``padding``, which the loss passes over; it is a segment of its own, so
    nothing attends to it.
    """
    _check(size)
    cut = [piece for item in segments if item.tokens for piece in _cut(item, size)]
    order = sorted(range(len(cut)), key=lambda index: (-len(cut[index].tokens), index))
    bins: list[list[Segment]] = []
    room: list[int] = []
    for index in order:
        segment = cut[index]
        length = len(segment.tokens)
        chosen = next((i for i, free in enumerate(room) if free >= length), None)
        if chosen is None:
            bins.append([segment])
            room.append(size - length)
        else:
            bins[chosen].append(segment)
            room[chosen] -= length
    return [_padded(members, size, padding) for members in bins]


def _cut(segment: Segment, size: int) -> Iterator[Segment]:
    start = 0
    while True:
        end = start + size
        yield Segment(tokens=segment.tokens[start:end], labels=segment.labels[start:end])
        if end >= len(segment.tokens):
            return
        start = end - 1


def _padded(members: Sequence[Segment], size: int, padding: int) -> Block:
    tokens: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for segment in members:
        tokens.extend(segment.tokens)
        labels.extend((IGNORED, *segment.labels[1:]))
        positions.extend(range(len(segment.tokens)))
    rest = size - len(tokens)
    return Block(
        tokens=(*tokens, *([padding] * rest)),
        labels=(*labels, *([IGNORED] * rest)),
        positions=(*positions, *range(rest)),
    )


def _check(size: int) -> None:
    if size < 2:
        raise ValueError("a block holds at least two tokens: one to see, one to predict")
