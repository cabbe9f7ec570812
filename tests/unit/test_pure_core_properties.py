"""How the pure core is proven: its list, the copies that are altered, and what is reported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutation import report, run, tree

ROOT = Path(__file__).resolve().parents[2]
CORE = run.load_core()


def test_what_is_listed_is_there_and_was_measured() -> None:
    assert list(CORE.samples) == [path for path in CORE.tests if path in CORE.samples]
    for module, tests in CORE.tests.items():
        assert (ROOT / module).is_file()
        assert tests
        assert all((ROOT / test).is_file() for test in tests)
    for test in CORE.without:
        path, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text()
    results = report.load()
    assert [one.path for one in results.modules] == list(CORE.tests)
    assert report.problems(results.modules, CORE.killed, CORE.covered) == []
    for one in results.modules:
        most = CORE.samples.get(one.path, one.mutants)
        assert one.tried == min(most, one.mutants) == one.killed + len(one.survivors)


def test_the_page_says_what_was_measured_and_explains_every_survivor() -> None:
    text = report.render(report.load())
    assert text in report.PAGE.read_text()
    assert report.UNEXPLAINED not in text


def test_core_modules_do_no_io() -> None:
    """Time, randomness, files and threads are passed in."""
    outside = {"asyncio", "os", "pathlib", "random", "socket", "subprocess", "threading", "time"}
    for module in CORE.tests:
        nodes = ast.walk(ast.parse((ROOT / module).read_text()))
        names = {
            name.partition(".")[0]
            for node in nodes
            for name in (
                [one.name for one in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not names & outside, module


@pytest.mark.parametrize("module", CORE.tests)
def test_a_copy_with_its_properties_opened_is_the_same_program(module: str) -> None:
    source = (ROOT / module).read_text()
    opened = tree.opened(source)
    assert "@property" not in opened
    assert _closed(ast.parse(opened)) == ast.dump(ast.parse(source))


def _closed(module: ast.Module) -> str:
    """The program with each opened property put together again."""
    for owner in ast.walk(module):
        if not isinstance(owner, ast.ClassDef):
            continue
        body: list[ast.stmt] = []
        for node in owner.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("property(_of_"):
                made = body[-1]
                assert isinstance(made, ast.FunctionDef)
                assert made.name == f"_of_{ast.unparse(node.targets[0])}"
                made.name = made.name.removeprefix("_of_")
                made.decorator_list = [ast.Name("property", ast.Load())]
            else:
                body.append(node)
        owner.body = body
    return ast.dump(module)


FIGURES = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)),
    max_size=5,
)


@given(FIGURES, st.floats(0, 1), st.floats(0, 1))
def test_whoever_falls_short_is_named(
    figures: list[tuple[int, int, int, int]], killed: float, covered: float
) -> None:
    modules = [
        report.Module(
            path=f"m{number}.py",
            lines=lines,
            covered=min(reached, lines),
            mutants=tried,
            tried=tried,
            killed=min(dead, tried),
        )
        for number, (lines, reached, tried, dead) in enumerate(figures)
    ]
    found = report.problems(modules, killed, covered)
    short = sum(one.covered < covered * one.lines for one in modules)
    short += sum(one.tried > 0 and one.killed < killed * one.tried for one in modules)
    assert abs(len(found) - short) <= sum(
        one.covered == pytest.approx(covered * one.lines)
        or one.killed == pytest.approx(killed * one.tried)
        for one in modules
    )
    rows = report.table(modules).splitlines()
    assert len(rows) == len(modules) + 3
    assert all(row.count("|") == len(report.HEAD) + 1 for row in rows)


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    text = f"{report.BEGIN}\nnew\n{report.END}"
    assert report.into_page(page, text) == f"before\n{text}\nafter\n"
    assert report.into_page(report.into_page(page, text), text) == report.into_page(page, text)
    with pytest.raises(ValueError, match="no marks"):
        report.into_page("nothing", text)
