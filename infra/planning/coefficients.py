"""The numbers that plans rest on, each with its unit, its origin and its date. Knows no formula."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from infra.contracts.errors import ConfigurationError

FILE = "coefficients.toml"

Basis = Literal["given", "measured", "published", "assumed"]
BASES: tuple[Basis, ...] = ("given", "measured", "published", "assumed")
"""From the firmest to the weakest. ``given``: by whoever asks for the plan."""

Text = Annotated[str, Meta(min_length=1)]


class Coefficient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number. ``source`` says where it can be looked up or measured again.

    ``pointer``: its place in a result of the benchmarks, ``FILE#key/key``; several, separated by
    spaces, where it was worked out from several. ``as_of``: when it was measured or looked up.
    """

    id: Text
    value: float
    unit: Text
    basis: Basis
    source: Text
    as_of: Annotated[str, Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    note: str = ""
    pointer: str = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    coefficient: tuple[Coefficient, ...]


@dataclass(frozen=True)
class Coefficients:
    """By id. A missing one is a mistake of the code, and a KeyError."""

    by_id: Mapping[str, Coefficient]

    def __getitem__(self, name: str) -> Coefficient:
        return self.by_id[name]

    def __iter__(self) -> Iterator[Coefficient]:
        return iter(self.by_id.values())

    def get(self, name: str) -> Coefficient | None:
        """``None`` where there is none, such as a rate that a GPU does not have."""
        return self.by_id.get(name)

    def below(self, prefix: str) -> dict[str, Coefficient]:
        """Those whose ids begin with ``prefix``, by the rest of the id."""
        return {
            name.removeprefix(prefix): one
            for name, one in self.by_id.items()
            if name.startswith(prefix)
        }

    def replaced(self, values: Mapping[str, float]) -> Coefficients:
        """With values of whoever plans. Raises ConfigurationError for an unknown id."""
        for name in values:
            if name not in self.by_id:
                near = get_close_matches(name, self.by_id, n=3)
                hint = f"; did you mean {', '.join(near)}?" if near else ""
                raise ConfigurationError(f"no coefficient {name!r}{hint}")
        return Coefficients(
            {
                name: msgspec.structs.replace(
                    one, value=values[name], basis="given", source="--set", note=""
                )
                if name in values
                else one
                for name, one in self.by_id.items()
            }
        )

    @property
    def accelerators(self) -> tuple[str, ...]:
        """What ``--gpu`` accepts."""
        names = (name.split(".")[1] for name in self.by_id if name.startswith("gpu."))
        return tuple(dict.fromkeys(names))


@cache
def load_coefficients() -> Coefficients:
    """Of this package. Raises ConfigurationError if the file is not what it should be."""
    return parse(files(__package__).joinpath(FILE).read_text("utf-8"))


def parse(text: str) -> Coefficients:
    """Raises ConfigurationError: not TOML, a field missing or unknown, or an id given twice."""
    try:
        found = msgspec.convert(tomllib.loads(text), _File).coefficient
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigurationError(f"{FILE}: {error}") from error
    by_id: dict[str, Coefficient] = {}
    for one in found:
        if one.basis == "given":
            raise ConfigurationError(f"{FILE}: {one.id} must be measured, published or assumed")
        if one.id in by_id:
            raise ConfigurationError(f"{FILE}: {one.id} is given twice")
        by_id[one.id] = one
    return Coefficients(by_id)
