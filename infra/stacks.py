"""Where a process is, told when it is asked: for who must find out why it hangs."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

_LINKS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


def tell_stacks_when_asked(loop: asyncio.AbstractEventLoop | None = None) -> None:
    """On SIGUSR1, to standard error: the stack of each thread and, of ``loop``, of each task.

    Threads are told even where the loop is blocked; tasks, once it is not.
    """
    if loop is not None:
        loop.add_signal_handler(signal.SIGUSR1, write_tasks, loop)
    faulthandler.register(signal.SIGUSR1, chain=loop is not None)


def write_tasks(loop: asyncio.AbstractEventLoop, stream: TextIO | None = None) -> None:
    """Each task's stack, outermost first, and what it waits for. By default to standard error."""
    tasks = sorted(asyncio.all_tasks(loop), key=asyncio.Task.get_name)
    lines = [f"{len(tasks)} tasks"]
    for task in tasks:
        lines += [f"Task {task.get_name()}:", *(f"  {line}" for line in _stack(task.get_coro()))]
    print("\n".join(lines), file=stream or sys.stderr, flush=True)


def _stack(waiting: Any) -> Iterator[str]:
    """``asyncio``'s own shows the outermost coroutine alone."""
    while waiting is not None:
        for frame_of, next_of in _LINKS:
            if hasattr(waiting, frame_of):
                frame: FrameType | None = getattr(waiting, frame_of)
                if frame is not None:
                    code = frame.f_code
                    yield f'File "{code.co_filename}", line {frame.f_lineno} in {code.co_qualname}'
                waiting = getattr(waiting, next_of)
                break
        else:
            # Steps of asynchronous generators and awaiting wrappers do not tell whose they are.
            held = [] if isinstance(waiting, asyncio.Future) else gc.get_referents(waiting)
            following = [one for one in held if _is_known(one)]
            if not following:
                yield f"waits for {waiting!r:.200}"
                return
            waiting = following[0]


def _is_known(one: Any) -> bool:
    return isinstance(one, asyncio.Future) or inspect.isasyncgen(one) or inspect.iscoroutine(one)
