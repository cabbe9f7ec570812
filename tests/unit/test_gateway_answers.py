"""Streams put together from a token log, whatever became of the workers that wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.events.generation import GenerationChunk, GenerationResult, TokenLogprob
from producers.gateway.answers import Restarted, StreamedAnswer
from producers.gateway.identifiers import mint

ID = mint("chatcmpl", tenant="t", model="default", partition=0, created_at_ms=1_000)


def chunk(seq: int, first: int, pieces: tuple[str, ...], **more: Any) -> GenerationChunk:
    return GenerationChunk(
        request_id=ID.text,
        submit_id=ID.text,
        attempt=0,
        seq=seq,
        first_token=first,
        token_ids=tuple(range(first, first + len(pieces))),
        text="".join(pieces),
        logprobs=tuple(TokenLogprob(token_id=0, token=piece, logprob=-1.0) for piece in pieces),
        model_version="1",
        emitted_at_ms=0,
        **more,
    )


def result(text: str) -> GenerationResult:
    return GenerationResult(
        request_id=ID.text,
        submit_id=ID.text,
        model="default",
        prompt="",
        text=text,
        finish_reason="stop",
        prompt_tokens=1,
        output_tokens=1,
        model_versions=("1",),
        created_at_ms=0,
        finished_at_ms=0,
    )


@dataclass
class Seen:
    numbers: list[int]
    text: str
    tokens: list[str]


def read(log: list[GenerationChunk], end: GenerationResult, *, after: int = -1) -> Seen:
    assembler, answer = ChunkAssembler(), StreamedAnswer(ID, "default", include_usage=False)
    seen = Seen([], "", [])

    def take(number: int, event: Any) -> None:
        if event is None or number <= after:
            return
        seen.numbers.append(number)
        for choice in event["choices"]:
            seen.text += choice["delta"].get("content", "")
            shown = choice["logprobs"] or {"content": []}
            seen.tokens += [one["token"] for one in shown["content"]]

    for one in log:
        for ready in assembler.add(one):
            take(*answer.chunk(ready))
    for number, event in answer.ending(end):
        take(number, event)
    return seen


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[GenerationChunk], list[str]]:
    """A log of several owners, each going on at a chunk's beginning, some chunks twice."""
    pieces = draw(st.lists(st.sampled_from(["a", "bc", " ", "d e", ""]), min_size=1, max_size=12))
    log: list[GenerationChunk] = []
    bounds = {0}
    epochs = draw(st.integers(1, 4))
    for epoch in range(epochs):
        place = 0 if epoch == 0 else draw(st.sampled_from(sorted(bounds)))
        seq, last = 0, epoch == epochs - 1
        while place < len(pieces):
            size = draw(st.integers(1, 4))
            taken = tuple(pieces[place : place + size])
            final = last and place + size >= len(pieces)
            log.append(chunk(seq, place, taken, epoch=epoch, final=final))
            if draw(st.booleans()):
                log.append(log[-1])
            place += len(taken)
            seq += 1
            bounds.add(place)
            if not last and draw(st.booleans()):
                break
    return log, pieces


@given(logs())
def test_a_stream_says_each_token_once_over_any_number_of_owners(
    drawn: tuple[list[GenerationChunk], list[str]],
) -> None:
    log, pieces = drawn
    seen = read(log, result("".join(pieces)))
    assert seen.text == "".join(pieces)
    assert seen.tokens == pieces
    assert seen.numbers == sorted(set(seen.numbers))


@given(logs(), st.data())
def test_a_stream_goes_on_after_any_of_its_events(
    drawn: tuple[list[GenerationChunk], list[str]], data: st.DataObject
) -> None:
    log, pieces = drawn
    whole = read(log, result("".join(pieces)))
    at = data.draw(st.integers(0, len(whole.numbers) - 1))
    rest = read(log, result("".join(pieces)), after=whole.numbers[at])
    assert rest.numbers == whole.numbers[at + 1 :]
    assert whole.text.endswith(rest.text)
    assert whole.tokens[len(whole.tokens) - len(rest.tokens) :] == rest.tokens


def test_other_words_than_those_that_were_sent_end_it() -> None:
    log = [chunk(0, 0, ("a", "b")), chunk(0, 0, ("a", "x"), epoch=1, final=True)]
    with pytest.raises(Restarted):
        read(log, result("ax"))


def test_what_the_last_chunks_lost_comes_with_the_end() -> None:
    seen = read([chunk(0, 0, ("a", "b"))], result("abcd"))
    assert seen.text == "abcd"
    with pytest.raises(Restarted):
        read([chunk(0, 0, ("a", "b"))], result("axcd"))
