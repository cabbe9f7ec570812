"""Processes whose wall clock jumps and whose disk is slow, as a file says (``skew.c``)."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path) -> Path:
    """The library to preload. Raises ``CalledProcessError`` where there is no C compiler."""
    library = folder / "skew.so"
    words = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run([*words, "-ldl"], check=True)
    return library


class Skew:
    """Of one process, whose ``environment`` it must have."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.environment = {"LD_PRELOAD": str(library), "PROOF_SKEW": str(file)}
        self.set()

    def set(self, *, clock_s: float = 0.0, disk_s: float = 0.0) -> None:
        """From now on. Without arguments all is as it should be."""
        values = struct.pack("=qq", int(clock_s * 1e9), int(disk_s * 1e6))
        # In place: the process has it mapped.
        with self._file.open("r+b" if self._file.exists() else "w+b") as stream:
            stream.write(values)
