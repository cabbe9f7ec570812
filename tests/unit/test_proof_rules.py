"""The rules of the proof notice each fault that they are for: sound records, spoilt one by one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from tests.proof.journal import TOPICS, Seen, parsed
from tests.proof.rules import Ledger, broken, registry_is_one, serving, streamed

Topics = dict[str, list[Seen]]


def seen(topic: str, offset: int, key: str, **event: Any) -> Seen:
    return Seen(place=(topic, 0, offset), key=key, event=event)


def chunk(seq: int, text: str, *, run: tuple[int, int] = (1, 0), first: int, **more: Any) -> Any:
    event = {"request_id": "r", "epoch": run[0], "attempt": run[1], "seq": seq, "text": text}
    tokens = {"first_token": first, "token_ids": list(range(len(text)))}
    return {**event, **tokens, "index": 0, "final": False, **more}


def sound() -> tuple[Topics, Ledger]:
    """One request with its feedback, which two rounds learnt from, and one record that is none."""
    chunks = [
        chunk(0, "ab", first=0),
        chunk(1, "xx", first=2),
        chunk(0, "c", run=(2, 0), first=2),
        chunk(0, "c", run=(2, 0), first=2),
        chunk(1, "d", run=(2, 0), first=3, final=True),
    ]
    topics: Topics = {topic: [] for topic in TOPICS}
    topics["generation.requests"] = [
        seen("generation.requests", 0, "r", request_id="r"),
        Seen(place=("generation.requests", 0, 1), key="m", event=None),
    ]
    topics["generation.requests.dlq"] = [
        Seen(
            place=("generation.requests.dlq", 0, 0),
            key="m",
            event=None,
            headers={"__streams.errors.partition": "0", "__streams.errors.offset": "1"},
        )
    ]
    topics["generation.chunks"] = [
        seen("generation.chunks", offset, "r", **one) for offset, one in enumerate(chunks)
    ]
    result = {"request_id": "r", "finish_reason": "length", "error": None, "text": "abcd"}
    topics["generation.results"] = [seen("generation.results", 0, "r", **result)]
    topics["feedback.events"] = [
        seen("feedback.events", 0, "r", feedback_id="f", request_id="r"),
    ]
    topics["feedback.examples"] = [
        seen("feedback.examples", 0, "r", feedback_ids=[]),
        seen("feedback.examples", 1, "r", feedback_ids=["f"]),
    ]
    spans = [(0, 1), (1, 2)]
    topics["model.registry"] = [
        seen(
            "model.registry",
            offset,
            f"default/{offset}",
            model="default",
            version=str(offset),
            gate=None,
            lineage={
                "parent": f"default@{offset - 1}" if offset else None,
                "feedback": [
                    {"topic": "feedback.examples", "partition": 0, "start": start, "end": end}
                ],
            },
        )
        for offset, (start, end) in enumerate(spans)
    ]
    topics["model.rollouts"] = [seen("model.rollouts", 0, "default", stable="1")]
    topics["platform.workers"] = [
        seen("platform.workers", 0, "w", versions={"default": "0"}),
        seen("platform.workers", 1, "w", versions={"default": "1"}),
    ]
    ledger = Ledger(requests={"r"}, feedback={"f": "r"}, malformed={("generation.requests", 0, 1)})
    return topics, ledger


def without(topic: str, offset: int) -> Callable[[Topics, Ledger], None]:
    def spoil(topics: Topics, _: Ledger) -> None:
        topics[topic] = [one for one in topics[topic] if one.place[2] != offset]

    return spoil


def twice(topic: str) -> Callable[[Topics, Ledger], None]:
    return lambda topics, _: topics[topic].append(topics[topic][-1])


def with_event(topic: str, offset: int, **changes: Any) -> Callable[[Topics, Ledger], None]:
    def spoil(topics: Topics, _: Ledger) -> None:
        event = topics[topic][offset].event
        assert event is not None
        event.update(changes)

    return spoil


def span(start: int, end: int) -> dict[str, Any]:
    one = {"topic": "feedback.examples", "partition": 0, "start": start, "end": end}
    return {"lineage": {"parent": "default@0", "feedback": [one]}}


SPOILT: dict[str, tuple[Callable[[Topics, Ledger], None], str]] = {
    "lost request": (without("generation.requests", 0), "acknowledged requests are on no topic"),
    "no result": (without("generation.results", 0), "requests have no result"),
    "two results": (twice("generation.results"), "requests have several results"),
    "a stray result": (without("generation.requests", 0), "results answer no request"),
    "a lost chunk": (without("generation.chunks", 4), "streams differ"),
    "a gap": (without("generation.chunks", 0), "streams differ"),
    "other text": (with_event("generation.results", 0, text="abxx"), "streams differ"),
    "no dead letter": (without("generation.requests.dlq", 0), "no dead letters"),
    "two dead letters": (twice("generation.requests.dlq"), "dead letters are there twice"),
    "lost feedback": (without("feedback.events", 0), "acknowledged feedback is on no topic"),
    "no example": (without("feedback.examples", 1), "feedback is in no example"),
    "a gap of rounds": (with_event("model.registry", 1, **span(3, 4)), "left out of a lineage"),
    "rounds overlap": (with_event("model.registry", 1, **span(0, 2)), "left out of a lineage"),
}


def test_a_sound_platform_breaks_no_rule() -> None:
    topics, ledger = sound()
    assert broken(topics, ledger) == []
    assert registry_is_one(topics, "default", serving(topics, "default", ["w"])) == []


@pytest.mark.parametrize("name", SPOILT)
def test_each_fault_is_noticed(name: str) -> None:
    spoil, line = SPOILT[name]
    topics, ledger = deepcopy(sound())
    spoil(topics, ledger)
    assert any(line in fault for fault in broken(topics, ledger))


def test_a_refused_version_may_have_had_what_is_left_out_and_a_withdrawn_one_is_learnt_again() -> (
    None
):
    topics, ledger = sound()
    registry = topics["model.registry"]
    third = deepcopy(registry[1].event) or {}
    registry.append(seen("model.registry", 2, "default/2", **third | {"version": "2"} | span(2, 5)))
    assert any("left out of a lineage" in fault for fault in broken(topics, ledger))
    with_event("model.registry", 1, gate={"passed": False})(topics, ledger)
    assert broken(topics, ledger) == []
    with_event("model.registry", 1, gate={"passed": True})(topics, ledger)
    with_event("model.registry", 2, **span(1, 4))(topics, ledger)
    assert broken(topics, ledger) == []


def test_a_reader_that_is_behind_is_noticed() -> None:
    topics, _ = sound()
    topics["platform.workers"].pop()
    (fault,) = registry_is_one(topics, "default", serving(topics, "default", ["w"]))
    assert fault == "w has 0 of default, the topic says 1"
    (fault,) = registry_is_one(topics, "default", serving(topics, "default", ["nobody"]))
    assert fault.startswith("nobody has None")


def test_feedback_on_what_was_forgotten_need_not_be_anywhere() -> None:
    topics, ledger = sound()
    topics["feedback.examples"] = [Seen(place=("feedback.examples", 0, 2), key="r", event=None)]
    assert any("in no example" in fault for fault in broken(topics, ledger))
    topics["feedback.forgotten"] = [seen("feedback.forgotten", 0, "r", request_id="r")]
    assert broken(topics, ledger) == []


def test_a_stream_without_its_end_or_with_none_at_all_is_no_text() -> None:
    assert streamed([]) is None
    assert streamed([chunk(0, "ab", first=0)]) is None
    assert streamed([chunk(0, "ab", first=0, final=True)]) == "ab"


@pytest.mark.parametrize("value", [None, b"", b"\xff", b"[1]", b"{"])
def test_what_is_no_object_is_no_event(value: bytes | None) -> None:
    assert parsed(value) is None
