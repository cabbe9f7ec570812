"""What the pins rely on: workarounds that should go once their reason is gone."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_fausts_command_line_works_with_the_pinned_click() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "faust", "--help"], capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert "worker" in finished.stdout


@pytest.mark.filterwarnings("default")
def test_faust_still_miscounts_offsets_acked_out_of_order() -> None:
    """When this fails, Faust is mended and the worker's own tracker may be looked at again."""
    code = """
import faust
from faust.types import TP
app = faust.App("t", broker="kafka://127.0.0.1:1", store="memory://")
consumer = app.consumer
tp = TP("topic", 0)
consumer._acked[tp] = [1, 2, 3, 4, 5]
consumer._committed_offset[tp] = None
print(consumer._new_offset(tp))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    # Offset 0 is still in flight: anything but None loses it in a crash.
    assert finished.stdout.strip().splitlines()[-1] == "6", finished.stdout + finished.stderr
