"""Writes the dashboards, or says which files differ from the code."""

from __future__ import annotations

from observability.dashboards import files
from observability.generated import command

if __name__ == "__main__":
    command(files)()
