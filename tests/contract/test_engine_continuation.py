"""An answer cut at any token goes on, in another engine, as if it had never been cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import accumulate

import msgspec
import pytest

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import ChatMessage, SamplingParameters, StructuredOutput
from stream_workers.engine import Emitted, EmittedMismatch, Engine, EngineOutput, Prompt

from .answers import collect, text, tokens
from .conftest import WORDS

pytestmark = pytest.mark.asyncio(loop_scope="session")

MANY_BYTES = "größer naïve 東京 \U0001f600 façade plain Ünïcödé"
# The repetition penalty keeps a random model from saying one token for ever.
GREEDY = SamplingParameters(max_tokens=40, temperature=0.0, ignore_eos=True, repetition_penalty=1.3)


def changed(**changes: object) -> SamplingParameters:
    return msgspec.structs.replace(GREEDY, **changes)


async def at_every_cut(
    engine: Engine, sampling: SamplingParameters, prompt: Prompt = WORDS
) -> list[EngineOutput]:
    """Asserts that every cut goes on exactly; returns the uninterrupted outputs."""
    whole = await collect(engine, sampling, prompt)
    all_tokens, all_text = tokens(whole), text(whole)
    counts = list(accumulate(len(output.token_ids) for output in whole))
    texts = list(accumulate(output.text for output in whole))

    async def check(cut: int, emitted_text: str) -> None:
        emitted = Emitted(token_ids=tuple(all_tokens[:cut]), text=emitted_text)
        more = await collect(engine, sampling, prompt, emitted=emitted)
        where = f"cut at {cut} after {emitted_text!r}"
        assert [*emitted.token_ids, *tokens(more)] == all_tokens, where
        assert emitted.text + text(more) == all_text, where
        reasons = [output.finish_reason for output in more]
        assert reasons == [None] * (len(more) - 1) + [whole[-1].finish_reason], where
        assert {output.prompt_tokens for output in more} == {whole[0].prompt_tokens}
        if cut == len(all_tokens):
            assert len(more) == 1, where

    checks = []
    for cut in range(len(all_tokens) + 1):
        # Deltas of which all tokens lie before the cut; and the case that all text was lost.
        shown = [shown for count, shown in zip(counts, texts, strict=True) if count <= cut]
        checks += [check(cut, shown[-1] if shown else ""), check(cut, "")]
    await asyncio.gather(*checks)
    return whole


async def test_a_greedy_answer(engine: Engine) -> None:
    whole = await at_every_cut(engine, GREEDY)
    assert len(tokens(whole)) == 40


async def test_characters_cut_over_tokens(engine: Engine) -> None:
    whole = await at_every_cut(engine, changed(max_tokens=60), MANY_BYTES)
    assert any(output.token_ids and not output.text for output in whole)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_invalid_bytes(vllm_engine: Engine) -> None:
    whole = await at_every_cut(vllm_engine, changed(max_tokens=80))
    assert "\ufffd" in text(whole)


@pytest.mark.parametrize("prompt", [WORDS, MANY_BYTES])
@pytest.mark.parametrize("include_stop", [False, True])
@pytest.mark.parametrize("length", [1, 4, 9])
async def test_stop_strings(engine: Engine, prompt: str, include_stop: bool, length: int) -> None:
    uninterrupted = text(await collect(engine, GREEDY, prompt))
    start = len(uninterrupted) // 2
    stop = uninterrupted[start : start + length]
    sampling = changed(stop=("never\n", stop), include_stop=include_stop)
    whole = await at_every_cut(engine, sampling, prompt)
    end = uninterrupted.index(stop) + (length if include_stop else 0)
    assert text(whole) == uninterrupted[:end]
    assert whole[-1].finish_reason == "stop"


async def test_a_stop_string_that_never_comes(engine: Engine) -> None:
    whole = await at_every_cut(engine, changed(stop=("something never said",)))
    assert whole[-1].finish_reason == "length"
    assert text(whole) == text(await collect(engine, GREEDY))


@pytest.mark.parametrize("include_stop", [False, True])
async def test_stop_tokens(engine: Engine, include_stop: bool) -> None:
    all_tokens = tokens(await collect(engine, GREEDY))
    sampling = changed(stop_token_ids=(all_tokens[20],), include_stop=include_stop)
    whole = await at_every_cut(engine, sampling)
    assert tokens(whole) == all_tokens[: all_tokens.index(all_tokens[20]) + 1]
    assert whole[-1].finish_reason == "stop"


async def test_min_tokens(engine: Engine) -> None:
    uninterrupted = text(await collect(engine, GREEDY))
    whole = await at_every_cut(engine, changed(stop=(uninterrupted[2:4],), min_tokens=15))
    assert len(tokens(whole)) > 15


async def test_the_end_of_the_context(engine: Engine) -> None:
    prompt = "the quick brown fox " * 40
    count = engine.check(prompt, GREEDY)
    assert count > 150
    whole = await collect(engine, changed(max_tokens=500), prompt)
    assert count + len(tokens(whole)) == 256
    for cut in (10, len(tokens(whole)) - 1, len(tokens(whole))):
        emitted = Emitted(token_ids=tuple(tokens(whole)[:cut]), text="")
        more = await collect(engine, changed(max_tokens=500), prompt, emitted=emitted)
        assert tokens(more) == tokens(whole)[cut:]
        assert text(more) == text(whole)
        assert more[-1].finish_reason == "length"


async def test_a_conversation(engine: Engine) -> None:
    messages = (
        ChatMessage(role="user", content=WORDS),
        ChatMessage(role="assistant", content="yes"),
    )
    await at_every_cut(engine, changed(max_tokens=10), messages)


async def test_logprobs_of_the_new_tokens_only(engine: Engine) -> None:
    whole = await collect(engine, changed(logprobs=1))
    emitted = Emitted(token_ids=tuple(tokens(whole)[:7]), text="")
    more = await collect(engine, changed(logprobs=1), emitted=emitted)
    assert text(more) == text(whole)
    reported = [entry.token_id for output in more for entry in output.logprobs]
    assert reported == tokens(whole)[7:]


async def test_sampled_answers_go_on_within_their_limit(engine: Engine) -> None:
    sampling = changed(temperature=1.0, seed=5)
    whole = await collect(engine, sampling)
    emitted = Emitted(token_ids=tuple(tokens(whole)[:7]), text="")
    runs = [await collect(engine, sampling, emitted=emitted) for _ in range(2)]
    assert tokens(runs[0]) == tokens(runs[1])
    assert len(tokens(runs[0])) == 33


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2, "temperature": 1.0},
        {"beam_width": 2, "repetition_penalty": 1.0},
        {"presence_penalty": 0.5},
        {"structured": StructuredOutput(choice=("a",)), "ignore_eos": False},
    ],
)
async def test_what_cannot_be_continued_is_refused(
    engine: Engine, changes: dict[str, object]
) -> None:
    with pytest.raises(RequestRefused) as caught:
        await collect(engine, changed(**changes), emitted=Emitted(token_ids=(5,), text=""))
    assert caught.value.code == "invalid_sampling"


@pytest.mark.parametrize(
    "emitted",
    [Emitted(token_ids=(49_999,), text=""), Emitted(token_ids=(), text="other")],
)
async def test_what_another_model_emitted_is_a_mismatch(engine: Engine, emitted: Emitted) -> None:
    with pytest.raises(EmittedMismatch):
        await collect(engine, GREEDY, emitted=emitted)


async def test_a_continued_stream_left_early_frees_the_engine(engine: Engine) -> None:
    whole = await collect(engine, GREEDY)
    emitted = Emitted(token_ids=tuple(tokens(whole)[:3]), text="")
    stream: AsyncIterator[EngineOutput] = engine.generate(
        "left", WORDS, changed(max_tokens=200), "default@1", emitted=emitted
    )
    await anext(stream)
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.load().running + engine.load().waiting == 0
