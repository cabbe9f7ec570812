"""Every command in README.md and docs/ makes sense; tests/docs_table.py says what runs."""

from __future__ import annotations

import importlib.util
import re

import click
import pytest

from tests.docs import (
    ROOT,
    SHELLS,
    Command,
    blocks,
    check_feedloom,
    commands,
    is_test,
    make_targets,
    pages,
    simple_commands,
    spelled_out,
)
from tests.docs_shell import compare
from tests.docs_table import COMMON, PAGES, PYTHON, Elsewhere, Entry, Instead, entry_of

LANGUAGES = {*SHELLS, "go", "json", "properties", "promql", "python", "text", "toml", "yaml"}
SPAN = re.compile(r"(?<!`)`(feedloom [^`]+)`(?!`)")
ENTRIES: list[tuple[str, str, Entry]] = [
    *((page, prefix, entry) for page, of in PAGES.items() for prefix, entry in of.entries.items()),
    *(("", prefix, entry) for prefix, entry in COMMON.items()),
]
OPERAND = re.compile(r"^(?:[A-Z][A-Z_]*|https?:.*|s3:.*|[\w.-]+=.*|-.*|/.*|\d.*)$")
"""What is no path of the checkout: something of the reader's, an address, an option."""


@pytest.mark.parametrize("page", pages())
def test_a_command_runs_or_it_is_said_why_not(page: str) -> None:
    for command in commands(page):
        assert page in PAGES or entry_of(command)[1] is not None, (
            f"{command.place}: nothing says what becomes of `{command.text}`. Give the page to "
            "PAGES in tests/docs_table.py, and its commands run; or give the command an entry "
            "there: Elsewhere with the reason why it does not run and the test that covers it, "
            "or Instead with what runs in its place."
        )


def test_the_table_speaks_of_commands_and_tests_that_there_are() -> None:
    assert set(PAGES) <= set(pages()), "tests/docs_table.py: a page is gone"
    used = {
        (
            command.page if prefix in PAGES.get(command.page, PAGES["README.md"]).entries else "",
            prefix,
        )
        for page in pages()
        for command in commands(page)
        for prefix in [entry_of(command)[0]]
    }
    for page, prefix, entry in ENTRIES:
        where = f"tests/docs_table.py: {page or 'COMMON'}: {prefix!r}"
        assert (page, prefix) in used, f"{where} is on no page any more"
        if isinstance(entry, Elsewhere):
            assert entry.why
            assert entry.test is None or is_test(entry.test), f"{where}: there is no {entry.test}"


@pytest.mark.parametrize("page", pages())
def test_a_block_has_a_language_that_readers_and_tests_know(page: str) -> None:
    for block in blocks(page):
        known = block.language in LANGUAGES
        assert known, f"{block.place}: {block.language or 'no language'}, not one of {LANGUAGES}"


def test_the_words_of_a_reader_are_on_the_page() -> None:
    for page, treated in PAGES.items():
        texts = [command.text for command in commands(page)]
        for word in treated.words:
            assert any(word in text for text in texts), f"tests/docs_table.py: {page}: {word}"


def test_python_on_a_page_runs() -> None:
    found = [page for page in pages() if any(b.language == "python" for b in blocks(page))]
    assert sorted(PYTHON) == sorted(found), "tests/docs_table.py: PYTHON"


def shown(page: str) -> list[Command]:
    """The commands of a page, each choice of a synopsis by itself, and what runs instead."""
    found = []
    for command in commands(page):
        entry = entry_of(command)[1]
        texts = [
            *spelled_out(command.text),
            *(entry.commands if isinstance(entry, Instead) else ()),
        ]
        found += [Command(page=page, line=command.line, text=text) for text in texts]
    return found


@pytest.mark.parametrize("page", pages())
def test_feedloom_understands_its_words(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in shown(page):
        for words in simple_commands(command.text):
            if words[0] != "feedloom":
                continue
            synopsis = "|" in next(c.text for c in commands(page) if c.line == command.line)
            try:
                check_feedloom(words[1:], monkeypatch)
            except click.MissingParameter:
                assert synopsis, f"{command.place}: {command.text}"
            except click.UsageError as error:
                pytest.fail(f"{command.place}: {command.text}: {error.format_message()}")


@pytest.mark.parametrize("page", pages())
def test_commands_within_a_sentence_are_feedlooms_too(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runbooks have theirs there. Operands may be left out: it is a name more often than a line."""
    fenced = {line for b in blocks(page) for line in range(b.line, b.line + b.text.count("\n") + 1)}
    for number, line in enumerate((ROOT / page).read_text().splitlines(), start=1):
        if number in fenced:
            continue
        for span in SPAN.findall(line):
            for text in spelled_out(span):
                for words in simple_commands(text):
                    try:
                        check_feedloom(words[1:], monkeypatch)
                    except (click.MissingParameter, click.BadOptionUsage):
                        continue
                    except click.UsageError as error:
                        pytest.fail(f"{page}:{number}: `{span}`: {error.format_message()}")


@pytest.mark.parametrize("page", pages())
def test_what_a_command_names_is_there(page: str) -> None:
    for command in shown(page):
        for program, *arguments in simple_commands(command.text):
            where = f"{command.place}: {command.text}"
            if program == "make":
                targets = [word for word in arguments if "=" not in word]
                assert set(targets) <= make_targets(), f"{where}: there is no such target"
            elif program.endswith("python") and arguments[0] == "-m":
                assert importlib.util.find_spec(arguments[1]), f"{where}: no module {arguments[1]}"
            if program in ("sh", "docker", "helm") or "pytest" in arguments:
                folders = [ROOT, ROOT / PAGES[page].folder if page in PAGES else ROOT]
                for word in arguments:
                    if "/" in word and not OPERAND.match(word) and ":" not in word:
                        assert any((folder / word).exists() for folder in folders), (
                            f"{where}: there is no {word}"
                        )


def test_what_the_shell_would_do_is_understood() -> None:
    assert simple_commands("A=1 KEY=$(feedloom keys list) feedloom x > out | grep 'a b' # no") == [
        ["feedloom", "x"],
        ["grep", "a b"],
        ["feedloom", "keys", "list"],
    ]
    assert spelled_out("feedloom models show|diff [--all] 1") == [
        "feedloom models show --all 1",
        "feedloom models diff --all 1",
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("models shadow 2 --weight 5", "No such option"),
        ("modles list", "No such command"),
        ("keys create --tenant me", "name"),
        ("models canary 2 --unit users", "is not one of"),
    ],
)
def test_what_feedloom_would_refuse_is_found(
    words: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(click.UsageError, match=complaint):
        check_feedloom(words.split(), monkeypatch)


def test_what_changes_from_run_to_run_is_passed_over_and_what_does_not_is_held() -> None:
    names: dict[str, str] = {}
    printed = [
        "something",
        "fl_aaaaaaaaaaaa of acme, since 2027-01-01T00:00:00Z",
        "3 of 4   took 9.5 s",
    ]
    shown = ["fl_bbbbbbbbbbbb of acme, since 2026-11-26T02:57:21Z", "...", "3 of 4 took 1.6 s"]
    assert compare(shown, printed, names) is None
    assert names == {"fl_bbbbbbbbbbbb": "fl_aaaaaaaaaaaa"}
    assert compare(["3 of 5 took 1.6 s"], printed, names) == "3 of 5 took 1.6 s"
    assert compare(shown[::-1], printed, names) == shown[0]
    assert compare(["some...of acme"], printed, names) == "some...of acme"
