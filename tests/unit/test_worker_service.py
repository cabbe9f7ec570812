"""A worker that is told to stop, or whose engine dies, while it still takes its partitions over."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from stream_workers.service import _Worker


class App:
    """Of Faust's, which has no broker: it never starts."""

    def __init__(self) -> None:
        self.starting = asyncio.Event()
        self.stopped = False
        self.cancelled = False

    async def start(self) -> None:
        self.starting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def stop(self) -> None:
        self.stopped = True


def make(app: App) -> tuple[_Worker, MagicMock]:
    switcher = MagicMock()
    dispatcher: Any = SimpleNamespace(drain=AsyncMock(return_value=True))
    failure = asyncio.get_running_loop().create_future()
    return _Worker(app, dispatcher, switcher, failure, []), switcher


async def test_a_worker_that_has_not_started_yet_stops_when_it_is_told_to() -> None:
    app, stop = App(), asyncio.Event()
    worker, switcher = make(app)
    serving = asyncio.create_task(worker.serve(stop, 1.0))
    await app.starting.wait()
    stop.set()
    await asyncio.wait_for(serving, 10)
    assert app.stopped
    assert app.cancelled
    assert [call.args for call in switcher.announce.call_args_list] == [("draining",), ("stopped",)]


async def test_what_fails_while_a_worker_starts_ends_it() -> None:
    app = App()
    worker, switcher = make(app)
    serving = asyncio.create_task(worker.serve(asyncio.Event(), 1.0))
    await app.starting.wait()
    worker.failure.set_exception(RuntimeError("the engine has ended"))
    with pytest.raises(RuntimeError, match="the engine has ended"):
        await asyncio.wait_for(serving, 10)
    assert app.stopped
    switcher.announce.assert_called_once_with("failed")
