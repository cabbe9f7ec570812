"""A canary from the first request to its end: real broker, real vLLM, and people who judge blindly.

A worker serves version 1 and an adapter of it. Whoever asks gives a thumb by the answer's text
alone: the controller must find out which version they like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.generation import GenerationResult, SamplingParameters, ShadowCompared
from infra.contracts.events.model import RolloutChanged
from infra.local.supervisor import Child, feedloom_command
from infra.registry.client import RegistryWatcher
from infra.rollouts.controller import ACTOR
from infra.rollouts.decisions import read_decisions
from producers.client import GenerationClient
from producers.feedback import FeedbackClient
from tests.conftest import WORDS, Weights

from .conftest import Served, child_environment, configure, publish_adapter, try_out

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(500)]

GREEDY = SamplingParameters(max_tokens=12, temperature=0.0, ignore_eos=True)
USERS = 400


class Place:
    """The deployment with a rollout controller."""

    def __init__(self, served: Served) -> None:
        self.workers, self.bus, self._home = served.workers, served.workers.bus, served.home
        self.registry = RegistryWatcher(self.bus)
        self.controller = Child(
            "controller",
            feedloom_command(["rollouts", "run", "--interval", "0.5"]),
            log=served.home / "controller.log",
            environment=child_environment(served.home, served.kafka),
        )

    def publish_adapter(self, files: Path, version: str) -> None:
        publish_adapter(self.bus, self._home, files, version)

    def configure(self, **settings: str) -> None:
        configure(self.bus, **{f"rollout.{key}": value for key, value in settings.items()})

    def trial(self, version: str, mode: Literal["canary", "shadow"] = "canary") -> RolloutChanged:
        """Half of the users; returns once the worker has it."""
        event = try_out(self.bus, self.registry, version, mode)
        self.workers.wait(
            f"{version} to be loaded",
            lambda: version in self.workers.watch.workers["worker-0"].loaded["default"],
        )
        return event

    def ask(self, client: GenerationClient, users: range) -> list[GenerationResult]:
        """The same question by each of some users."""
        handles = [client.submit(WORDS, sampling=GREEDY, user=f"user{number}") for number in users]
        return [handle.result(120) for handle in handles]

    def rollout(self) -> RolloutChanged:
        self.registry.catch_up()
        found = self.registry.state.rollout("default")
        assert found is not None
        return found

    def close(self) -> None:
        self.controller.stop(30)
        self.registry.close()


@pytest.fixture
def place(served: Served) -> Iterator[Place]:
    made = Place(served)
    try:
        yield made
    finally:
        made.close()


def judge_until(place: Place, liked: str, state: str) -> dict[str | None, Counter[str]]:
    """Ask and judge, a few users at a time, until the controller has acted: versions by arm.

    A thumb goes up where the text is ``liked``; nobody knows which version answered.
    """
    seen: dict[str | None, Counter[str]] = {}
    with (
        GenerationClient(place.bus, source="test") as client,
        FeedbackClient(place.bus, source="test") as feedback,
    ):
        for begin in range(0, USERS, 20):
            for result in place.ask(client, range(begin, begin + 20)):
                assert result.error is None
                feedback.rate(result.request_id, "up" if result.text == liked else "down")
                arm = result.assignment.arm if result.assignment else None
                seen.setdefault(arm, Counter())[result.model_versions[0]] += 1
            if place.rollout().state == state:
                break
        place.workers.wait(
            f"the controller to make it {state}", lambda: place.rollout().state == state, 60
        )
    return seen


def test_people_decide_which_version_stays(place: Place, weights: Weights) -> None:
    place.publish_adapter(weights.adapters[0], "2")
    place.publish_adapter(weights.adapters[1], "3")
    place.configure(min_samples="30", min_lift="0.0", effect="0.3")
    with GenerationClient(place.bus, source="test") as client:
        (plain,) = place.ask(client, range(1))
        # A shadow is compared, and shown to nobody.
        place.trial("2", "shadow")
        shadowed = place.ask(client, range(20))
        assert {result.text for result in shadowed} == {plain.text}
        assert {result.model_versions for result in shadowed} == {("default@1",)}
        assert {result.assignment for result in shadowed} == {None}

        def compared() -> list[ShadowCompared]:
            return [
                codec.decode(record.value or b"", ShadowCompared)
                for record in place.workers.records(catalogue.SHADOW.name)
            ]

        place.workers.wait("copies to be compared", lambda: len(compared()) > 0)
        for one in compared():
            assert (one.stable, one.candidate, one.stable_text) == ("1", "2", plain.text)
            assert one.candidate_text != plain.text

    # People like what version 1 says: the candidate is withdrawn.
    event = place.trial("2")
    seen = judge_until(place, plain.text, "rolled_back")
    assert seen["stable"].keys() == {"default@1"}
    assert seen["candidate"].keys() == {"default@2"}
    withdrawn = place.rollout()
    assert (withdrawn.stable, withdrawn.candidate, withdrawn.actor) == ("1", None, ACTOR)
    assert withdrawn.rolled_back == ("2",)
    decisions = [one for one in read_decisions(place.bus) if one.experiment == event.experiment]
    last = decisions[-1]
    assert (last.verdict, last.acted) == ("rollback", True)
    assert last.stable.outcome == 1.0
    assert last.candidate.outcome == 0.0
    assert last.candidate.downs == last.candidate.labels >= 20
    with GenerationClient(place.bus, source="test") as client:
        place.workers.wait(
            "everybody to be answered by version 1",
            lambda: (
                {one.model_versions for one in place.ask(client, range(20))} == {("default@1",)}
            ),
        )
        # People like what version 3 says: it becomes the stable one.
        place.trial("3")
        other = next(
            result.text
            for result in place.ask(client, range(50))
            if result.model_versions == ("default@3",)
        )
    judge_until(place, other, "steady")
    promoted = place.rollout()
    assert (promoted.stable, promoted.candidate, promoted.actor) == ("3", None, ACTOR)
    assert promoted.retired == ("1",)
    place.workers.wait(
        "the worker to serve version 3",
        lambda: place.workers.watch.workers["worker-0"].versions == {"default": "3"},
    )
    with GenerationClient(place.bus, source="test") as client:
        assert {one.text for one in place.ask(client, range(20))} == {other}
