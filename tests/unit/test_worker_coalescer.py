"""Coalescer: nothing lost, nothing renumbered, one end."""

from hypothesis import given
from hypothesis import strategies as st

from stream_workers.coalescer import Coalescer

DELTAS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 99), max_size=4).map(tuple),
        st.text(max_size=4),
        st.floats(0, 0.1),
        st.sampled_from(["m@1", "m@2"]),
    ),
    max_size=60,
)


@given(deltas=DELTAS, size=st.integers(1, 8))
def test_chunks_keep_everything_in_order(
    deltas: list[tuple[tuple[int, ...], str, float, str]], size: int
) -> None:
    coalescer = Coalescer(interval_s=0.05, max_tokens=size)
    now, chunks = 0.0, []
    for tokens, text, gap, version in deltas:
        now += gap
        chunks += coalescer.add(tokens, text, version, now)
    chunks.append(coalescer.finish("m@9", now))
    assert sum((c.token_ids for c in chunks), ()) == sum((d[0] for d in deltas), ())
    assert "".join(c.text for c in chunks) == "".join(d[1] for d in deltas)
    first = 0
    for chunk in chunks:
        assert chunk.first_token == first
        first += len(chunk.token_ids)


def test_first_token_goes_at_once_then_by_size() -> None:
    coalescer = Coalescer(interval_s=10, max_tokens=2)
    sizes = [len(coalescer.add((n,), "x", "m@1", 0.0)) for n in range(5)]
    assert sizes == [1, 0, 1, 0, 1]


def test_answers_that_began_at_different_times_go_out_after_the_same_step() -> None:
    interval_s, step_s = 0.05, 0.004
    begun = [(0.0, 1), (0.017, 1), (0.033, 5)]
    answers = [(at, Coalescer(interval_s=interval_s * n, max_tokens=99)) for at, n in begun]
    sent: list[set[int]] = [set() for _ in answers]
    for step in range(150):
        now_s = 0.001 + step * step_s
        for number, (at, coalescer) in enumerate(answers):
            if now_s >= at and coalescer.add((1,), "x", "m@1", now_s):
                sent[number].add(step)
    first = [min(steps) for steps in sent]
    for number in (1, 2):
        # Everything after the first token, at once wherever it began, goes with the others.
        later = sent[number] - {first[number]}
        assert later <= sent[0]
        assert len(later) >= 2
    assert all((0.001 + step * step_s) % interval_s < step_s for step in sent[0] - {0})
