"""How mutants ended in earlier runs, kept while the module is the same to the letter.

More tests kill no fewer: who only added some need not ask about the dead again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# How pytest ended, as mutmut writes it down.
KILLED = (1, 3)
SLOW = (24, -24, 36, 152, 255)
UNREACHED = (5, 33)


def harvest(place: Path, modules: Iterable[str]) -> dict[str, dict[str, int]]:
    """By module and name, what was killed in earlier runs, the last one included."""
    kept = place / "verdicts.json"
    known: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    tree = place / "tree"
    for meta in tree.glob("mutants/**/*.meta"):
        module = meta.relative_to(tree / "mutants").as_posix().removesuffix(".meta")
        ended = json.loads(meta.read_text())["exit_code_by_key"]
        source = _digest(place.parent.parent / module)
        if not ended or (tree / f"{module}.sha256").read_text() != source:
            continue
        if known.get(module, {}).get("source") != source:
            known[module] = {"source": source, "killed": {}}
        dead = {name: status for name, status in ended.items() if status in (*KILLED, *SLOW)}
        known[module]["killed"] |= dead
    place.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(known))
    return {
        module: known[module]["killed"]
        for module in modules
        if known.get(module, {}).get("source") == _digest(place.parent.parent / module)
    }


def remember(tree: Path, root: Path, modules: Iterable[str]) -> None:
    """Write down of what the tree was made."""
    for module in modules:
        (tree / f"{module}.sha256").write_text(_digest(root / module))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
