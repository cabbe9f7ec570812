"""Beam search against trying every sequence."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from random import Random

import pytest

from stream_workers.beam_search import Beam, beam_search, together

EOS = 0


class Language:
    """Log-probabilities of four tokens after any others, drawn by a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.asked = 0

    def successors(self, before: tuple[int, ...]) -> dict[int, float]:
        draw = Random(f"{self.seed} {before}")
        return {token: -draw.expovariate(1.0) - 0.01 for token in range(4)}

    async def expand(self, beams: Sequence[Beam]) -> Sequence[Mapping[int, float]]:
        self.asked += 1
        return [self.successors(beam.token_ids) for beam in beams]

    def logprob(self, tokens: tuple[int, ...]) -> float:
        return sum(self.successors(tokens[:at])[token] for at, token in enumerate(tokens))

    def every_answer(self, max_tokens: int) -> list[tuple[int, ...]]:
        answers = [
            (*tokens, EOS)
            for length in range(max_tokens)
            for tokens in itertools.product((1, 2, 3), repeat=length)
        ]
        return answers + list(itertools.product((1, 2, 3), repeat=max_tokens))


@pytest.mark.parametrize("seed", range(20))
async def test_a_width_that_holds_everything_finds_the_best(seed: int) -> None:
    language = Language(seed)
    answers = language.every_answer(4)
    best = max(answers, key=lambda tokens: language.logprob(tokens) / len(tokens))
    found = await beam_search(language.expand, width=200, max_tokens=4, ending={EOS})
    assert len(found) == len(answers)
    assert found[0].token_ids == best
    assert found[0].logprob == pytest.approx(language.logprob(best))
    assert [beam.score for beam in found] == sorted((b.score for b in found), reverse=True)
    assert all(beam.finished == (beam.token_ids[-1] == EOS) for beam in found)


async def test_a_width_of_one_is_greedy() -> None:
    language = Language(1)
    (found,) = await beam_search(language.expand, width=1, max_tokens=6, ending=())
    for at, token in enumerate(found.token_ids):
        successors = language.successors(found.token_ids[:at])
        assert token == max(successors, key=successors.__getitem__)
    assert len(found.token_ids) == 6
    assert not found.finished


async def patient_search(language: Language, width: int, max_tokens: int) -> list[float]:
    """Scores of the same search that never stops before ``max_tokens``."""
    running, finished = [Beam()], []
    for _ in range(max_tokens):
        longer = [
            Beam(
                token_ids=(*beam.token_ids, token),
                logprob=beam.logprob + logprob,
                finished=token == EOS,
            )
            for beam in running
            for token, logprob in language.successors(beam.token_ids).items()
        ]
        finished += [beam for beam in longer if beam.finished]
        going_on = [beam for beam in longer if not beam.finished]
        running = sorted(going_on, key=lambda beam: -beam.logprob)[:width]
    return sorted((beam.score for beam in finished + running), reverse=True)[:width]


async def test_stopping_early_changes_nothing() -> None:
    early = 0
    for seed in range(50):
        language = Language(seed)
        found = await beam_search(language.expand, width=2, max_tokens=40, ending={EOS})
        early += language.asked < 40
        assert [beam.score for beam in found] == await patient_search(language, 2, 40)
    assert early


async def test_the_first_error_ends_all() -> None:
    ended: list[str] = []

    async def work(name: str) -> str:
        try:
            if name == "bad":
                raise ValueError(name)
            await never
        finally:
            ended.append(name)
        return name

    never = asyncio.get_running_loop().create_future()
    with pytest.raises(ValueError, match="bad"):
        await together(work(name) for name in ("good", "bad"))
    await asyncio.sleep(0)
    assert sorted(ended) == ["bad", "good"]
