"""Runs the worker on an event loop that ends with it, whatever is left on the loop.

Without a broker, tasks of Faust's take no notice of being cancelled, and ``asyncio.run`` would wait
for them for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_LOG = logging.getLogger(__name__)

PATIENCE_S = 10.0


def run(main: Coroutine[Any, Any, None], *, patience_s: float = PATIENCE_S) -> bool:
    """As ``asyncio.run``, but a task that does not end within ``patience_s`` is left behind.

    Returns whether all ended. If not, leave with ``os._exit``: a thread that still logs can make
    the interpreter abort as it shuts down.
    """
    runner = asyncio.Runner()
    try:
        runner.run(main)
    finally:
        left = runner.run(_cancel_others(patience_s))
        if left:
            _LOG.warning("%d tasks did not end within %.0f s", left, patience_s)
        else:
            runner.close()
    return not left


async def _cancel_others(patience_s: float) -> int:
    """Returns how many are left."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if not others:
        return 0
    _, left = await asyncio.wait(others, timeout=patience_s)
    return len(left)
