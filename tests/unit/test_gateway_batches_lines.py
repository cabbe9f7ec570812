"""A batch's input: what is a request, what makes the file unusable, and which ids lines have."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.gateway import BatchChanged
from infra.settings import GatewaySettings
from producers.gateway.batches import identity, lines
from producers.gateway.batches.lines import ask, read_plan
from producers.gateway.errors import ApiError
from producers.gateway.identifiers import parse

SETTINGS = GatewaySettings(max_body_bytes=2_000, max_prompt_characters=500)
URL = "/v1/completions"


def batch(**fields: Any) -> BatchChanged:
    given: dict[str, Any] = {
        "batch_id": "batch_0007" + "ab" * 14,
        "tenant": "acme",
        "revision": 1,
        "status": "validating",
        "endpoint": URL,
        "input_file_id": "f",
        "created_at_ms": 1_700_000_000_000,
        "expires_at_ms": 1_700_086_400_000,
    }
    return BatchChanged(**given | fields)


def good(custom_id: str = "a", **body: Any) -> dict[str, Any]:
    asked = {"model": "default", "prompt": "hello", **body}
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": asked}


def plan_of(path: Path, *rows: Any, **fields: Any) -> lines.Plan:
    path.write_bytes(
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    )
    return read_plan(path, batch(**fields), SETTINGS)


def test_lines_have_their_place_and_ids_that_stay(tmp_path: Path) -> None:
    path = tmp_path / "in"
    plan = plan_of(path, good("a"), b"  ", good("b", model=5), good("c"))
    assert plan.errors == ()
    assert [(each.number, each.custom_id) for each in plan.lines] == [(1, "a"), (3, "b"), (4, "c")]
    first, second, third = plan.lines
    assert second.request_id is None
    found = parse(first.request_id or "")
    assert found is not None
    assert (found.partition, found.created_at_ms) == (7, 1_700_000_000_000)
    assert found.belongs_to("acme")
    assert not found.belongs_to("rival")
    assert found.model_of(["default"]) == "default"
    assert first.request_id != third.request_id
    assert read_plan(path, batch(), SETTINGS) == plan
    other = read_plan(path, batch(batch_id="batch_0007" + "cd" * 14), SETTINGS)
    assert other.lines[0].request_id != first.request_id
    with path.open("rb") as file:
        assert ask(file, third, batch(), SETTINGS).prompt == "hello"
        assert ask(file, first, batch(), SETTINGS).model == "default"
        with pytest.raises(ApiError, match="model"):
            ask(file, second, batch(), SETTINGS)


@pytest.mark.parametrize(
    ("row", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'"text"', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"[" * 100 + b"]" * 100, "invalid_json_line", None),
        (good("x" * 513), "invalid_custom_id", "custom_id"),
        ({**good(), "custom_id": 5}, "invalid_custom_id", "custom_id"),
        ({**good(), "custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({**good(), "method": "post"}, "invalid_method", "method"),
        ({**good(), "url": "/v1/chat/completions"}, "invalid_url", "url"),
        ({**good(), "body": "x"}, "invalid_request", "body"),
        ({**good(), "more": 1}, "unsupported_parameter", "more"),
        ({"custom_id": "x"}, "missing_required_parameter", "body"),
        (good(prompt="x" * 7_000), "line_too_long", None),
    ],
)
def test_a_line_that_is_no_request_is_named(
    tmp_path: Path, row: Any, code: str, param: str | None
) -> None:
    plan = plan_of(tmp_path / "in", good("before"), row, good("after"), good("before"))
    assert [(each.line, each.code, each.param) for each in plan.errors] == [
        (2, code, param),
        (4, "duplicate_custom_id", "custom_id"),
    ]
    assert all(each.message for each in plan.errors)


def test_a_file_has_some_lines_and_not_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [each.code for each in plan_of(tmp_path / "in").errors] == ["empty_file"]
    monkeypatch.setattr(lines, "MAX_LINES", 3)
    rows = [good(str(number)) for number in range(4)]
    assert plan_of(tmp_path / "in", *rows[:3]).errors == ()
    (error,) = plan_of(tmp_path / "in", *rows).errors
    assert (error.code, error.line) == ("too_many_tasks", 4)


def test_a_bad_file_does_not_fill_the_topic(tmp_path: Path) -> None:
    plan = plan_of(tmp_path / "in", *[b"{"] * 1000)
    assert len(plan.errors) == lines.MAX_ERRORS


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"stream": True}, 400),
        ({"background": True}, 400),
        ({"temperature": 3}, 400),
        ({"prompt": "x" * 501}, 400),
        ({"model": "other"}, 403),
        ({"echo": True}, 400),
    ],
)
def test_a_request_that_the_endpoint_refuses_is_refused_alone(
    tmp_path: Path, body: dict[str, Any], status: int
) -> None:
    path = tmp_path / "in"
    plan = plan_of(path, good("a"), good("b", **body))
    assert plan.errors == ()
    scoped = batch(models=("default",))
    with path.open("rb") as file:
        assert ask(file, plan.lines[0], scoped, SETTINGS).prompt == "hello"
        with pytest.raises(ApiError) as refused:
            ask(file, plan.lines[1], scoped, SETTINGS)
    assert refused.value.status == status


@given(st.integers(0, 65_535))
def test_a_batch_says_where_its_answers_are_written(partition: int) -> None:
    made = identity.new_batch_id(partition)
    assert identity.reply_partition(made) == partition
    assert identity.new_batch_id(partition) != made


@given(st.lists(st.text(max_size=40), max_size=20))
def test_any_text_is_read_as_lines_or_errors(texts: list[str]) -> None:
    data = "\n".join(texts).encode("utf-8", "replace")
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        plan = read_plan(Path(file.name), batch(), SETTINGS)
    assert plan.errors
    assert plan.lines == ()
