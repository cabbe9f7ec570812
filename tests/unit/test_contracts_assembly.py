"""One gapless text, whatever order, repetition or change of worker the chunks came in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.events.generation import GenerationChunk


def chunk(attempt: int, seq: int, first: int, text: str, *, final: bool = False) -> GenerationChunk:
    return GenerationChunk(
        request_id="r",
        submit_id="s",
        attempt=attempt,
        seq=seq,
        first_token=first,
        token_ids=tuple(range(first, first + len(text))),
        text=text,
        model_version="default@1",
        emitted_at_ms=0,
        final=final,
    )


def attempt_of(number: int, first: int, pieces: list[str], *, final: bool) -> list[GenerationChunk]:
    made = []
    for seq, text in enumerate(pieces):
        last = final and seq == len(pieces) - 1
        made.append(chunk(number, seq, first, text, final=last))
        first += len(text)
    return made


PIECES = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6)


@given(pieces=PIECES, data=st.data())
def test_any_order_and_repetition_gives_the_same_text(
    pieces: list[str], data: st.DataObject
) -> None:
    chunks = attempt_of(0, 0, pieces, final=True)
    shuffled = data.draw(st.permutations(chunks + data.draw(st.lists(st.sampled_from(chunks)))))
    assembler = ChunkAssembler()
    ready = [item for received in shuffled for item in assembler.add(received)]
    assert ready == chunks
    assert assembler.text == "".join(pieces)
    assert assembler.finished


@given(first=PIECES, second=PIECES, data=st.data())
def test_a_takeover_continues_and_fences_the_older_attempt(
    first: list[str], second: list[str], data: st.DataObject
) -> None:
    older = attempt_of(0, 0, first, final=False)
    boundary = data.draw(st.sampled_from([item.first_token for item in older]))
    newer = attempt_of(1, boundary, second, final=True)
    kept = "".join(first)[:boundary]
    seen = data.draw(st.integers(0, len(older)))
    # All that the newer attempt builds on was emitted before it; the rest may come late.
    seen = max(seen, sum(item.first_token < boundary for item in older))
    late = data.draw(st.permutations(newer + older[seen:]))
    assembler = ChunkAssembler()
    for received in [*older[:seen], *late]:
        assembler.add(received)
    assert assembler.text == kept + "".join(second)
    assert assembler.finished


def test_tokens_are_counted_once() -> None:
    assembler = ChunkAssembler()
    for received in attempt_of(0, 0, ["ab", "c"], final=True) * 2:
        assembler.add(received)
    assert assembler.tokens == 3
