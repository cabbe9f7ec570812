"""Packing: each token, label and position, beside the rules written out one token at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.packing import IGNORED, Block, Segment, completion, document, fill, fit

PADDING = 1
TOKENS = st.lists(st.integers(2, 99), max_size=20)


@st.composite
def segment(draw: st.DrawFn) -> Segment:
    tokens = draw(TOKENS)
    counted = [draw(st.booleans()) for _ in tokens]
    labels = (token if one else IGNORED for token, one in zip(tokens, counted, strict=True))
    return Segment(tokens=tuple(tokens), labels=tuple(labels))


SEGMENTS = st.lists(segment(), max_size=8)


@given(SEGMENTS, st.integers(2, 9))
def test_a_filled_block_says_of_each_token_what_its_segment_does(
    segments: list[Segment], size: int
) -> None:
    flat: list[tuple[int, int, int]] = []
    for one in segments:
        position = 0
        for place, token in enumerate(one.tokens):
            # A piece begins with its segment, and with each block.
            position = 0 if place == 0 or len(flat) % size == 0 else position + 1
            flat.append((token, one.labels[place] if position else IGNORED, position))
    blocks = list(fill(segments, size))
    assert len(blocks) == len(flat) // size
    for number, block in enumerate(blocks):
        rows = flat[number * size : (number + 1) * size]
        assert list(zip(block.tokens, block.labels, block.positions, strict=True)) == rows
        assert block.counted == sum(label != IGNORED for _, label, _ in rows)


@given(SEGMENTS, st.integers(2, 9))
def test_fitting_is_first_fit_of_the_longest_first(segments: list[Segment], size: int) -> None:
    pieces: list[list[tuple[int, int, int]]] = []
    for one in segments:
        start = 0
        while start < len(one.tokens) and (start == 0 or start + 1 < len(one.tokens)):
            places = range(start, min(start + size, len(one.tokens)))
            pieces.append(
                [
                    (one.tokens[at], one.labels[at] if at > start else IGNORED, at - start)
                    for at in places
                ]
            )
            # The next piece sees this one's last token again, to predict what follows it.
            start += size - 1
    rows: list[list[tuple[int, int, int]]] = []
    for piece in sorted(pieces, key=len, reverse=True):
        row = next((one for one in rows if len(one) + len(piece) <= size), None)
        if row is None:
            row = []
            rows.append(row)
        row.extend(piece)
    for row in rows:
        row.extend((PADDING, IGNORED, at) for at in range(size - len(row)))
    blocks = fit(segments, size, padding=PADDING)
    assert [
        list(zip(block.tokens, block.labels, block.positions, strict=True)) for block in blocks
    ] == rows


@given(TOKENS, TOKENS)
def test_the_first_token_of_all_is_never_counted_and_a_prompt_is_not(
    prompt: list[int], target: list[int]
) -> None:
    whole = completion(prompt, target)
    assert whole.tokens == (*prompt, *target)
    counted = [label for label in whole.labels if label != IGNORED]
    assert counted == (target if prompt else target[1:])
    assert whole.labels[: len(prompt)] == (IGNORED,) * len(prompt)
    assert completion([], target) == document(target)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^2 tokens with 1 labels$"):
        Segment(tokens=(1, 2), labels=(1,))
    says = r"^a block holds at least two tokens: one to see, one to predict$"
    with pytest.raises(ValueError, match=says):
        next(fill([], 1))
    with pytest.raises(ValueError, match=says):
        fit([], 1, padding=PADDING)
    assert list(fill([document([5, 6])], 2)) == [
        Block(tokens=(5, 6), labels=(IGNORED, 6), positions=(0, 1))
    ]
    assert fit([document([])], 2, padding=PADDING) == []
