"""The controller on a bus in memory: what it decides, publishes and does, whatever crashes."""

from __future__ import annotations

import logging
import runpy
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import observability.instruments
from infra.contracts import catalogue, codec
from infra.contracts.config_keys import as_json
from infra.contracts.config_sections import RolloutConfig
from infra.contracts.errors import RetryableError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import (
    Arm,
    Assignment,
    GenerationError,
    GenerationResult,
    Timings,
)
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged, RolloutDecided
from infra.registry.client import RegistryWatcher, change_rollout, publish_version
from infra.registry.config import ConfigWatcher, publish_config
from infra.registry.transitions import (
    IllegalTransition,
    pinned,
    promoted,
    rolled_back,
    tried,
)
from infra.rollouts import controller as under_test
from infra.rollouts import observation
from infra.rollouts.arms import Arms
from infra.rollouts.commands import rollouts
from infra.rollouts.controller import ACTOR, Controller
from infra.rollouts.decisions import HOLD_EVERY_MS
from infra.rollouts.observation import Observation, policy_of
from infra.rollouts.policy import Policy
from infra.testing import InMemoryBus, ManualClock

HUMAN: dict[str, Any] = {"now_ms": 5, "actor": "ada", "reason": "a try"}
ENOUGH = 150
"""Units of an arm after which a large lift is shown."""


class World:
    """Versions 1 (stable) and 2 of a model, requests for either, and a controller by hand."""

    def __init__(self) -> None:
        self.bus = InMemoryBus()
        self.clock = ManualClock()
        self.registry = RegistryWatcher(self.bus)
        self.config = ConfigWatcher(self.bus)
        self.publisher = self.bus.publisher()
        self.controllers: list[Controller] = []
        self.requests = 0

    def model(self, name: str, *, canary: bool = True) -> None:
        for number in "12":
            publish_version(
                self.publisher,
                ModelVersionPublished(
                    model=name,
                    version=number,
                    kind="full",
                    artifact_uri="file:///x",
                    manifest=(),
                    created_at_ms=0,
                ),
            )
        self.change(lambda state: promoted(state, name, "1", **HUMAN))
        if canary:
            self.canary(name)

    def canary(self, model: str = "m", weight: float = 0.5, unit: Any = "user") -> None:
        who = {**HUMAN, "now_ms": int(1000 * self.clock())}
        self.change(
            lambda state: tried(state, model, "2", mode="canary", weight=weight, unit=unit, **who)
        )

    def change(self, change: Any) -> None:
        change_rollout(self.publisher, self.registry, change)

    def rollout(self, model: str = "m") -> RolloutChanged:
        self.registry.catch_up()
        found = self.registry.state.rollout(model)
        assert found is not None
        return found

    def set(self, key: str, value: str) -> None:
        publish_config(self.publisher, self.config, key, as_json(key, value), now_ms=1)

    def serve(
        self,
        arm: Arm,
        count: int,
        *,
        liked: float | None = None,
        fails: bool = False,
        model: str = "m",
        tokens: int = 10,
        ttft_ms: float = 20.0,
    ) -> None:
        """So many requests, each of another user; ``liked`` of them get a thumb up, the others
        one down."""
        experiment = self.rollout(model).experiment
        for number in range(count):
            self.requests += 1
            request_id = f"r{self.requests}"
            result = GenerationResult(
                request_id=request_id,
                submit_id="s",
                model=model,
                prompt="p",
                text="an answer",
                finish_reason="error" if fails else "stop",
                prompt_tokens=1,
                output_tokens=tokens,
                model_versions=(f"{model}@1",),
                created_at_ms=self.requests,
                finished_at_ms=self.requests,
                timings=Timings(ttft_ms=ttft_ms * (1 + number % 3 / 10), itl_ms=5.0),
                error=GenerationError(code="engine", message="died") if fails else None,
                assignment=Assignment(experiment=experiment, arm=arm, unit=f"user:{request_id}"),
            )
            self.send(catalogue.RESULTS.name, request_id, result)
            if liked is not None:
                up = number < liked * count
                self.send(
                    catalogue.EXAMPLES.name,
                    request_id,
                    FeedbackExample(
                        request_id=request_id,
                        prompt="p",
                        output="an answer",
                        model=model,
                        model_versions=(f"{model}@1",),
                        feedback_ids=("f",),
                        updated_at_ms=1,
                        ups=int(up),
                        downs=int(not up),
                    ),
                )

    def send(self, topic: str, key: str, event: Any) -> None:
        value = None if event is None else codec.encode(event)
        self.publisher.publish(topic, key=key.encode(), value=value)

    def controller(self) -> Controller:
        made = Controller(self.bus, stop=threading.Event(), clock=self.clock)
        self.controllers.append(made)
        made.catch_up()
        return made

    def looked(self, controller: Controller) -> list[RolloutDecided]:
        """What it publishes once it has read all there is."""
        while controller.poll(0.0):
            pass
        return controller.look()

    def decisions(self) -> list[RolloutDecided]:
        records = self.bus.records(catalogue.DECISIONS.name)
        return [codec.decode(record.value or b"", RolloutDecided) for record in records]

    def history(self) -> list[RolloutChanged]:
        records = self.bus.records(catalogue.ROLLOUTS.name)
        return [codec.decode(record.value or b"", RolloutChanged) for record in records]

    def close(self) -> None:
        for one in self.controllers:
            one.close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # In memory nothing is on its way.
    monkeypatch.setattr(under_test, "OBSERVATION_POLL_S", 0.0)
    found = World()
    found.model("m")
    yield found
    found.close()


def test_every_setting_of_the_policy_is_a_dynamic_one() -> None:
    assert policy_of(RolloutConfig()) == Policy(auto=True)
    assert policy_of(RolloutConfig(min_lift=0.25, at_end="rollback")).at_end == "rollback"


def test_a_worse_candidate_is_rolled_back(world: World) -> None:
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    (event,) = world.looked(world.controller())
    assert (event.verdict, event.acted, event.look) == ("rollback", True, 1)
    assert (event.model, event.experiment, event.revision) == ("m", "m@2#2", 2)
    assert (event.stable.version, event.candidate.version) == ("1", "2")
    assert (event.stable.requests, event.candidate.ups) == (ENOUGH, 30)
    rollout = world.rollout()
    assert (rollout.stable, rollout.candidate, rollout.rolled_back) == ("1", None, ("2",))
    assert (rollout.actor, rollout.reason, rollout.state) == (ACTOR, event.reason, "rolled_back")


def test_a_better_candidate_is_promoted_and_then_nothing_more_happens(world: World) -> None:
    controller = world.controller()
    assert world.looked(controller)[0].verdict == "hold"
    world.serve("stable", ENOUGH, liked=0.3)
    world.serve("candidate", ENOUGH, liked=0.8)
    (event,) = world.looked(controller)
    assert (event.verdict, event.acted) == ("promote", True)
    rollout = world.rollout()
    assert (rollout.stable, rollout.candidate, rollout.retired) == ("2", None, ("1",))
    world.clock.advance(3600)
    assert world.looked(controller) == []
    assert len(world.decisions()) == 2


def test_broken_answers_need_nobody_to_rate_them(world: World) -> None:
    world.serve("stable", 40)
    world.serve("candidate", 40, fails=True)
    (event,) = world.looked(world.controller())
    assert event.verdict == "rollback"
    assert "failed requests: 100.0%, against 0.0%" in event.reason


def test_without_auto_people_decide_and_are_told_once(world: World) -> None:
    world.set("rollout.auto", "false")
    world.serve("stable", ENOUGH, liked=0.3)
    world.serve("candidate", ENOUGH, liked=0.8)
    controller = world.controller()
    (event,) = world.looked(controller)
    assert (event.verdict, event.acted) == ("promote", False)
    world.serve("candidate", 10, liked=1.0)
    assert world.looked(controller) == []
    assert world.rollout().candidate == "2"
    world.set("rollout.auto", "true")
    (event,) = world.looked(controller)
    assert event.acted
    assert world.rollout().stable == "2"


def test_a_pinned_model_holds_and_says_why_until_the_pin_is_off(world: World) -> None:
    world.change(lambda state: pinned(state, "m", pin=True, **{**HUMAN, "reason": "an audit"}))
    world.serve("stable", ENOUGH, liked=0.3)
    world.serve("candidate", ENOUGH, liked=0.8)
    controller = world.controller()
    (event,) = world.looked(controller)
    assert (event.verdict, event.acted) == ("hold", False)
    assert "no promote: m is pinned to 1" in event.reason
    assert "an audit" in event.reason
    world.clock.advance(3600)
    assert world.looked(controller) == []
    world.change(lambda state: pinned(state, "m", pin=False, **HUMAN))
    assert [one.verdict for one in world.looked(controller)] == ["promote"]
    assert world.rollout().stable == "2"


def test_holds_come_at_most_once_a_minute_and_only_if_they_say_something_new(
    world: World,
) -> None:
    controller = world.controller()
    (first,) = world.looked(controller)
    assert (first.verdict, first.look) == ("hold", 1)
    # A rise that may be chance: a check fails that passed.
    world.serve("stable", 25)
    world.serve("candidate", 25, ttft_ms=26.0)
    assert world.looked(controller) == []
    world.clock.advance(HOLD_EVERY_MS / 1000)
    (second,) = world.looked(controller)
    assert (second.verdict, second.look) == ("hold", 3)
    assert [check.name for check in second.checks if not check.passed] == ["outcome", "ttft"]
    world.serve("candidate", 1, ttft_ms=26.0)
    world.clock.advance(3600)
    assert world.looked(controller) == []


def test_nothing_new_is_not_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = world.controller()
    world.looked(controller)
    world.clock.advance(3600)
    world.looked(controller)
    looks: list[int] = []
    monkeypatch.setattr(Observation, "decide", lambda *_, **__: looks.append(1))
    for _ in range(3):
        assert world.looked(controller) == []
    assert not looks


def test_an_undecided_one_ends_when_its_time_is_over(world: World) -> None:
    world.set("rollout.max_hours", "2")
    world.set("rollout.at_end", "rollback")
    controller = world.controller()
    assert world.looked(controller)[0].verdict == "hold"
    world.clock.advance(2 * 3600)
    (event,) = world.looked(controller)
    assert (event.verdict, event.acted) == ("rollback", True)
    assert "undecided after 2 hours" in event.reason
    assert world.rollout().candidate is None


def test_a_restart_repeats_nothing_and_counts_on(world: World) -> None:
    world.serve("stable", ENOUGH, liked=0.5)
    world.serve("candidate", ENOUGH, liked=0.5)
    first = world.controller()
    (event,) = world.looked(first)
    assert (event.verdict, event.look) == ("hold", 1)
    second = world.controller()
    assert world.looked(second) == []
    world.clock.advance(3600)
    assert world.looked(second) == []
    world.serve("candidate", ENOUGH, liked=0.0)
    (later,) = world.looked(second)
    assert (later.verdict, later.look) == ("rollback", 4)


def test_a_crash_between_the_decision_and_the_change_loses_neither(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crashed(BaseException):
        pass

    def crash(*_: Any) -> None:
        raise Crashed

    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    with monkeypatch.context() as patched:
        patched.setattr(under_test, "change_rollout", crash)
        with pytest.raises(Crashed):
            world.looked(world.controller())
    assert world.rollout().candidate == "2"
    assert [one.acted for one in world.decisions()] == [True]
    (event,) = world.looked(world.controller())
    assert (event.verdict, event.acted, event.look) == ("rollback", True, 2)
    assert world.rollout().candidate is None


def test_two_controllers_agree_and_one_acts(world: World) -> None:
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    first, second = world.controller(), world.controller()
    for one in (first, second):
        while one.poll(0.0):
            pass
    (acted,) = first.look()
    # The second has not read of it yet.
    assert second.look() == []
    assert acted.acted
    assert [one.actor for one in world.history()] == ["ada", "ada", ACTOR]
    assert world.looked(second) == []
    assert world.decisions() == [acted]


def test_what_a_person_did_meanwhile_stands(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a withdrawal by hand, a rollback of ours would take out the stable version."""
    world.change(lambda state: rolled_back(state, "m", **HUMAN))
    world.change(lambda state: promoted(state, "m", "2", **HUMAN))
    world.change(
        lambda s: tried(s, "m", "1", mode="canary", weight=0.1, unit="user", **HUMAN),
    )
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    controller = world.controller()
    publish = under_test.publish_decision

    def meanwhile(*arguments: Any) -> None:
        publish(*arguments)
        world.change(lambda state: rolled_back(state, "m", **HUMAN))

    monkeypatch.setattr(under_test, "publish_decision", meanwhile)
    assert world.looked(controller) == []
    assert "m is looked at again: m was changed while it was decided on" in caplog.text
    rollout = world.rollout()
    assert (rollout.stable, rollout.actor) == ("2", "ada")
    assert world.looked(controller) == []


def test_a_refusal_that_comes_with_the_change_is_published_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve("stable", ENOUGH, liked=0.3)
    world.serve("candidate", ENOUGH, liked=0.8)

    def refuse(*_: Any) -> None:
        raise under_test.IllegalTransition("no")

    monkeypatch.setattr(under_test, "change_rollout", refuse)
    announced, refused = world.looked(world.controller())
    assert (announced.verdict, announced.acted) == ("promote", True)
    assert (refused.verdict, refused.acted) == ("hold", False)
    assert refused.reason.startswith("no promote: no; ")


def test_more_weight_goes_on_with_what_was_seen_and_a_new_experiment_does_not(
    world: World,
) -> None:
    controller = world.controller()
    world.serve("stable", 30)
    world.looked(controller)
    world.canary(weight=0.9)
    world.serve("stable", 5)
    world.clock.advance(3600)
    world.serve("candidate", 30, ttft_ms=26.0)
    (event,) = world.looked(controller)
    assert (event.stable.requests, event.revision) == (35, 3)
    world.canary(weight=0.9, unit="tenant")
    (event,) = world.looked(controller)
    assert (event.experiment, event.stable.requests, event.look) == ("m@2#4", 0, 1)


def test_a_change_of_what_is_counted_counts_anew_from_the_start(world: World) -> None:
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    world.set("rollout.metric", "score")
    controller = world.controller()
    (event,) = world.looked(controller)
    assert (event.verdict, event.stable.requests, event.stable.labels) == ("hold", ENOUGH, 0)
    world.set("rollout.metric", "rating")
    (event,) = world.looked(controller)
    assert (event.verdict, event.stable.labels) == ("rollback", ENOUGH)


def test_forgotten_feedback_does_not_count(world: World) -> None:
    world.serve("candidate", 3, liked=1.0)
    world.send(catalogue.EXAMPLES.name, "r2", None)
    (event,) = world.looked(world.controller())
    assert (event.candidate.requests, event.candidate.labels) == (3, 2)


def test_what_cannot_be_read_is_passed_over(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for topic in (catalogue.RESULTS, catalogue.EXAMPLES, catalogue.DECISIONS):
        world.publisher.publish(topic.name, key=b"x", value=b"{")
    world.publisher.publish(catalogue.RESULTS.name, key=b"x", value=None)
    world.serve("candidate", 3)
    (event,) = world.looked(world.controller())
    assert event.candidate.requests == 3
    assert caplog.text.count("unreadable record on") == 3


def test_every_model_has_its_own(world: World) -> None:
    world.model("n")
    world.model("o", canary=False)
    world.serve("stable", ENOUGH, liked=0.8, model="n")
    world.serve("candidate", ENOUGH, liked=0.2, model="n")
    found = {one.model: one.verdict for one in world.looked(world.controller())}
    assert found == {"m": "hold", "n": "rollback"}
    assert world.rollout("m").candidate == "2"
    assert world.rollout("n").candidate is None


def test_a_shadow_is_not_decided_on(world: World) -> None:
    world.change(lambda state: rolled_back(state, "m", **HUMAN))
    shadow = msgspec.structs.replace(
        world.rollout(), revision=9, state="shadow", candidate="2", experiment="e"
    )
    world.send(catalogue.ROLLOUTS.name, "m", shadow)
    assert world.looked(world.controller()) == []


def test_results_are_read_from_the_start_of_the_experiment(world: World) -> None:
    world.serve("candidate", 3)
    rollout = world.rollout()
    for started_at_ms, expected in ((rollout.started_at_ms, 3), (10**13, 0)):
        moved = msgspec.structs.replace(rollout, started_at_ms=started_at_ms)
        found = Observation(world.bus, moved, Policy())
        found.catch_up()
        assert found.news == expected
        found.close()


def test_feedback_is_read_after_the_results_that_it_is_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little of it can be kept until its result comes."""
    monkeypatch.setattr(observation, "Arms", partial(Arms, max_waiting=1))
    monkeypatch.setattr(observation, "MOST_RECORDS", 5)
    world.serve("candidate", 30)
    world.serve("candidate", 10, liked=1.0)
    found = Observation(world.bus, world.rollout(), Policy())
    assert not found.caught_up
    found.catch_up()
    decision = found.decide(Policy(), now_ms=0)
    assert decision.candidate.figures.labels == 10
    found.close()


def test_it_decides_on_nothing_before_it_has_read_all_that_was_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "MOST_RECORDS", 100)
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    controller = world.controller()
    for _ in range(3):
        controller.poll(0.0)
        assert controller.look() == []
    assert [one.stable.requests for one in world.looked(controller)] == [ENOUGH]


def test_what_could_not_be_published_is_decided_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RetryableError("the broker is away")

    controller = world.controller()
    with monkeypatch.context() as patched:
        patched.setattr(under_test, "publish_decision", fail)
        assert world.looked(controller) == []
    assert "m is looked at again: the broker is away" in caplog.text
    assert [one.verdict for one in world.looked(controller)] == ["hold"]


def test_an_alarm_is_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.serve("stable", ENOUGH, liked=0.3, tokens=10)
    world.serve("candidate", ENOUGH, liked=0.8, tokens=40)
    controller = world.controller()
    (event,) = world.looked(controller)
    assert (event.verdict, len(event.alarms)) == ("hold", 1)
    assert "m@2: alarm: length: the outcome rises" in caplog.text
    caplog.clear()
    # Another check fails, beside the alarm that is known.
    world.serve("candidate", 60, liked=0.8, tokens=40, ttft_ms=60.0)
    world.clock.advance(3600)
    (event,) = world.looked(controller)
    assert event.alarms
    assert "alarm" not in caplog.text


def test_operators_see_both_arms_and_every_decision(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with monkeypatch.context() as patch:
        patch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
        fresh = runpy.run_path(observability.instruments.__file__)
    for name in [name for name in vars(under_test) if name in fresh and name.isupper()]:
        monkeypatch.setattr(under_test, name, fresh[name])
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    world.looked(world.controller())
    data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    found = {
        (metric.name, *(str(value) for _, value in sorted((point.attributes or {}).items()))): (
            point.value
        )
        for metric in data.resource_metrics[0].scope_metrics[0].metrics
        for point in metric.data.data_points
    }
    assert found["feedloom.rollout.requests", "candidate", "m", "2"] == ENOUGH
    assert found["feedloom.rollout.errors", "stable", "m", "1"] == 0
    assert found["feedloom.rollout.labels", "stable", "m", "1"] == ENOUGH
    assert found["feedloom.rollout.outcome", "candidate", "m", "2"] == pytest.approx(0.2)
    ttft = found["feedloom.rollout.time_to_first_token", "stable", "m", "1"]
    assert ttft == pytest.approx(0.0219, abs=1e-4)
    assert found["feedloom.rollout.time_per_output_token", "stable", "m", "1"] == pytest.approx(
        0.005
    )
    assert found["feedloom.rollout.output_tokens", "candidate", "m", "2"] == 10
    assert found["feedloom.rollout.decisions", "True", "m", "rollback"] == 1


def test_it_runs_until_it_is_stopped(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world.serve("stable", ENOUGH, liked=0.8)
    world.serve("candidate", ENOUGH, liked=0.2)
    stop = threading.Event()
    thread = threading.Thread(target=Controller(world.bus, stop=stop, interval_s=0.01).run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while world.rollout().candidate is not None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert world.rollout().candidate is None
    assert "m@2: rollback now: the candidate is shown to be worse" in caplog.text


# The commands.


class _Lent:
    """A bus that outlives its context."""

    def __init__(self, bus: InMemoryBus) -> None:
        self._bus = bus

    def __enter__(self) -> InMemoryBus:
        return self._bus

    def __exit__(self, *_: object) -> None:
        return None


def run(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: _Lent(world.bus))
    result = CliRunner().invoke(rollouts, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def test_show_and_decisions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "nothing was decided yet" in run(world, monkeypatch, "decisions")
    world.serve("stable", ENOUGH, liked=0.5)
    world.serve("candidate", ENOUGH, liked=0.2)
    said = run(world, monkeypatch, "show")
    assert "2 is a canary: 50% of the requests, by user" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["stable", "1", "candidate", "2"] in lines
    assert ["requests", "150", "150"] in lines
    assert ["outcome", "50.0%", "20.0%"] in lines
    assert ["time", "to", "first", "token", "21.9", "ms", "21.9", "ms"] in lines
    (check,) = [line for line in said.splitlines() if line.strip().startswith("outcome  -30.0 pt")]
    assert "above +0.0 pt" in check
    assert check.endswith("shown worse")
    assert "rollback: the candidate is shown to be worse" in said
    assert "last decisions" not in said
    # Nothing was published, and nothing done.
    assert world.decisions() == []
    assert world.rollout().candidate == "2"

    run(world, monkeypatch, "run", "--once")
    assert world.rollout().candidate is None
    said = run(world, monkeypatch, "show", "m")
    assert "m: 1 is stable, after a rollback" in said
    assert "no canary; figures of the last decision" in said
    assert ["outcome", "50.0%", "20.0%"] in [line.split() for line in said.splitlines()]
    assert "nothing is tried: `feedloom models canary" in run(world, monkeypatch, "show")
    said = run(world, monkeypatch, "decisions", "m", "--limit", "1")
    (line,) = [line for line in said.splitlines() if "m@2" in line]
    assert "rollback  yes" in line
    assert "nothing was decided" in run(world, monkeypatch, "decisions", "other")


def test_show_says_what_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.set("rollout.auto", "false")
    said = run(world, monkeypatch, "show", "m")
    assert "too few to tell" in said
    assert "rollout.auto is off" in said
    with pytest.raises(IllegalTransition, match="models that do: m"):
        run(world, monkeypatch, "show", "other")
    world.model("o", canary=False)
    assert "no canary, and nothing was decided yet" in run(world, monkeypatch, "show", "o")
