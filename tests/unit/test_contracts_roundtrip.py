"""Any value that the contract allows survives the wire and agrees with its schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect

from infra.contracts import codec, schema
from infra.contracts.errors import MalformedRecord
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackReceived
from infra.contracts.events.union import EVENT_TYPES

# JSON has no lone surrogates, infinities or integers past 64 bits.
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WHOLE = (-(2**63), 2**63 - 1)


def values(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Every value of a field's type; a type that is not listed here must be added."""
    match kind:
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType(ge=low, le=high):
            return st.integers(WHOLE[0] if low is None else low, WHOLE[1] if high is None else high)
        case inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False, allow_infinity=False)
        case inspect.StrType(pattern=str(pattern)):
            # Python's $ also matches before a last newline.
            return st.from_regex(pattern.replace("$", r"\Z"))
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(st.characters(codec="utf-8"), min_size=low or 0, max_size=high or 20)
        case inspect.LiteralType(values=allowed):
            return st.sampled_from(allowed)
        case inspect.UnionType(types=kinds):
            return st.one_of([values(each) for each in kinds])
        case inspect.VarTupleType(item_type=item):
            return st.lists(values(item), max_size=3).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=3)
        case inspect.StructType(cls=cls):
            return structs(cls)
    raise NotImplementedError(f"no values are known for {kind}")


def structs(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    information = inspect.type_info(cls)
    assert isinstance(information, inspect.StructType)
    fields = {
        field.name: values(field.type)
        for field in information.fields
        if field.name != "schema_version"
    }
    if cls is FeedbackReceived:
        fields["comment"] = TEXT
    return st.builds(cls, **fields)


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=40)
@given(data=st.data())
def test_every_event_survives_the_wire(kind: type[Event], data: st.DataObject) -> None:
    event = data.draw(structs(kind))
    wire = codec.encode(event)
    assert codec.decode(wire, kind) == event
    assert codec.encode(codec.decode_any(wire)) == wire
    document = json.loads(wire)
    assert document["type"] == kind.__name__
    jsonschema.Draft202012Validator(schema.event_schema(kind.__name__)).validate(document)


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_a_required_field_that_is_missing_is_named(kind: type[Event], data: st.DataObject) -> None:
    document = json.loads(codec.encode(data.draw(structs(kind))))
    information = inspect.type_info(kind)
    assert isinstance(information, inspect.StructType)
    for field in information.fields:
        if field.required:
            short = {key: value for key, value in document.items() if key != field.encode_name}
            with pytest.raises(MalformedRecord, match=f"`{field.encode_name}`"):
                codec.decode(json.dumps(short).encode(), kind)
