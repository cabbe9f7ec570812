"""Going on with an answer: stop strings over any cut, owed text, and answers already complete."""

import codecs
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.generation import SamplingParameters, StructuredOutput
from stream_workers.continuation import (
    AnswerText,
    StopScanner,
    continuable,
    continued_seed,
    resume,
)
from stream_workers.engine import Emitted, EmittedMismatch

NO_END: frozenset[int] = frozenset()
few_letters = st.text(alphabet="ab", max_size=24)
stops = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


def in_pieces(text: str, cuts: set[int]) -> list[str]:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)]


def whole_text_search(text: str, stop: tuple[str, ...], after: int = 0) -> tuple[int, int] | None:
    """The first end beyond ``after`` at which a stop string ends, by trying them all."""
    for end in range(after + 1, len(text) + 1):
        for one in stop:
            if text[:end].endswith(one):
                return end - len(one), end
    return None


def first_found(pieces: list[str], stop: tuple[str, ...], unarmed: int) -> tuple[int, int] | None:
    scanner = StopScanner(stop)
    for number, piece in enumerate(pieces):
        found = scanner.feed(piece, search=number >= unarmed)
        if found is not None:
            return found
    return None


@given(few_letters, stops, st.sets(st.integers(0, 24)), st.integers(0, 5))
def test_a_scan_in_pieces_finds_what_a_search_of_the_whole_finds(
    text: str, stop: tuple[str, ...], cuts: set[int], unarmed: int
) -> None:
    pieces = in_pieces(text, cuts)
    before = len("".join(pieces[:unarmed]))
    assert first_found(pieces, stop, unarmed) == whole_text_search(text, stop, before)


def byte_decoder() -> Callable[[int], str]:
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return lambda token_id: utf8.decode(bytes([token_id]))


def shown_by_then(tokens: list[int], sampling: SamplingParameters) -> tuple[list[str], str]:
    """The deltas of an uninterrupted answer of bytes, up to its end, and why it ended."""
    answer = AnswerText(sampling, byte_decoder())
    deltas: list[str] = []
    for count, token in enumerate(tokens, start=1):
        ends = token in sampling.stop_token_ids and count > sampling.min_tokens
        reason = "stop" if answer.add(token, ends=ends) or ends else ""
        reason = reason or ("length" if count == sampling.max_tokens else "")
        deltas.append(answer.take(finished=bool(reason)))
        if reason:
            return deltas, reason
    return deltas, ""


@given(
    text=st.text(alphabet="abé東\U0001f600", max_size=12),
    stop=st.lists(st.text(alphabet="abé東", min_size=1, max_size=3), max_size=2).map(tuple),
    include_stop=st.booleans(),
    min_tokens=st.integers(0, 6),
    max_tokens=st.integers(6, 40),
    stop_token_ids=st.sampled_from([(), (ord("b"),), (0x9D,)]),
    data=st.data(),
)
def test_a_cut_answer_goes_on_as_if_it_were_whole(
    text: str,
    stop: tuple[str, ...],
    include_stop: bool,
    min_tokens: int,
    max_tokens: int,
    stop_token_ids: tuple[int, ...],
    data: st.DataObject,
) -> None:
    sampling = SamplingParameters(
        stop=stop, include_stop=include_stop, min_tokens=min_tokens, max_tokens=max_tokens,
        stop_token_ids=stop_token_ids,
    )  # fmt: skip
    deltas, reason = shown_by_then(list(text.encode()), sampling)
    tokens = list(text.encode())[: len(deltas)]
    cut = data.draw(st.integers(0, len(tokens)))
    # Text may have been lost with the worker that emitted the tokens.
    lag = data.draw(st.integers(0, cut))
    emitted = Emitted(token_ids=tuple(tokens[:cut]), text="".join(deltas[: cut - lag]))
    resumed = resume(
        emitted, sampling, byte_decoder(), ending=stop_token_ids, limit=sampling.max_tokens
    )
    assert (resumed.finish_reason or "") == (reason if cut == len(tokens) else "")
    more = [resumed.owed]
    ends = bool(tokens) and tokens[-1] in stop_token_ids and len(tokens) > min_tokens
    if resumed.finish_reason is None:
        kept, stopped = resumed.answer.extend(tokens[cut:], ends=ends)
        assert kept == len(tokens) - cut
        assert stopped == (reason == "stop" and not ends) or ends
        more.append(resumed.answer.take(finished=bool(reason)))
    assert emitted.text + "".join(more) == "".join(deltas)


def test_tokens_beyond_a_stop_string_do_not_belong_to_the_answer() -> None:
    answer = AnswerText(SamplingParameters(stop=("lo w",)), byte_decoder())
    assert answer.extend(b"hello world", ends=False) == (7, True)
    assert answer.take(finished=True) == "hel"


def test_text_that_could_begin_a_stop_string_waits() -> None:
    answer = AnswerText(SamplingParameters(stop=("abc",)), byte_decoder())
    answer.extend(b"xxab", ends=False)
    assert answer.take(finished=False) == "xx"
    answer.extend(b"y", ends=False)
    assert answer.take(finished=False) == "a"
    assert answer.take(finished=True) == "by"


@pytest.mark.parametrize(
    "emitted",
    [
        Emitted(token_ids=tuple(b"hello"), text="help"),
        Emitted(token_ids=tuple(b"hello"), text="hello!"),
        Emitted(token_ids=tuple(b"hello."), text="hello"),
        Emitted(token_ids=tuple(b"hallo"), text="ha"),
    ],
)
def test_what_is_not_of_this_answer_is_refused(emitted: Emitted) -> None:
    sampling = SamplingParameters(stop=("a",), stop_token_ids=(ord("o"),))
    with pytest.raises(EmittedMismatch):
        resume(emitted, sampling, byte_decoder(), ending=sampling.stop_token_ids, limit=99)


def test_nothing_emitted_is_the_beginning() -> None:
    resumed = resume(
        Emitted(token_ids=(), text=""), SamplingParameters(), byte_decoder(), ending=NO_END, limit=9
    )
    assert (resumed.owed, resumed.finish_reason) == ("", None)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (SamplingParameters(stop=("x",), logprobs=2, repetition_penalty=1.2, seed=1), True),
        (SamplingParameters(n=2), False),
        (SamplingParameters(beam_width=2), False),
        (SamplingParameters(structured=StructuredOutput(regex="a")), False),
        (SamplingParameters(presence_penalty=0.1), False),
        (SamplingParameters(frequency_penalty=-0.1), False),
    ],
)
def test_what_can_be_continued(sampling: SamplingParameters, expected: bool) -> None:
    assert continuable(sampling) is expected


def test_a_continued_seed_is_fixed_and_another() -> None:
    assert continued_seed(None, 5) is None
    seeds = [continued_seed(7, tokens) for tokens in range(100)]
    assert seeds == [continued_seed(7, tokens) for tokens in range(100)]
    assert len(set(seeds)) == 100
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)
    assert continued_seed(7, 3) == (7 + 3 * 0x9E37_79B9_7F4A_7C15) % 2**63


@pytest.mark.parametrize(("include", "shown"), [(False, "a"), (True, "ab")])
def test_a_token_that_ends_an_answer_is_shown_only_if_stops_are(include: bool, shown: str) -> None:
    sampling = SamplingParameters(include_stop=include)
    answer = AnswerText(sampling, byte_decoder())
    assert answer.extend(b"ab", ends=True) == (2, False)
    assert answer.take(finished=True) == shown
    resumed = resume(
        Emitted(token_ids=tuple(b"ab"), text=""), sampling, byte_decoder(), ending=b"b", limit=9
    )
    assert (resumed.owed, resumed.finish_reason) == (shown, "stop")


def test_a_scanner_begins_with_nothing_and_holds_no_more_than_it_needs() -> None:
    assert StopScanner(("ab",)).feed("xab") == (1, 3)
    assert StopScanner(("Xa",)).feed("a") is None
    one = StopScanner(("a",))
    assert one.feed("xyz") is None
    assert (one.overlap, one._tail) == (0, "")
    assert one.feed("za") == (4, 5)


def test_what_does_not_fit_is_named() -> None:
    late = Emitted(token_ids=tuple(b"ab"), text="")
    with pytest.raises(EmittedMismatch, match=r"^tokens were emitted after the answer's end$"):
        resume(late, SamplingParameters(), byte_decoder(), ending=b"a", limit=9)
    other = Emitted(token_ids=tuple(b"ab"), text="b")
    with pytest.raises(
        EmittedMismatch, match=r"^the emitted text is not that of the emitted tokens$"
    ):
        resume(other, SamplingParameters(), byte_decoder(), ending=b"", limit=9)
