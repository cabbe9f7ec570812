"""What a new owner learns from the topics."""

from __future__ import annotations

import pytest

from infra.contracts.bus import TopicPartition
from infra.contracts.catalogue import CHUNKS, REQUESTS
from infra.contracts.codec import encode
from infra.contracts.events.generation import GenerationRequest
from infra.testing import InMemoryBus
from stream_workers.offsets import Position
from stream_workers.recovery import recover

PARTITION = TopicPartition(REQUESTS.name, 0)


@pytest.mark.parametrize(
    ("position", "answered"),
    [
        (Position(0), []),
        (Position(2), ["r0", "r1"]),
        (Position(1, ((2, 3), (4, 5))), ["r0", "r2", "r4"]),
        (Position(0, ((1, 3),)), ["r1", "r2"]),
    ],
)
def test_all_that_is_finished_counts_as_answered(position: Position, answered: list[str]) -> None:
    """Beyond the committed offset too: a submit that comes again after it is a duplicate."""
    bus = InMemoryBus({REQUESTS.name: 1, CHUNKS.name: 1})
    publisher = bus.publisher()
    for index in range(6):
        request = GenerationRequest(
            request_id=f"r{index}", submit_id="s", prompt="p", created_at_ms=0
        )
        publisher.publish(REQUESTS.name, key=None, value=encode(request))
    publisher.flush()
    found = recover(bus, {PARTITION: position}, remember=100)
    assert found.answered == [(name, "s") for name in answered]
