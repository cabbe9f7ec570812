"""What is written to a terminal."""

from __future__ import annotations

from infra.text import columns, one_line


def test_columns_are_as_wide_as_their_widest_cell_and_end_with_no_spaces() -> None:
    rows = [("NAME", "COUNT", "WHY"), ("a", "7", ""), ("longer", "1,000", "said so")]
    assert columns(rows, right=(1,)) == [
        "NAME    COUNT  WHY",
        "a           7",
        "longer  1,000  said so",
    ]


def test_a_strangers_text_is_one_line_that_steers_no_terminal() -> None:
    assert one_line("a\x1b[31m\nb", 80) == "a\ufffd[31m\ufffdb"
    assert one_line("1234567", 5) == "1234…"
    assert one_line("12345", 5) == "12345"
