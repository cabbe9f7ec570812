"""ChunkAssembler beside one that keeps all it was given and starts from the beginning each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.events.generation import GenerationChunk


def chunk(
    run: tuple[int, int], seq: int, first: int, count: int, *, index: int = 0, final: bool = False
) -> GenerationChunk:
    return GenerationChunk(
        request_id="r",
        submit_id="s",
        epoch=run[0],
        attempt=run[1],
        seq=seq,
        first_token=first,
        token_ids=tuple(range(count)),
        text=f"[{run[0]}.{run[1]}.{seq}]",
        model_version="m@1",
        emitted_at_ms=0,
        index=index,
        final=final,
    )


@st.composite
def arrivals(draw: st.DrawFn) -> list[GenerationChunk]:
    """Chunks of up to four runs, whose tokens go on from anywhere, in any order, some twice."""
    made: list[GenerationChunk] = []
    for run in [(0, 0), (0, 1), (1, 0), (2, 3)][: draw(st.integers(1, 4))]:
        first, length = draw(st.integers(0, 6)), draw(st.integers(1, 5))
        ends = draw(st.booleans())
        for seq in range(length):
            count = draw(st.integers(0, 3))
            index = draw(st.sampled_from([0, 0, 1]))
            final = ends and seq == length - 1
            made.append(chunk(run, seq, first, count, index=index, final=final))
            first += count
    again = draw(st.lists(st.sampled_from(made), max_size=6))
    return draw(st.permutations(made + again))


def assembled(received: list[GenerationChunk]) -> tuple[list[GenerationChunk], bool]:
    """What stands once all of these came, and whether it ended."""
    kept: list[GenerationChunk] = []
    finished = False
    newest = (0, 0)
    of_run: dict[tuple[int, int], dict[int, GenerationChunk]] = {newest: {}}
    for one in received:
        run = (one.epoch, one.attempt)
        newest = max(newest, run)
        if run == newest:
            of_run.setdefault(run, {}).setdefault(one.seq, one)
    for run in sorted(of_run):
        chunks, finished = of_run[run], False
        for seq in range(len(chunks)):
            if seq not in chunks or finished:
                break
            if seq == 0:
                kept = [one for one in kept if one.first_token < chunks[0].first_token]
            kept.append(chunks[seq])
            finished = chunks[seq].final
    return kept, finished


@given(arrivals())
def test_at_every_moment_it_stands_as_if_read_from_the_beginning(
    received: list[GenerationChunk],
) -> None:
    assembler = ChunkAssembler()
    assert (assembler.chunks, assembler.text, assembler.tokens) == ((), "", 0)
    assert not assembler.finished
    for count, one in enumerate(received, start=1):
        ready = assembler.add(one)
        kept, finished = assembled(received[:count])
        assert assembler.chunks == tuple(kept)
        assert assembler.finished == finished
        assert assembler.tokens == sum(len(each.token_ids) for each in kept)
        assert assembler.text == "".join(each.text for each in kept if each.index == 0)
        assert ready == kept[len(kept) - len(ready) :]
        # Given out when it is next in order, once: with it or with what it waited for.
        assert all((each.epoch, each.attempt) == (one.epoch, one.attempt) for each in ready)
        if ready:
            assert ready[0] is one


@given(arrivals())
def test_read_again_from_anywhere_changes_nothing(received: list[GenerationChunk]) -> None:
    assembler = ChunkAssembler()
    for one in received:
        assembler.add(one)
    stood = (assembler.chunks, assembler.finished)
    assert all(assembler.add(one) == [] for one in received)
    assert (assembler.chunks, assembler.finished) == stood
