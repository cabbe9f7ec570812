"""The bar that a command draws while something long runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TextColumn

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
