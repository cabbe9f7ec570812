"""What came of altering the core: as a table, as results.json, and in docs/proof.md."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
PAGE = HERE.parent.parent / "docs" / "proof.md"
BEGIN, END = "<!-- the table of the pure core -->", "<!-- the end of the table -->"
UNEXPLAINED = "not explained: a test is missing."
HEAD = ("module", "lines", "covered", "mutants", "killed", "survived", "share")


class Survivor(msgspec.Struct, frozen=True, kw_only=True):
    """An alteration that no test noticed: the lines as they are, and as they were altered."""

    function: str
    before: str
    after: str


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One module's figures. Of ``mutants`` there are, ``tried`` were run, all or a sample.

    ``lines`` with code, of which the tests reach ``covered``. ``killed`` counts those that ran out
    of time, ``slow`` alone; ``unreached`` those in functions that no test calls.
    """

    path: str
    lines: int
    covered: int
    mutants: int = 0
    tried: int = 0
    killed: int = 0
    slow: int = 0
    unreached: int = 0
    survivors: tuple[Survivor, ...] = ()

    @property
    def coverage(self) -> float:
        """Of the lines."""
        return self.covered / self.lines if self.lines else 1.0

    @property
    def share(self) -> float:
        """Killed of those tried."""
        return self.killed / self.tried if self.tried else 1.0


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run."""

    tool: str
    python: str
    seed: int
    modules: tuple[Module, ...]


def problems(modules: Sequence[Module], killed: float, covered: float) -> list[str]:
    """What falls short of what is demanded."""
    found = []
    for one in modules:
        if one.coverage < covered:
            found.append(f"{one.path}: {one.coverage:.0%} of its lines are reached")
        if one.share < killed:
            found.append(f"{one.path}: {one.share:.0%} of its mutants are killed")
    return found


def table(modules: Sequence[Module]) -> str:
    """In Markdown."""
    rows = [[f"`{one.path}`", *_cells(one)] for one in modules]
    rows.append(["all", *_cells(total(modules))])
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def total(modules: Sequence[Module]) -> Module:
    """All of them as one."""
    return Module(
        path="all",
        lines=sum(one.lines for one in modules),
        covered=sum(one.covered for one in modules),
        mutants=sum(one.mutants for one in modules),
        tried=sum(one.tried for one in modules),
        killed=sum(one.killed for one in modules),
    )


def survivors(modules: Sequence[Module], reasons: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """Each with why it lives, in Markdown. One that nobody explained says so."""
    parts = []
    for module in modules:
        if not module.survivors:
            continue
        by_reason: dict[str, list[Survivor]] = {}
        for one in module.survivors:
            why = next(
                (
                    reason
                    for mark, reason in reasons.get(module.path, ())
                    if mark in f"{one.function}\n{one.after}"
                ),
                UNEXPLAINED,
            )
            by_reason.setdefault(why, []).append(one)
        lines = [f"**`{module.path}`**", ""]
        for why, group in by_reason.items():
            names = ", ".join(f"`{name}`" for name in dict.fromkeys(one.function for one in group))
            lines.append(f"- {len(group)} in {names}: {why}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def load_reasons(path: Path = HERE / "survivors.toml") -> dict[str, list[tuple[str, str]]]:
    """Of each module: what a survivor's altered lines hold, and why it survives."""
    found: dict[str, list[tuple[str, str]]] = {}
    for one in tomllib.loads(path.read_text())["survivor"]:
        for mark in one["marks"]:
            found.setdefault(one["module"], []).append((mark, one["why"]))
    return found


def render(results: Results) -> str:
    """What stands between the marks in docs/proof.md."""
    return "\n\n".join(
        [
            BEGIN,
            table(results.modules),
            f"{results.tool}, Python {results.python}, seed {results.seed}.",
            "What survives, and why:",
            survivors(results.modules, load_reasons()),
            END,
        ]
    )


def into_page(page: str, text: str) -> str:
    """The page with what stands between its marks replaced. Raises ValueError without marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("docs/proof.md has no marks for the table of the pure core")
    return before + text + after


def save(new: Results, order: Sequence[str]) -> None:
    """results.json and the table in docs/proof.md: of modules not in ``new``, as they were."""
    found = {one.path: one for one in (load().modules if RESULTS.exists() else ())}
    found |= {one.path: one for one in new.modules}
    modules = tuple(found[path] for path in order if path in found)
    results = msgspec.structs.replace(new, modules=modules)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    PAGE.write_text(into_page(PAGE.read_text(), render(results)))


def load(path: Path = RESULTS) -> Results:
    """The last whole run."""
    return msgspec.json.decode(path.read_bytes(), type=Results)


def _cells(one: Module) -> list[str]:
    tried = f"{one.tried}" if one.tried == one.mutants else f"{one.tried} of {one.mutants}"
    return [
        f"{one.lines}",
        f"{one.coverage:.1%}",
        tried,
        f"{one.killed}",
        f"{one.tried - one.killed}",
        f"{one.share:.1%}",
    ]
