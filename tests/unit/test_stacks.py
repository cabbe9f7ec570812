"""What a process tells of itself when it is asked."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys

from infra.stacks import write_tasks

HANGS = """
import asyncio
from infra.stacks import tell_stacks_when_asked

async def deep():
    await asyncio.Event().wait()

async def main():
    tell_stacks_when_asked(asyncio.get_running_loop())
    asyncio.create_task(deep(), name="the-one-that-hangs")
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_tasks_stack_goes_down_to_what_it_waits_for() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def each() -> None:
        async for _ in generator():
            pass

    async def generator():  # type: ignore[no-untyped-def]
        await inner()
        yield

    task = asyncio.create_task(each(), name="walker")
    await asyncio.sleep(0)
    told = io.StringIO()
    write_tasks(asyncio.get_running_loop(), told)
    task.cancel()
    text = told.getvalue().partition("Task walker:")[2]
    assert text.index(".each") < text.index(".inner") < text.index("Event.wait")
    assert "waits for <" in text


def test_a_process_that_hangs_tells_threads_and_tasks_and_goes_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "up\n"
        for _ in range(2):
            child.send_signal(signal.SIGUSR1)
            said = ""
            while "in deep" not in said:
                said += (line := child.stderr.readline())
                assert line
            assert "Current thread" in said
            assert "Task the-one-that-hangs:" in said
        child.kill()
