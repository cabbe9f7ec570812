"""An engine that is gone says so, at once and for ever."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from multiprocessing.process import BaseProcess

import pytest

from stream_workers.engine import EngineDead, EngineOutput
from stream_workers.engine_memory import MemoryEngine

from .answers import GREEDY, LONG, collect, new_id
from .conftest import WORDS, Weights, build_vllm

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_the_engine_in_memory_can_be_told_to_die() -> None:
    engine = MemoryEngine(version="default@1")
    stream = engine.generate(new_id(), WORDS, LONG, "default@1")
    await anext(stream)
    assert not engine.dead
    engine.dead = True
    with pytest.raises(EngineDead):
        await anext(stream)
    with pytest.raises(EngineDead):
        await collect(engine, GREEDY)


async def drained(stream: AsyncIterator[EngineOutput], started: asyncio.Event) -> None:
    async for _ in stream:
        started.set()


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_killed_engine_core_is_a_dead_engine(weights: Weights) -> None:
    before = set(multiprocessing.active_children())
    engine = build_vllm(weights)
    try:
        (core,) = set(multiprocessing.active_children()) - before
        started = [asyncio.Event() for _ in range(3)]
        running = [
            asyncio.create_task(drained(engine.generate(new_id(), WORDS, LONG, "default@1"), event))
            for event in started
        ]
        await asyncio.gather(*(event.wait() for event in started))
        # Stopped first, so that the switch is under way when the core dies.
        stop(core)
        switch = asyncio.create_task(engine.switch(str(weights.second), "default@2", "keep"))
        await asyncio.sleep(0)
        assert not engine.dead
        os.kill(core_pid(core), signal.SIGKILL)
        async with asyncio.timeout(20):
            ended = await asyncio.gather(*running, switch, return_exceptions=True)
        assert [type(error) for error in ended] == [EngineDead] * 4
        assert engine.dead
        for _ in range(2):
            async with asyncio.timeout(5):
                with pytest.raises(EngineDead):
                    await collect(engine, GREEDY)
        with pytest.raises(EngineDead):
            await engine.switch(str(weights.second), "default@2", "drain")
        await engine.abort("anyone")
        engine.load()
    finally:
        await engine.close()
        await engine.close()
    assert core not in multiprocessing.active_children()
    assert engine._llm.engine_core.resources.ctx.closed


def core_pid(core: BaseProcess) -> int:
    assert core.pid is not None
    return core.pid


def stop(core: BaseProcess) -> None:
    os.kill(core_pid(core), signal.SIGSTOP)
