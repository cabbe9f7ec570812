"""Which requests count as answered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_workers.answered import AnsweredKeys

KEYS = st.tuples(st.text(max_size=3), st.text(max_size=3))


@given(st.lists(KEYS), st.integers(0, 5))
def test_the_newest_distinct_keys_are_known_and_no_others(
    keys: list[tuple[str, str]], limit: int
) -> None:
    answered = AnsweredKeys(limit)
    model: list[tuple[str, str]] = []
    for key in keys:
        answered.add(key)
        if key not in model:
            model = [*model, key][-limit:] if limit else []
        assert len(answered) == len(model)
        assert {one for one in keys if one in answered} == set(model)


def test_two_ids_are_not_one_text() -> None:
    answered = AnsweredKeys(5)
    answered.add(("a", "bc"))
    assert ("ab", "c") not in answered
    answered.add(("\udcff", ""))
    assert ("\udcff", "") in answered


def test_a_key_is_remembered_in_sixteen_bytes() -> None:
    answered = AnsweredKeys(5)
    answered.add(("a" * 500, "b" * 500))
    assert [len(digest) for digest in answered._digests] == [16]
