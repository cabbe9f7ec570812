"""Writes the rules and their tests, or says which files differ from the code."""

from __future__ import annotations

from observability.alerts import files
from observability.generated import command

if __name__ == "__main__":
    command(files)()
