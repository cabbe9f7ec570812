"""The fold of files and batches: all replicas believe the same, and one runner owns a batch."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.gateway import BatchChanged, FileChanged
from producers.gateway.batches.state import FilesAndBatches, UnknownCursor

FIRST = BatchChanged(
    batch_id="b1",
    tenant="acme",
    revision=0,
    status="validating",
    endpoint="/v1/completions",
    input_file_id="f1",
    created_at_ms=1,
    expires_at_ms=2,
)


def at(revision: int, *, batch_id: str = "b1", **fields: object) -> BatchChanged:
    return msgspec.structs.replace(FIRST, batch_id=batch_id, revision=revision, **fields)


writes = st.lists(
    st.tuples(st.sampled_from(["api", "g1#a", "g2#b", "g3#c"]), st.integers(0, 3)), max_size=40
)


@given(writes)
def test_of_rival_writers_one_stands_and_knows_it(writes: list[tuple[str, int]]) -> None:
    """Each writes one above what it saw, which may be some records old."""
    state = FilesAndBatches()
    state.apply_batch(FIRST, offset=0, source="api")
    seen = [0]
    owner = None
    for offset, (source, behind) in enumerate(writes, start=1):
        revision = seen[max(0, len(seen) - 1 - behind)] + 1
        stood = state.apply_batch(at(revision, completed=offset), offset=offset, source=source)
        standing = state.batch("b1")
        assert standing is not None
        assert stood == (revision == seen[-1] + 1)
        assert stood == (standing.offset == offset)
        if stood and "#" in source:
            owner = source
        assert standing.owner == owner
        seen.append(standing.event.revision)


@given(writes, st.data())
def test_a_reader_of_what_compaction_left_comes_to_the_same(
    writes: list[tuple[str, int]], data: st.DataObject
) -> None:
    """As long as nobody writes below what stands, which a runner mends."""
    log = [(FIRST, 0, "api")]
    for offset, (source, _) in enumerate(writes, start=1):
        log.append((at(offset, completed=offset), offset, source))
    kept = data.draw(st.sets(st.integers(0, len(log) - 1)))
    whole, compacted = FilesAndBatches(), FilesAndBatches()
    for place, (event, offset, source) in enumerate(log):
        whole.apply_batch(event, offset=offset, source=source)
        if place in kept or place == len(log) - 1:
            compacted.apply_batch(event, offset=offset, source=source)
    first, second = whole.batch("b1"), compacted.batch("b1")
    assert first is not None
    assert second is not None
    assert (first.event, first.offset) == (second.event, second.offset)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["acme", "rival"])), max_size=30),
    st.integers(1, 5),
    st.booleans(),
)
def test_pages_put_together_are_the_list(
    files: list[tuple[int, str]], limit: int, newest_first: bool
) -> None:
    state = FilesAndBatches()
    for number, (created, tenant) in enumerate(files):
        state.apply_file(
            FileChanged(
                file_id=f"f{number}",
                tenant=tenant,
                filename="x",
                purpose="batch",
                size=1,
                created_at_ms=created,
            )
        )
    found: list[str] = []
    after, more = None, True
    while more:
        page, more = state.files(
            "acme", purpose=None, newest_first=newest_first, after=after, limit=limit
        )
        assert len(page) == limit or not more
        found += [each.file_id for each in page]
        after = found[-1] if found else None
    mine = [
        (created, f"f{number}")
        for number, (created, tenant) in enumerate(files)
        if tenant == "acme"
    ]
    assert found == [name for _, name in sorted(mine, reverse=newest_first)]


def test_deleted_files_and_tombstones_are_forgotten() -> None:
    state = FilesAndBatches()
    event = FileChanged(
        file_id="f1", tenant="acme", filename="x", purpose="batch", size=1, created_at_ms=1
    )
    state.apply_file(event)
    state.apply_batch(FIRST, offset=0, source="api")
    assert state.file("f1", "rival") is None
    assert state.file("f1", "acme") == event
    assert state.uses("f1") == FIRST
    with pytest.raises(UnknownCursor):
        state.batches("rival", after="b1", limit=1)
    state.apply_file(msgspec.structs.replace(event, deleted_at_ms=5))
    assert state.file("f1", "acme") is None
    state.apply_batch(at(1, status="completed"), offset=1, source="g#a")
    assert state.uses("f1") is None
    state.forget("b1")
    assert state.batch("b1") is None
