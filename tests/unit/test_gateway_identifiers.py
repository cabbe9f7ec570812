"""Request ids: found by any replica, used by one tenant only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producers.gateway.identifiers import mint, parse


@given(st.text(min_size=1), st.text(min_size=1), st.integers(0, 65_535), st.integers(0, 2**60))
def test_an_id_says_where_and_when_and_whose(
    tenant: str, model: str, partition: int, created: int
) -> None:
    tenant, model = (text.encode(errors="ignore").decode() for text in (tenant, model))
    made = mint("chatcmpl", tenant=tenant, model=model, partition=partition, created_at_ms=created)
    found = parse(made.text)
    assert found == made
    assert found.partition == partition
    assert found.created_at_ms == created
    assert found.belongs_to(tenant)
    assert not found.belongs_to(tenant + "x")
    assert found.model_of(["no", model]) == model
    assert len(made.text) <= 80


@given(st.text())
def test_no_other_text_is_an_id(text: str) -> None:
    assert parse(text) is None
    assert parse("chatcmpl-" + text) is None


@given(st.data())
def test_a_changed_id_is_no_id_or_another_record(data: st.DataObject) -> None:
    made = mint("cmpl", tenant="acme", model="default", partition=3, created_at_ms=1_700_000)
    place = data.draw(st.integers(0, len(made.text) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567=-ABC0189"))
    changed = made.text[:place] + letter + made.text[place + 1 :]
    found = parse(changed)
    # Every id has one spelling, so a changed one finds other records, or none.
    assert found is None or found.text == changed
