"""Garbage collection of a process that serves: what it was started with is not looked at again."""

from __future__ import annotations

import gc

THRESHOLD = 20_000
"""Objects made between two collections of the youngest generation; Python's default is 700."""


def settle() -> None:
    """Call when everything is made that stays. Later collections look at what came after alone.

    A full collection of a worker's or a gateway's heap takes a tenth of a second and more, in
    which nothing else runs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD)
