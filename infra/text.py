"""Text for people at a terminal: columns, and what strangers wrote."""

from __future__ import annotations

from collections.abc import Container, Sequence


def columns(rows: Sequence[Sequence[str]], *, right: Container[int] = ()) -> list[str]:
    """A line a row, cells as wide as the widest of their column; those of ``right`` flush right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def one_line(text: str, most: int) -> str:
    """At most so many characters, as one line that a terminal shows and obeys in nothing."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown)
