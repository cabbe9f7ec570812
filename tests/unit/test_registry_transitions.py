"""What may become of a version: every sequence of changes, against a model of the rules."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infra.contracts import catalogue
from infra.contracts.events.model import Lineage, ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import WorkerStatusReported
from infra.registry.client import (
    RegistryWatcher,
    RolloutOvertaken,
    change_rollout,
    publish_rollout,
    publish_version,
)
from infra.registry.config import ConfigWatcher, publish_config
from infra.registry.state import RegistryState
from infra.registry.transitions import (
    IllegalTransition,
    pinned,
    promoted,
    refusal,
    rolled_back,
    stage_of,
    tried,
)
from infra.registry.workers import read_workers
from infra.testing import InMemoryBus
from tests.gates import SPAN, decision

WHO: dict[str, Any] = {"now_ms": 5, "actor": "ada", "reason": "because"}
KINDS = ("imported", "ungated", "passed", "failed")


def version(name: str, kind: str = "imported", base: str | None = None) -> ModelVersionPublished:
    """With a ``base`` it is an adapter."""
    learnt = kind != "imported"
    return ModelVersionPublished(
        model="m",
        version=name,
        kind="full" if base is None else "lora",
        base=base,
        artifact_uri="file:///x",
        manifest=(),
        created_at_ms=0,
        lineage=Lineage(objective="sft", feedback=(SPAN,) if learnt else ()),
        gate=decision(passed=kind == "passed", reason="why")
        if kind in ("passed", "failed")
        else None,
    )


class Rollouts(RuleBasedStateMachine):
    """Beside the registry: what was stable, as a stack, the candidate, and whether it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RegistryState()
        self.kinds: dict[str, str] = {}
        self.bases: dict[str, str | None] = {}
        self.stack: list[str] = []
        self.candidate: str | None = None
        self.pinned = False
        self.revision = 0

    def take(self, event: RolloutChanged) -> None:
        self.revision += 1
        assert event.revision == self.revision
        assert (event.actor, event.reason, event.changed_at_ms) == ("ada", "because", 5)
        assert self.state.apply(event)

    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def publish(self, kind: str, data: st.DataObject) -> None:
        name = self.state.next_version("m")
        base = data.draw(st.sampled_from([None, "unknown", *self.kinds]))
        self.kinds[name], self.bases[name] = kind, base
        self.state.apply(version(name, kind, base))

    def may_serve(self, name: str) -> bool:
        base = self.bases[name]
        based = base is None or (base in self.kinds and self.bases[base] is None)
        return self.kinds[name] in ("imported", "passed") and based

    def fits(self, candidate: str, stable: str) -> bool:
        """Whether both can serve in one platform."""
        base = self.bases[candidate]
        return base is None or base == (self.bases[stable] or stable)

    @precondition(lambda self: self.kinds)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kinds)))
        allowed = (
            self.may_serve(name) and not (self.pinned and self.stack) and self.stack[-1:] != [name]
        )
        if not allowed:
            with pytest.raises(IllegalTransition, match=f"m@{name}|m is pinned"):
                promoted(self.state, "m", name, **WHO)
            return
        self.take(promoted(self.state, "m", name, **WHO))
        self.stack = [*(one for one in self.stack if one != name), name]
        if self.candidate == name or (self.candidate and not self.fits(self.candidate, name)):
            self.candidate = None

    @precondition(lambda self: self.kinds)
    @rule(
        data=st.data(),
        mode=st.sampled_from(["canary", "shadow"]),
        weight=st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.1]),
    )
    def try_one(self, data: st.DataObject, mode: Any, weight: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.kinds)))
        how: dict[str, Any] = {"mode": mode, "weight": weight, "unit": "user", **WHO}
        before = self.state.rollout("m")
        allowed = (
            before is not None
            and self.may_serve(name)
            and 0 < weight <= 1
            and not self.pinned
            and self.stack[-1] != name
            and self.candidate in (None, name)
            and self.fits(name, self.stack[-1])
            and not (mode == "shadow" and self.bases[name] is None)
            and (before.candidate, before.state, before.candidate_weight) != (name, mode, weight)
        )
        if not allowed:
            with pytest.raises(IllegalTransition):
                tried(self.state, "m", name, **how)
            return
        assert before is not None
        event = tried(self.state, "m", name, **how)
        self.take(event)
        goes_on = before.candidate == name and before.state == mode
        assert (event.experiment == before.experiment) == goes_on
        assert (event.started_at_ms, event.candidate_weight) == (5, weight)
        self.candidate = name

    @rule()
    def roll_back(self) -> None:
        if self.candidate is None and len(self.stack) < 2:
            with pytest.raises(IllegalTransition):
                rolled_back(self.state, "m", **WHO)
            return
        gone = self.candidate or self.stack.pop()
        self.candidate = None
        self.take(rolled_back(self.state, "m", **WHO))
        known = self.state.version("m", gone)
        assert known is not None
        # One that was stable once, and was withdrawn as a candidate now, is both.
        assert stage_of(self.state, known) == "rolled_back"

    @rule(pin=st.booleans())
    def pin(self, pin: bool) -> None:
        if not self.stack or pin == self.pinned:
            with pytest.raises(IllegalTransition):
                pinned(self.state, "m", pin=pin, **WHO)
            return
        self.take(pinned(self.state, "m", pin=pin, **WHO))
        self.pinned = pin

    @invariant()
    def the_registry_says_the_same(self) -> None:
        current = self.state.rollout("m")
        if current is None:
            assert not self.stack
            return
        assert [*current.retired, current.stable] == self.stack
        assert current.pinned == self.pinned
        assert current.candidate == self.candidate
        assert (current.candidate is None) == (current.experiment == "")
        assert (current.candidate is not None) == (current.state in ("canary", "shadow"))
        serving = self.state.stable("m")
        assert serving is not None
        assert refusal(serving) is None
        stages = [stage_of(self.state, one) for one in self.state.versions("m")]
        assert stages.count("stable") == 1
        if current.candidate is not None:
            assert stages.count("canary") + stages.count("candidate") == 1
            assert current.candidate not in current.rolled_back


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_rollback_withdraws_the_candidate_first() -> None:
    state = RegistryState()
    for name in "123":
        state.apply(version(name, "passed"))
    state.apply(promoted(state, "m", "1", **WHO))
    state.apply(promoted(state, "m", "2", **WHO))
    state.apply(tried(state, "m", "3", mode="canary", weight=0.1, unit="user", **WHO))
    assert [stage_of(state, one) for one in state.versions("m")] == ["retired", "stable", "canary"]
    back = rolled_back(state, "m", **WHO)
    state.apply(back)
    assert (back.stable, back.candidate, back.state) == ("2", None, "rolled_back")
    assert back.rolled_back == ("3",)
    back = rolled_back(state, "m", **WHO)
    assert (back.stable, back.rolled_back) == ("1", ("3", "2"))


def test_more_weight_goes_on_with_the_experiment_and_another_unit_begins_one() -> None:
    state = RegistryState()
    for name in "12":
        state.apply(version(name, "passed"))
    state.apply(promoted(state, "m", "1", **WHO))

    def canary(weight: float, unit: Any = "user") -> RolloutChanged:
        event = tried(state, "m", "2", mode="canary", weight=weight, unit=unit, **WHO)
        state.apply(event)
        return event

    assert canary(0.05).experiment == canary(0.5).experiment == "m@2#2"
    assert canary(0.5, "tenant").experiment == "m@2#4"
    with pytest.raises(IllegalTransition, match=r"a canary at 0\.5 already \(revision 4 by ada"):
        canary(0.5, "tenant")


def test_an_adapter_serves_beside_its_own_base_only() -> None:
    state = RegistryState()
    for event in (version("1"), version("2"), version("3", base="1"), version("4", base="9")):
        state.apply(event)
    state.apply(promoted(state, "m", "2", **WHO))
    how: dict[str, Any] = {"weight": 0.1, "unit": "user", **WHO}
    with pytest.raises(IllegalTransition, match="is an adapter of m@1, and the weights that serve"):
        tried(state, "m", "3", mode="canary", **how)
    with pytest.raises(IllegalTransition, match="its base m@9 was never published"):
        tried(state, "m", "4", mode="canary", **how)
    with pytest.raises(IllegalTransition, match=r"take a worker whole.*models replay"):
        tried(state, "m", "1", mode="shadow", **how)
    state.apply(promoted(state, "m", "1", **WHO))
    state.apply(tried(state, "m", "3", mode="shadow", **how))
    # The base goes, and with it the adapter that was tried on it.
    assert promoted(state, "m", "2", **WHO).candidate is None


def test_what_is_refused_says_what_there_is() -> None:
    state = RegistryState()
    with pytest.raises(IllegalTransition, match="never published; versions: none"):
        promoted(state, "m", "1", **WHO)
    with pytest.raises(IllegalTransition, match="no version of 'm' serves; models that do: none"):
        rolled_back(state, "m", **WHO)
    state.apply(version("1", "failed"))
    with pytest.raises(IllegalTransition, match="its gate rejected it: why"):
        promoted(state, "m", "1", **WHO)


# On a bus.


class Rival:
    """Publishes a change of its own when the other writer has looked, or has written."""

    def __init__(self, bus: InMemoryBus, event: RolloutChanged, *, before: bool) -> None:
        self._publisher = bus.publisher()
        self._event = event
        self._before = before

    def publish(self, topic: str, **record: Any) -> Any:
        if self._before:
            publish_rollout(self._publisher, self._event)
        done = self._publisher.publish(topic, **record)
        if not self._before:
            publish_rollout(self._publisher, self._event)
        return done

    def close(self) -> None:
        self._publisher.close()


@pytest.mark.parametrize("before", [True, False])
def test_of_two_writers_at_once_one_learns_of_the_other(before: bool) -> None:
    bus = InMemoryBus()
    for name in "123":
        publish_version(bus.publisher(), version(name))
    watcher = RegistryWatcher(bus)
    first = change_rollout(bus.publisher(), watcher, lambda s: promoted(s, "m", "1", **WHO))
    other = msgspec.structs.replace(first, revision=2, stable="3", actor="bob")
    says = "came later and stands" if before else "by bob, to 3"
    with pytest.raises(RolloutOvertaken, match=says):
        change_rollout(
            Rival(bus, other, before=before),
            watcher,
            lambda s: promoted(s, "m", "2", **WHO),
        )
    standing = watcher.state.rollout("m")
    assert standing is not None
    assert standing.stable == ("2" if before else "3")
    assert not watcher.callbacks


def test_the_newest_report_of_each_worker_counts(caplog: pytest.LogCaptureFixture) -> None:
    from infra.contracts import codec

    bus = InMemoryBus()
    publisher = bus.publisher()
    for worker, served in (("a", "1"), ("b", "1"), ("a", "2"), ("gone", "1")):
        report = WorkerStatusReported(
            worker_id=worker, state="ready", versions={"m": served}, reported_at_ms=1
        )
        publisher.publish(catalogue.WORKERS.name, key=worker.encode(), value=codec.encode(report))
    publisher.publish(catalogue.WORKERS.name, key=b"gone", value=None)
    publisher.publish(catalogue.WORKERS.name, key=b"x", value=b"\xff")
    found = {one.worker_id: one.versions["m"] for one in read_workers(bus)}
    assert found == {"a": "2", "b": "1"}
    assert "unreadable" in caplog.text


def test_the_commands_change_and_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.contracts import codec

    bus = InMemoryBus()
    for name, kind in (("1", "imported"), ("2", "passed"), ("3", "failed")):
        publish_version(
            bus.publisher(), msgspec.structs.replace(version(name, kind), model="default")
        )
    report = WorkerStatusReported(
        worker_id="w",
        state="ready",
        versions={"default": "1"},
        reported_at_ms=1,
        failure="default@2: no such file",
    )
    bus.publisher().publish(catalogue.WORKERS.name, key=b"w", value=codec.encode(report))
    run = _commands(bus, monkeypatch)
    assert "default: 1 is stable" in run("promote", "1")
    assert "default: 2 is stable" in run("promote", "default@2", "--reason", "better")
    with pytest.raises(IllegalTransition, match="gate rejected"):
        run("promote", "3")
    assert "pinned" in run("pin", "--reason", "an audit")
    with pytest.raises(IllegalTransition, match="an audit"):
        run("promote", "1")
    said = run("rollback", "--reason", "worse")
    assert "default: 1 is stable, pinned, after a rollback" in said
    assert ": worse" in said
    assert "rolled back: 2" in said
    said = run("status")
    assert "revision 4" in said
    assert "worker w: ready, default@1" in said
    assert "REFUSED default@2: no such file" in said
    assert "pinned" not in run("unpin")


def test_a_version_is_tried_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    bus = InMemoryBus()
    for name in "123":
        event = version(name, base="1" if name == "3" else None)
        publish_version(bus.publisher(), msgspec.structs.replace(event, model="default"))
    run = _commands(bus, monkeypatch)
    run("promote", "1")
    said = run("canary", "2", "--weight", "5", "--reason", "a look")
    assert "default: 1 is stable\n  2 is a canary: 5% of the requests, by user\n" in said
    assert "  experiment default@2#2, since 2" in said
    assert ": a look" in said
    assert said in run("status")
    said = run("canary", "2", "--weight", "0.25", "--unit", "tenant")
    assert "2 is a canary: 0.25% of the requests, by tenant\n  experiment default@2#3" in said
    # Another weight alone goes on, whatever rollout.unit says.
    said = run("canary", "2", "--weight", "100")
    assert "2 is a canary: 100% of the requests, by tenant\n  experiment default@2#3" in said
    with pytest.raises(IllegalTransition, match="2 is the candidate"):
        run("canary", "3")
    assert "1 is stable, after a rollback" in run("rollback")

    watcher = ConfigWatcher(bus)
    for key, value in (("rollout.weight", "0.2"), ("rollout.unit", '"conversation"')):
        publish_config(bus.publisher(), watcher, key, value, now_ms=1)
    with pytest.raises(IllegalTransition, match="models replay"):
        run("shadow", "2")
    said = run("shadow", "3")
    assert "3 is a shadow: copies of 20% of the requests, by conversation" in said
    assert "3 is a shadow: copies of 2% of" in run("shadow", "3", "--share", "2")


@pytest.mark.parametrize("weight", ["0", "-1", "100.1", "much"])
def test_a_weight_is_a_percentage(weight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        _commands(InMemoryBus(), monkeypatch)("canary", "2", "--weight", weight)


def test_status_says_what_else_is_loaded_and_who_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from infra.contracts import codec

    bus = InMemoryBus()
    for name in "12":
        event = msgspec.structs.replace(version(name), model="default")
        publish_version(bus.publisher(), event)
    run = _commands(bus, monkeypatch)
    run("promote", "1")
    run("canary", "2")
    now_ms = time.time_ns() // 1_000_000
    for worker, state, serving, loaded, ago_s in (
        ("a", "ready", "1", ("1", "2"), 1),
        ("b", "ready", "2", ("2",), 40),
        ("c", "ready", "1", (), 1800),
        ("d", "stopped", "1", (), 1800),
        ("e", "ready", "0", (), 3 * 86400),
    ):
        report = WorkerStatusReported(
            worker_id=worker,
            state=state,  # type: ignore[arg-type]
            versions={"default": serving},
            loaded={"default": loaded} if loaded else {},
            reported_at_ms=now_ms - 1000 * ago_s,
        )
        value = codec.encode(report)
        bus.publisher().publish(catalogue.WORKERS.name, key=worker.encode(), value=value)
    lines = [line for line in run("status").splitlines() if line.startswith("worker ")]
    assert "worker a: ready, default@1 and beside it default@2, reported" in lines[0]
    assert "silent" not in lines[0]
    assert "worker b: ready, default@2 (the canary), reported" in lines[1]
    assert "(silent for 40 s)" in lines[1] or "(silent for 41 s)" in lines[1]
    assert "(silent for 30 min)" in lines[2]
    assert "silent" not in lines[3]
    assert "default@0 (not the stable version)" in lines[4]
    assert "(silent for 3 days)" in lines[4]


def _commands(bus: InMemoryBus, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``feedloom models`` on a bus."""
    from trainer.commands import models

    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: _Lent(bus))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(models, list(arguments))
        if result.exception is not None:
            raise result.exception
        return result.output

    return run


class _Lent:
    """A bus that outlives its context."""

    def __init__(self, bus: InMemoryBus) -> None:
        self._bus = bus

    def __enter__(self) -> InMemoryBus:
        return self._bus

    def __exit__(self, *_: object) -> None:
        return None
