"""A planned number with its formula and with what it rests on. Knows nothing of what is planned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from infra.planning.coefficients import BASES, Basis, Coefficient


@dataclass(frozen=True, kw_only=True)
class Figure:
    """``formula`` has its numbers filled in. ``rests_on``: every coefficient below it, by id."""

    key: str
    label: str
    value: float
    unit: str
    formula: str
    rests_on: frozenset[str] = frozenset()
    basis: Basis = "given"


Ground = Figure | Coefficient


def weakest(grounds: Iterable[Ground]) -> Basis:
    """What a number is worth that was worked out from these."""
    return max((one.basis for one in grounds), key=BASES.index, default="given")


@dataclass
class Sheet:
    """Figures in the order in which they were worked out."""

    title: str
    figures: list[Figure] = field(default_factory=list)

    def add(
        self, key: str, label: str, value: float, unit: str, formula: str, *grounds: Ground
    ) -> Figure:
        """Note one down; ``grounds``: what its formula uses, besides what was given."""
        named = frozenset[str]().union(
            *({one.id} if isinstance(one, Coefficient) else one.rests_on for one in grounds)
        )
        made = Figure(
            key=key,
            label=label,
            value=value,
            unit=unit,
            formula=formula,
            rests_on=named,
            basis=weakest(grounds),
        )
        self.figures.append(made)
        return made

    def __getitem__(self, key: str) -> Figure:
        return next(one for one in self.figures if one.key == key)


_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SCALED = ("B", "B/s", "FLOP/s", "bit/s")


def shown(value: float, unit: str) -> str:
    """Three digits that matter, with a decimal prefix where the unit takes one.

    Times come in seconds and are shown in the unit that reads best.
    """
    if unit == "s":
        return duration(value)
    if unit in _SCALED:
        for scale, prefix in _SCALES:
            if abs(value) >= 0.9995 * scale:
                return f"{number(value / scale)} {prefix}{unit}"
        return f"{number(value)} {unit}"
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Counts in full, everything else to three digits, and next to nothing as that."""
    if 0 < value < 0.001:
        return "<0.001"
    if value == round(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """In milliseconds to days."""
    if seconds < 1:
        return f"{number(1000 * seconds)} ms"
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{number(seconds / size)} {name}"
    return f"{number(seconds)} s"
