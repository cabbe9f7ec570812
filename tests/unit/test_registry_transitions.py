"""What may become of a version: every sequence of changes, against a model of the rules."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from infra.contracts import catalogue
from infra.contracts.events import (
    Lineage,
    ModelVersionPublished,
    RolloutChanged,
    WorkerStatusReported,
)
from infra.registry.client import (
    RegistryWatcher,
    RolloutOvertaken,
    change_rollout,
    publish_rollout,
    publish_version,
)
from infra.registry.state import RegistryState
from infra.registry.transitions import (
    IllegalTransition,
    pinned,
    promoted,
    refusal,
    rolled_back,
    stage_of,
)
from infra.registry.workers import read_workers
from infra.testing import InMemoryBus
from tests.gates import SPAN, decision

WHO: dict[str, Any] = {"now_ms": 5, "actor": "ada", "reason": "because"}
KINDS = ("imported", "ungated", "passed", "failed")


def version(name: str, kind: str = "imported") -> ModelVersionPublished:
    learnt = kind != "imported"
    return ModelVersionPublished(
        model="m",
        version=name,
        kind="full",
        artifact_uri="file:///x",
        manifest=(),
        created_at_ms=0,
        lineage=Lineage(objective="sft", feedback=(SPAN,) if learnt else ()),
        gate=decision(passed=kind == "passed", reason="why")
        if kind in ("passed", "failed")
        else None,
    )


class Rollouts(RuleBasedStateMachine):
    """Beside the registry: what was stable, as a stack, and whether it is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RegistryState()
        self.kinds: dict[str, str] = {}
        self.stack: list[str] = []
        self.pinned = False
        self.revision = 0

    def take(self, event: RolloutChanged) -> None:
        self.revision += 1
        assert event.revision == self.revision
        assert (event.actor, event.reason, event.changed_at_ms) == ("ada", "because", 5)
        assert self.state.apply(event)

    @rule(kind=st.sampled_from(KINDS))
    def publish(self, kind: str) -> None:
        name = self.state.next_version("m")
        self.kinds[name] = kind
        self.state.apply(version(name, kind))

    @precondition(lambda self: self.kinds)
    @rule(data=st.data())
    def promote(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.kinds)))
        allowed = (
            self.kinds[name] in ("imported", "passed")
            and not (self.pinned and self.stack)
            and self.stack[-1:] != [name]
        )
        if not allowed:
            with pytest.raises(IllegalTransition, match=f"m@{name}|m is pinned"):
                promoted(self.state, "m", name, **WHO)
            return
        self.take(promoted(self.state, "m", name, **WHO))
        self.stack = [*(one for one in self.stack if one != name), name]

    @rule()
    def roll_back(self) -> None:
        if len(self.stack) < 2:
            with pytest.raises(IllegalTransition):
                rolled_back(self.state, "m", **WHO)
            return
        gone = self.stack.pop()
        self.take(rolled_back(self.state, "m", **WHO))
        known = self.state.version("m", gone)
        assert known is not None
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
        serving = self.state.stable("m")
        assert serving is not None
        assert refusal(serving) is None
        stages = [stage_of(self.state, one) for one in self.state.versions("m")]
        assert stages.count("stable") == 1
        assert not set(current.retired) & set(current.rolled_back)


TestRollouts = Rollouts.TestCase
TestRollouts.settings = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_a_rollback_gives_up_the_candidate_too() -> None:
    state = RegistryState()
    for name in "123":
        state.apply(version(name, "passed"))
    state.apply(promoted(state, "m", "1", **WHO))
    state.apply(promoted(state, "m", "2", **WHO))
    current = state.rollout("m")
    assert current is not None
    state.apply(
        msgspec.structs.replace(
            current, revision=3, candidate="3", candidate_weight=0.1, state="canary"
        )
    )
    assert [stage_of(state, one) for one in state.versions("m")] == ["retired", "stable", "canary"]
    back = rolled_back(state, "m", **WHO)
    state.apply(back)
    assert (back.stable, back.candidate, back.state) == ("1", None, "rolled_back")
    assert back.rolled_back == ("2", "3")


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
    from trainer.commands import models

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
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: _Lent(bus))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(models, list(arguments))
        if result.exception is not None:
            raise result.exception
        return result.output

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


class _Lent:
    """A bus that outlives its context."""

    def __init__(self, bus: InMemoryBus) -> None:
        self._bus = bus

    def __enter__(self) -> InMemoryBus:
        return self._bus

    def __exit__(self, *_: object) -> None:
        return None
