"""What every engine does: the one in memory and vLLM's."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import ChatMessage, SamplingParameters
from stream_workers.engine import Engine, EngineLoad, EngineOutput, Prompt, SwitchFailed

from .answers import GREEDY, LONG, collect, new_id, tokens
from .conftest import WORDS, Weights

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_deltas_end_with_a_reason(engine: Engine) -> None:
    outputs = await collect(engine, GREEDY)
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason == "length"
    assert len(tokens(outputs)) == 12
    assert "".join(output.text for output in outputs)
    assert {output.version for output in outputs} == {"default@1"}
    assert outputs[0].prompt_tokens == engine.check(WORDS, GREEDY)


async def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    sampling = SamplingParameters(max_tokens=12, temperature=1.0, seed=3, ignore_eos=True)
    assert tokens(await collect(engine, sampling)) == tokens(await collect(engine, sampling))


async def test_many_requests_run_side_by_side(engine: Engine) -> None:
    runs = await asyncio.gather(*(collect(engine, GREEDY, f"{WORDS} {n}") for n in range(24)))
    assert all(len(tokens(outputs)) == 12 for outputs in runs)


async def test_closing_the_iterator_frees_the_engine(engine: Engine) -> None:
    stream = engine.generate(new_id(), WORDS, LONG, "default@1")
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(tokens(await collect(engine, GREEDY))) == 12


async def test_aborting_an_unknown_request_is_harmless(engine: Engine) -> None:
    await engine.abort("nobody")
    assert await collect(engine, GREEDY)


async def test_a_switch_keeps_requests_in_flight_and_names_both_versions(
    engine: Engine, weights: Weights
) -> None:
    started = asyncio.Event()
    outputs: list[EngineOutput] = []

    async def run() -> None:
        async for out in engine.generate(new_id(), WORDS, LONG, "default@1"):
            outputs.append(out)
            started.set()

    task = asyncio.create_task(run())
    await started.wait()
    pause_ms = await engine.switch(str(weights.second), "default@2", "keep")
    await task
    assert pause_ms >= 0
    assert len(tokens(outputs)) == 120
    assert [outputs[0].version, outputs[-1].version] == ["default@1", "default@2"]


async def test_new_weights_answer_differently(engine: Engine, weights: Weights) -> None:
    before = tokens(await collect(engine, GREEDY))
    await engine.switch(str(weights.second), "default@2", "keep")
    after = tokens(await collect(engine, GREEDY, version="default@2"))
    await engine.switch(str(weights.first), "default@1", "drain")
    again = tokens(await collect(engine, GREEDY))
    assert before != after
    assert before == again


async def test_a_failed_switch_leaves_the_old_version_serving(
    engine: Engine, tmp_path: Path
) -> None:
    before = tokens(await collect(engine, GREEDY))
    with pytest.raises(SwitchFailed):
        await engine.switch(str(tmp_path / "missing"), "default@9", "keep")
    outputs = await collect(engine, GREEDY)
    assert tokens(outputs) == before
    assert outputs[-1].version == "default@1"


@pytest.mark.parametrize(
    ("code", "prompt", "sampling"),
    [
        ("empty_prompt", "", GREEDY),
        ("prompt_too_long", "word " * 600, GREEDY),
        ("invalid_sampling", WORDS, SamplingParameters(temperature=-1.0)),
        ("invalid_sampling", WORDS, SamplingParameters(top_p=2.0)),
        ("invalid_sampling", WORDS, SamplingParameters(max_tokens=0)),
        ("empty_prompt", (), GREEDY),
        ("prompt_too_long", (ChatMessage(role="user", content="word " * 600),), GREEDY),
    ],
)
async def test_impossible_requests_are_refused_with_a_reason(
    engine: Engine, code: str, prompt: Prompt, sampling: SamplingParameters
) -> None:
    with pytest.raises(RequestRefused) as caught:
        engine.check(prompt, sampling)
    assert caught.value.code == code
    assert caught.value.message


async def test_load_counts_what_is_unfinished(engine: Engine) -> None:
    idle = engine.load()
    assert (idle.running, idle.waiting, idle.kv_cache_usage) == (0, 0, 0.0)
    assert idle.kv_tokens > 1000
    seen: list[EngineLoad] = []

    async def run() -> None:
        stream = engine.generate(new_id(), WORDS, LONG, "default@1")
        seen.extend([engine.load() async for _ in stream])

    await asyncio.gather(*(run() for _ in range(5)))
    assert max(load.running + load.waiting for load in seen) == 5
    assert max(load.running for load in seen) == 5
    assert 0 < max(load.kv_cache_usage for load in seen) <= 1
    assert engine.load() == idle
    assert not engine.dead


async def test_a_stream_left_early_does_not_count_as_load(engine: Engine) -> None:
    stream = engine.generate(new_id(), WORDS, LONG, "default@1")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    assert engine.load().running + engine.load().waiting == 0
