"""A copy of the project to alter: its packages, its unit tests, and a configuration of its own.

mutmut alters functions and leaves decorated ones alone. Much of the core is properties, so in the
copy each is written as a function that a property is made of: ``base = property(_of_base)``.
"""

from __future__ import annotations

import ast
import json
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

PACKAGES = ("infra", "observability", "producers", "stream_workers", "trainer")
CONFIGURATION = """\
[tool.mutmut]
source_paths = {packages}
only_mutate = {modules}
also_copy = ["benchmarks"]
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {options}
timeout_constant = 1.0
timeout_multiplier = 6.0
track_dependencies = false
use_git_change_detection = false

[tool.pytest.ini_options]
addopts = "--strict-markers --import-mode=importlib -p no:cacheprovider -p no:xdist"
asyncio_mode = "auto"
asyncio_default_fixture_loop_scope = "function"
timeout = 0
filterwarnings = {warnings}
markers = ["kafka", "vllm", "docker", "gpu", "slow"]
"""


def make(
    tree: Path,
    root: Path,
    *,
    modules: Sequence[str],
    tests: Sequence[str],
    without: Sequence[str],
) -> None:
    """A new copy of ``root`` in ``tree``, in which ``modules`` are to be altered."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    shutil.copy(Path(__file__).with_name("tree_conftest.py"), tree / "tests" / "conftest.py")
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    (tree / "pyproject.toml").write_text(
        CONFIGURATION.format(
            packages=json.dumps(PACKAGES),
            modules=json.dumps(list(modules)),
            tests=json.dumps(list(tests)),
            options=json.dumps([f"--deselect={test}" for test in without]),
            warnings=json.dumps(pyproject["tool"]["pytest"]["ini_options"]["filterwarnings"]),
        )
    )


def open_properties(tree: Path, modules: Iterable[str]) -> None:
    """Write the properties of ``modules`` so that they are altered too."""
    for module in modules:
        path = tree / module
        path.write_text(opened(path.read_text()))


def opened(source: str) -> str:
    """The same program, each ``@property`` a function of its own and a property made of it."""
    lines = source.splitlines()
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and [ast.unparse(one) for one in node.decorator_list] == ["property"]
    ]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        assert node.end_lineno is not None
        indent = " " * node.col_offset
        lines.insert(node.end_lineno, f"{indent}{node.name} = property(_of_{node.name})")
        definition = node.lineno - 1
        lines[definition] = lines[definition].replace(f"def {node.name}(", f"def _of_{node.name}(")
        del lines[node.decorator_list[0].lineno - 1]
    return "\n".join(lines) + "\n"


_LEFT_OUT = (
    "__pycache__",
    "deploy",
    "static",
    "integration",
    "e2e",
    "drills",
    "mutation",
    "results",
)
