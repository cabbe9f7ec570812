"""How far something long is: the bar that a command draws, and the lines that a service logs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from trainer.training import Progress as TrainingProgress

log = logging.getLogger(__name__)

Say = Callable[[str, float, float], None]
"""Told what is done, how much of it, out of how much; 0: nobody knows."""


@contextmanager
def bar(*columns: ProgressColumn, quiet: bool) -> Iterator[Say]:
    """On standard error, the words first, where that is a terminal."""
    console = Console(stderr=True)
    disabled = quiet or not console.is_terminal
    with Progress(
        TextColumn("{task.description}"), *columns, console=console, disable=disabled
    ) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(
            task, description=what, completed=done, total=total or None
        )


@contextmanager
def training_bar() -> Iterator[Callable[[TrainingProgress], None]]:
    """Of a round's steps, on a terminal; elsewhere a :class:`ProgressLog`. Gone when it ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLog()
        return
    columns = (
        TextColumn("training: step {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.3f}, {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        # Unseen until there is a step to tell of.
        task = bars.add_task("", total=1, loss=0.0, speed=0.0, visible=False)
        yield lambda now: bars.update(
            task,
            completed=now.step,
            total=max(now.steps, now.step),
            loss=now.loss,
            speed=now.tokens_per_s,
            visible=True,
        )


class ProgressLog:
    """A line of progress every few seconds."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, progress: TrainingProgress) -> None:
        now = time.monotonic()
        if now - self._last >= self.EVERY_S:
            self._last = now
            log.info(
                "step %d of %d, loss %.3f, %.0f tokens/s, %.0f s to go",
                progress.step,
                progress.steps,
                progress.loss,
                progress.tokens_per_s,
                progress.eta_s,
            )
