"""Files and batches, beside a list of all that was ever written."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.gateway import BatchChanged, FileChanged
from producers.gateway.batches.state import FINISHED, FilesAndBatches, UnknownCursor

TENANTS = st.sampled_from(["acme", "rival"])
IDS = st.sampled_from(["x1", "x2", "x3"])
PURPOSES = ("batch", "batch_output")


def file(file_id: str, tenant: str, made: int, purpose: Any, deleted: bool) -> FileChanged:
    return FileChanged(
        file_id=file_id,
        tenant=tenant,
        filename="n",
        purpose=purpose,
        size=1,
        created_at_ms=made,
        deleted_at_ms=made if deleted else None,
    )


def batch(batch_id: str, tenant: str, revision: int, status: Any, made: int) -> BatchChanged:
    return BatchChanged(
        batch_id=batch_id,
        tenant=tenant,
        revision=revision,
        status=status,
        endpoint="/v1/completions",
        input_file_id=f"x{1 + made % 3}",
        created_at_ms=made,
        expires_at_ms=made + 9,
    )


MADE = st.integers(0, 3)
WRITTEN = st.lists(
    st.builds(file, IDS, TENANTS, MADE, st.sampled_from(PURPOSES), st.booleans())
    | st.tuples(
        st.builds(
            batch,
            IDS,
            TENANTS,
            st.integers(0, 3),
            st.sampled_from(["validating", "in_progress", *sorted(FINISHED)]),
            MADE,
        ),
        st.sampled_from(["api", "g#1", "g#2"]),
    )
    | IDS,
    max_size=25,
)


@given(WRITTEN)
def test_what_stands_is_what_the_log_says(written: list[Any]) -> None:
    state = FilesAndBatches()
    files: dict[str, FileChanged] = {}
    batches: dict[str, tuple[BatchChanged, int, str | None]] = {}
    for offset, one in enumerate(written):
        if isinstance(one, str):
            state.forget(one)
            files.pop(one, None)
            batches.pop(one, None)
        elif isinstance(one, FileChanged):
            state.apply_file(one)
            files.pop(one.file_id, None)
            if one.deleted_at_ms is None:
                files[one.file_id] = one
        else:
            event, source = one
            before = batches.get(event.batch_id)
            news = before is None or event.revision > before[0].revision
            assert state.apply_batch(event, offset=offset, source=source) == news
            if news:
                owner = source if "#" in source else before[2] if before else None
                batches[event.batch_id] = (event, offset, owner)
    for name in ("x1", "x2", "x3"):
        found = state.batch(name)
        assert (found and (found.event, found.offset, found.owner)) == batches.get(name)
        assert found is None or found.finished == (found.event.status in FINISHED)
        for tenant in ("acme", "rival"):
            known = files.get(name)
            mine = known if known is not None and known.tenant == tenant else None
            assert state.file(name, tenant) == mine
        using = [
            event
            for event, _, _ in batches.values()
            if event.input_file_id == name and event.status not in FINISHED
        ]
        assert (state.uses(name) in using) if using else (state.uses(name) is None)
    for tenant in ("acme", "rival"):
        events = sorted(
            (event for event, _, _ in batches.values() if event.tenant == tenant),
            key=lambda event: (event.created_at_ms, event.batch_id),
            reverse=True,
        )
        pages(events, partial(state.batches, tenant), "batch_id")
        for purpose in (None, *PURPOSES):
            for newest_first in (True, False):
                own = sorted(
                    (
                        each
                        for each in files.values()
                        if each.tenant == tenant and purpose in (None, each.purpose)
                    ),
                    key=lambda each: (each.created_at_ms, each.file_id),
                    reverse=newest_first,
                )
                pages(
                    own,
                    partial(state.files, tenant, purpose=purpose, newest_first=newest_first),
                    "file_id",
                )


def pages(every: list[Any], page: Any, name: str) -> None:
    """Each page of any size after each place is the part of the list that it should be."""
    for limit in (1, 2, 5):
        for start in range(len(every) + 1):
            after = getattr(every[start - 1], name) if start else None
            expected = (every[start : start + limit], start + limit < len(every))
            assert page(after=after, limit=limit) == expected
    with pytest.raises(UnknownCursor, match=r"^never$"):
        page(after="never", limit=1)
