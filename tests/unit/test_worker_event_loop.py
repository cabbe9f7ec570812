"""The worker's loop ends with the worker."""

from __future__ import annotations

import asyncio

import pytest

from stream_workers.event_loop import run


async def _stubborn() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


def test_a_task_that_takes_no_notice_of_being_cancelled_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left = []

    async def main() -> None:
        left.append(asyncio.create_task(_stubborn()))
        await asyncio.sleep(0)

    assert not run(main(), patience_s=0.05)
    assert not left[0].done()
    assert "1 tasks did not end within" in caplog.text
    loop = left[0].get_loop()
    assert not loop.is_closed()
    # Let it go, so that nothing complains of it later.
    left[0].get_coro().close()  # type: ignore[union-attr]
    loop.close()


def test_what_ends_when_told_is_waited_for_and_the_loop_is_closed() -> None:
    tasks: list[asyncio.Task[None]] = []
    ended = []

    async def orderly() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def main() -> None:
        tasks.append(asyncio.create_task(orderly()))
        await asyncio.sleep(0)

    assert run(main())
    assert ended == [True]
    assert tasks[0].get_loop().is_closed()


def test_an_error_of_the_worker_is_passed_on() -> None:
    async def main() -> None:
        raise LookupError("no version")

    with pytest.raises(LookupError, match="no version"):
        run(main())
