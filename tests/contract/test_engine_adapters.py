"""LoRA adapters beside the weights: what every engine does with them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from infra.contracts.events.generation import SamplingParameters
from stream_workers.engine import Displaced, Emitted, Engine, EngineOutput, SwitchFailed
from stream_workers.smoke import smoke
from tests.conftest import make_adapter

from .answers import GREEDY, LONG, collect, new_id, tokens
from .conftest import WORDS, Engines, Weights

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def said(engine: Engine, version: str, sampling: SamplingParameters = GREEDY) -> list[int]:
    """The tokens of an answer that says it is of ``version`` and no other."""
    outputs = await collect(engine, sampling, version=version)
    assert {output.version for output in outputs} == {version}
    return tokens(outputs)


async def test_adapters_answer_beside_the_weights(engine: Engine, weights: Weights) -> None:
    plain = await said(engine, "default@1")
    one, two = (str(path) for path in weights.adapters)
    await engine.load_adapter(one, "default@2")
    await engine.load_adapter(two, "default@3")
    assert engine.adapters == ("default@2", "default@3")
    versions = ("default@1", "default@2", "default@3") * 4
    answers = await asyncio.gather(*(said(engine, version) for version in versions))
    assert answers[0] == plain
    assert len({tuple(answer) for answer in answers}) == 3
    assert answers[:3] * 4 == answers
    await engine.unload_adapter("default@3", "drain")
    assert engine.adapters == ("default@2",)
    assert await said(engine, "default@2") == answers[1]


async def test_an_adapter_is_unloaded_when_its_last_request_has_ended(
    engine: Engine, weights: Weights
) -> None:
    await engine.load_adapter(str(weights.adapters[0]), "default@2")
    started, outputs = asyncio.Event(), list[EngineOutput]()

    async def run() -> None:
        async for output in engine.generate(new_id(), WORDS, LONG, "default@2"):
            outputs.append(output)
            started.set()

    running = asyncio.ensure_future(run())
    await started.wait()
    await engine.unload_adapter("default@2", "drain")
    await running
    assert {output.version for output in outputs} == {"default@2"}
    assert outputs[-1].finish_reason == "length"
    assert engine.adapters == ()


async def test_requests_of_an_adapter_that_goes_at_once_can_go_on_elsewhere(
    engine: Engine, weights: Weights
) -> None:
    await engine.load_adapter(str(weights.adapters[0]), "default@2")
    started, outputs = asyncio.Event(), list[EngineOutput]()

    async def run() -> None:
        async for output in engine.generate(new_id(), WORDS, LONG, "default@2"):
            outputs.append(output)
            started.set()

    running = asyncio.ensure_future(run())
    await started.wait()
    await engine.unload_adapter("default@2", "keep")
    with pytest.raises(Displaced):
        await running
    emitted = Emitted(
        token_ids=tuple(tokens(outputs)), text="".join(output.text for output in outputs)
    )
    assert 0 < len(emitted.token_ids) < LONG.max_tokens
    rest = await collect(engine, LONG, version="default@1", emitted=emitted)
    assert {output.version for output in rest} == {"default@1"}
    assert len(emitted.token_ids) + len(tokens(rest)) == LONG.max_tokens
    await engine.load_adapter(str(weights.adapters[0]), "default@2")
    assert len(await said(engine, "default@2", LONG)) == LONG.max_tokens


async def test_an_unknown_adapter_changes_nothing(
    engine: Engine, weights: Weights, tmp_path: Path
) -> None:
    before = await said(engine, "default@1")
    with pytest.raises(SwitchFailed):
        await engine.load_adapter(str(tmp_path / "none"), "default@2")
    await engine.unload_adapter("default@2", "drain")
    assert engine.adapters == ()
    assert await said(engine, "default@1") == before


async def test_there_is_room_for_so_many(engine: Engine, weights: Weights) -> None:
    path = str(weights.adapters[0])
    for version in ("default@2", "default@2", "default@3"):
        await engine.load_adapter(path, version)
    with pytest.raises(SwitchFailed, match="no room for another adapter: 2 at most"):
        await engine.load_adapter(path, "default@4")
    await engine.unload_adapter("default@2", "drain")
    await engine.load_adapter(path, "default@4")
    assert engine.adapters == ("default@3", "default@4")


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_an_adapter_says_what_its_merged_weights_say(
    engines: Engines, weights: Weights
) -> None:
    engine = await engines.vllm(weights)
    await engine.load_adapter(str(weights.adapters[0]), "default@2")
    beside = await said(engine, "default@2", LONG)
    await engine.unload_adapter("default@2", "drain")
    await engine.switch(str(weights.merged), "default@5", "keep")
    assert await said(engine, "default@5", LONG) == beside


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_one_that_does_not_fit_leaves_vllm_as_it_was(
    engines: Engines, weights: Weights, tmp_path: Path
) -> None:
    engine = await engines.vllm(weights)
    before = await said(engine, "default@1")
    much = make_adapter(weights.first, tmp_path / "much", seed=1, rank=16)
    with pytest.raises(SwitchFailed, match="rank 16"):
        await engine.load_adapter(str(much), "default@2")
    (tmp_path / "broken").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        whole = (weights.adapters[0] / name).read_bytes()
        (tmp_path / "broken" / name).write_bytes(whole if name.endswith("json") else whole[:-9])
    with pytest.raises(SwitchFailed):
        await engine.load_adapter(str(tmp_path / "broken"), "default@3")
    await engine.load_adapter(str(weights.adapters[0]), "default@4")
    assert await said(engine, "default@4") != before
    assert await said(engine, "default@1") == before


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_weights_that_compute_no_numbers_fail_their_first_generation(
    engines: Engines, weights: Weights, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    engine = await engines.vllm(weights)
    await smoke(engine, "default@1")
    shutil.copytree(weights.first, tmp_path / "broken")
    tensors = load_file(weights.first / "model.safetensors")
    tensors["model.norm.weight"] *= float("nan")
    save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    await engine.switch(str(tmp_path / "broken"), "default@2", "keep")
    with pytest.raises(SwitchFailed, match="default@2"):
        await smoke(engine, "default@2")
    await engine.switch(str(weights.first), "default@1", "keep")
    await smoke(engine, "default@1")
