"""Where requests go, what becomes of them when that changes, and copies that nobody is shown."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.events.generation import (
    Assignment,
    GenerationRequest,
    SamplingParameters,
    ShadowCompared,
)
from infra.rollouts.assignment import cohort, draw, place, unit_of
from stream_workers.engine_memory import MemoryEngine
from stream_workers.handler import HandlerOptions, RequestHandler
from stream_workers.routing import Route
from stream_workers.shadow import Shadow
from tests.unit.test_worker_handler import ListSink, now_ms, record, request

names = st.text(min_size=1, max_size=20)
weights = st.floats(min_value=0.0, max_value=1.0)


@given(names, names, weights, weights)
def test_more_weight_only_moves_units_to_the_candidate(
    experiment: str, unit: str, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    arms = (draw(experiment, unit, less), draw(experiment, unit, more))
    assert arms != ("candidate", "stable")
    assert draw(experiment, unit, 0.0) == "stable"
    assert draw(experiment, unit, 1.0) == "candidate"
    assert 0 <= place(experiment, unit) < 1


def test_units_are_spread_evenly_and_anew_by_each_experiment() -> None:
    units = [f"user:{number}" for number in range(20_000)]
    first = {unit for unit in units if draw("a", unit, 0.2) == "candidate"}
    second = {unit for unit in units if draw("b", unit, 0.2) == "candidate"}
    # Five standard deviations of a fair draw.
    assert abs(len(first) - 4000) < 5 * (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(len(first & second) - 800) < 5 * (20_000 * 0.04 * 0.96) ** 0.5


@given(st.sets(names, max_size=12), names, weights)
def test_a_cohort_is_a_share_of_the_workers_that_shrinks_from_its_end(
    workers: set[str], experiment: str, weight: float
) -> None:
    members = cohort(experiment, workers, weight)
    assert members <= workers
    if len(workers) > 1 and 0 < weight < 1:
        assert 1 <= len(members) < len(workers)
        assert abs(len(members) - weight * len(workers)) <= 1
        assert cohort(experiment, workers, weight / 2 or weight) <= members
        # Whoever leaves the rest of the fleet moves nobody into or out of it, but by the count.
        for gone in sorted(workers - members)[:1]:
            left = cohort(experiment, workers - {gone}, weight)
            assert left <= members or len(left) == len(members)


def test_what_a_request_is_drawn_by() -> None:
    whole = request(user="ada", tenant="acme", affinity_key="talk")
    assert unit_of(whole, "user") == "user:ada"
    assert unit_of(whole, "tenant") == "tenant:acme"
    assert unit_of(whole, "conversation") == "conversation:talk"
    assert unit_of(request(affinity_key="talk"), "user") == "conversation:talk"
    assert unit_of(request(), "tenant") == "request:r1"


class Place:
    """A handler whose route can be changed, with whatever copies it makes."""

    def __init__(self, folder: Path) -> None:
        self.engine = MemoryEngine(version="m@1", token_interval_s=0.002)
        self.folder = str(folder)
        self.sink = ListSink()
        self.compared: list[ShadowCompared] = []
        self.route = Route(version="m@1")
        self.shadow = Shadow(
            engine=self.engine,
            publish=self.compared.append,
            worker_id="w",
            now_ms=now_ms,
            monotonic_s=time.monotonic,
            limit=2,
        )
        self.handler = RequestHandler(
            engine=self.engine,
            sink=self.sink,
            options=HandlerOptions(worker_id="w", model="default"),
            route=lambda _: self.route,
            shadow=self.shadow,
            now_ms=now_ms,
            monotonic_s=time.monotonic,
        )

    async def run(self, one: GenerationRequest) -> None:
        await self.handler.run(self.handler.prepare(record(msgspec.json.encode(one))))


def test_an_answer_goes_on_with_another_version_when_its_adapter_goes(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assignment = Assignment(experiment="e", arm="candidate", unit="user:ada")

    async def move() -> None:
        for version in ("m@2", "m@3"):
            await place.engine.load_adapter(place.folder, version)
        place.route = Route(version="m@2", assignment=assignment)
        running = asyncio.ensure_future(place.run(request(sampling=LONG)))
        for version in ("m@3", "m@1"):
            while not place.engine.load().running:  # noqa: ASYNC110 - its first token
                await asyncio.sleep(0.005)
            before, place.route = place.route.version, Route(version=version)
            await place.engine.unload_adapter(before, "keep")
        await running

    asyncio.run(move())
    (result,) = place.sink.results
    assert (result.finish_reason, result.output_tokens) == ("length", 60)
    assert result.model_versions[-1] == "m@1"
    assert result.error is None
    assembler = ChunkAssembler()
    for chunk in place.sink.chunks:
        assembler.add(chunk)
    assert assembler.text == result.text
    # Where it ended counts: it is no longer of the arm that it was drawn for.
    assert result.assignment is None


LONG = SamplingParameters(max_tokens=60, temperature=0.0)


def test_a_copy_is_compared_and_changes_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def copy() -> None:
        await place.run(request())
        await place.engine.load_adapter(place.folder, "m@2")
        place.route = Route(version="m@1", shadow="m@2", experiment="e")
        await place.run(request())
        await place.shadow.settled()
        place.engine.fail_next = 0
        place.route = Route(version="m@1", shadow="m@1", experiment="e")
        await place.run(request())
        await place.shadow.settled()

    asyncio.run(copy())
    plain, copied, same = place.sink.results
    assert plain.text == copied.text == same.text
    assert {chunk.model_version for chunk in place.sink.chunks} == {"m@1"}
    other, equal = place.compared
    assert (other.stable, other.candidate, other.experiment) == ("1", "2", "e")
    assert other.stable_text == copied.text
    assert other.candidate_text != copied.text
    assert other.common_tokens < other.stable_tokens == other.candidate_tokens == 8
    assert (equal.common_tokens, equal.candidate_text) == (8, same.text)
    assert equal.candidate_timings.ttft_ms is not None


def test_a_copy_that_fails_is_told_to_operators_only(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def copy() -> None:
        await place.engine.load_adapter(place.folder, "m@2")
        place.route = Route(version="m@1", shadow="m@2", experiment="e")
        await place.run(request())
        place.engine.fail_next = 1
        await place.shadow.settled()

    asyncio.run(copy())
    (result,) = place.sink.results
    assert result.error is None
    (compared,) = place.compared
    assert compared.error is not None
    assert (compared.candidate_finish, compared.error.message) == ("error", "scripted failure")


def test_copies_are_left_out_when_too_many_run(tmp_path: Path) -> None:
    place = Place(tmp_path)

    async def copy() -> None:
        await place.engine.load_adapter(place.folder, "m@2")
        place.route = Route(version="m@1", shadow="m@2", experiment="e")
        await asyncio.gather(*(place.run(request(request_id=f"r{number}")) for number in range(5)))
        await place.shadow.settled()
        assert len(place.compared) == 2
        await place.run(request(sampling=LONG))
        await place.shadow.close()

    asyncio.run(copy())
    assert len(place.compared) == 2


@pytest.mark.parametrize("finish", ["cancelled", "deadline_exceeded"])
def test_what_was_not_answered_is_not_copied(tmp_path: Path, finish: str) -> None:
    place = Place(tmp_path)

    async def copy() -> None:
        await place.engine.load_adapter(place.folder, "m@2")
        place.route = Route(version="m@1", shadow="m@2", experiment="e")
        running = asyncio.ensure_future(
            place.run(
                request(
                    sampling=LONG,
                    deadline_ms=now_ms() + 30 if finish == "deadline_exceeded" else None,
                )
            )
        )
        await asyncio.sleep(0.02)
        if finish == "cancelled":
            from infra.contracts.events.generation import GenerationCancellation

            place.handler.cancel(
                GenerationCancellation(request_id="r1", created_at_ms=now_ms() + 1000)
            )
        await running
        await place.shadow.settled()

    asyncio.run(copy())
    assert place.sink.results[0].finish_reason == finish
    assert not place.compared
