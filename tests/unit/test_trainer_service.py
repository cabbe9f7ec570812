"""The loop on a bus in memory, with a tiny model that really learns."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.errors import FatalError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import Lineage, ModelVersionPublished, RolloutChanged
from infra.registry.client import RegistryWatcher, change_rollout, read_registry
from infra.registry.config import ConfigWatcher, publish_config
from infra.registry.lineage import LEARNT_FROM
from infra.registry.store import ArtifactStore
from infra.registry.transitions import pinned, promoted, rolled_back, stage_of
from infra.settings import Settings
from infra.testing import InMemoryBus
from tests.learning import feedback, prepare, register, send, settings_at
from trainer.intake import awaiting_rollout
from trainer.publishing import publish
from trainer.report import REPORT
from trainer.run_folders import SHOWN, runs_of
from trainer.service import TrainerService


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With text and a model, for every test."""
    path = tmp_path_factory.mktemp("home")
    prepare(settings_at(path))
    return path


@pytest.fixture
def bus(home: Path) -> InMemoryBus:
    found = InMemoryBus()
    register(settings_at(home), found, home / "first", model="default")
    return found


def one_round(settings: Settings, bus: InMemoryBus) -> None:
    TrainerService(settings, bus, stop=threading.Event()).run(once=True)


def versions(bus: InMemoryBus) -> list[ModelVersionPublished]:
    records = bus.records(catalogue.REGISTRY.name)
    return [codec.decode(record.value or b"", ModelVersionPublished) for record in records]


def judged(version: str, *, up: bool, count: int, start: int = 0) -> list[FeedbackExample]:
    return [
        FeedbackExample(
            request_id=f"judged-{start + number}",
            prompt=f"question {start + number}",
            output="The module reads files.",
            model="default",
            model_versions=(version,),
            feedback_ids=("f",),
            updated_at_ms=1,
            ups=int(up),
            downs=int(not up),
        )
        for number in range(count)
    ]


def stable(bus: InMemoryBus) -> str:
    records = bus.records(catalogue.ROLLOUTS.name)
    return codec.decode(records[-1].value or b"", RolloutChanged).stable


def test_feedback_becomes_a_measured_version_that_says_where_it_came_from(
    home: Path, bus: InMemoryBus
) -> None:
    settings = settings_at(home, heldout_fraction=0.3)
    send(bus, feedback(40, model="default"))
    one_round(settings, bus)
    _, second = versions(bus)
    assert stable(bus) == second.version == "2"
    lineage = second.lineage
    assert (lineage.parent, lineage.objective) == ("1", "sft+dpo")
    assert sum(span.end - span.start for span in lineage.feedback) == 40
    assert 15 <= lineage.feedback_examples <= 35
    assert len(lineage.replay_sha256) == len(lineage.replay_shards) >= 1
    assert second.gate is not None
    assert {check.name for check in second.gate.checks} == {
        "forgetting",
        "preference_accuracy",
        "win_rate",
        "safety",
    }
    for name in ("heldout_loss", "heldout_bits_per_byte", "heldout_perplexity"):
        assert second.metrics[f"{name}_before"] > 0
        assert second.metrics[f"{name}_after"] > 0
    for name in ("win_rate", "preference_accuracy"):
        assert 0 <= second.metrics[name] <= 1
    assert second.metrics["bits_per_byte_after/Github"] > 0
    folder = Path(ArtifactStore(settings.artifacts).resolve(second))
    learnt = json.loads((folder / LEARNT_FROM).read_text())
    assert len(learnt) == lineage.feedback_examples
    # What measures is not trained on.
    assert 40 - len(learnt) >= 5


def test_a_version_that_forgets_is_published_as_rejected_and_not_rolled_out(
    home: Path, bus: InMemoryBus
) -> None:
    settings = settings_at(
        home, max_forgetting=0.0, replay_fraction=0.0, learning_rate=0.05, num_train_epochs=20
    )
    send(bus, feedback(12, model="default", edit="ZZZZ XXXX QQQQ WWWW " * 3))
    one_round(settings, bus)
    _, second = versions(bus)
    assert second.rejected
    assert stable(bus) == "1"
    assert second.gate is not None
    (check,) = [check for check in second.gate.checks if check.name == "forgetting"]
    assert not check.passed
    assert "bits per byte" in check.reason

    # Its feedback comes again, with what is new, in the next one.
    send(bus, feedback(4, model="default", start=12))
    one_round(settings_at(home), bus)
    third = versions(bus)[-1]
    assert not third.rejected
    assert stable(bus) == third.version == "3"
    assert third.lineage.parent == "1"
    assert sum(span.end - span.start for span in third.lineage.feedback) == 16


def test_the_same_feedback_can_be_tried_again_with_other_settings(
    home: Path, bus: InMemoryBus
) -> None:
    send(bus, feedback(12, model="default", edit="ZZZZ XXXX QQQQ WWWW " * 3))
    harsh = {"replay_fraction": 0.0, "learning_rate": 0.05, "num_train_epochs": 20}
    one_round(settings_at(home, max_forgetting=0.0, **harsh), bus)
    assert versions(bus)[-1].rejected
    TrainerService(settings_at(home, **harsh), bus, stop=threading.Event()).run(once=True, now=True)
    assert [version.rejected for version in versions(bus)] == [False, True, False]
    assert stable(bus) == "3"


def test_dynamic_settings_are_those_of_the_next_round(home: Path, bus: InMemoryBus) -> None:
    watcher, publisher = ConfigWatcher(bus), bus.publisher()
    for key, value in (("trainer.lora_rank", "4"), ("trainer.dpo_weight", "0")):
        publish_config(publisher, watcher, key, value, now_ms=1)
    send(bus, feedback(12, model="default"))
    one_round(settings_at(home), bus)
    second = versions(bus)[-1]
    assert second.lineage.adapter_rank == 4
    assert second.lineage.objective == "sft"


def test_what_is_pinned_holds_whatever_the_topic_says(home: Path, bus: InMemoryBus) -> None:
    watcher, publisher = ConfigWatcher(bus), bus.publisher()
    for key, value in (("trainer.lora_rank", "4"), ("trainer.dpo_weight", "0")):
        publish_config(publisher, watcher, key, value, now_ms=1)
    send(bus, feedback(12, model="default"))
    pinned = {"lora_rank": 0, "min_examples": 1}
    settings = settings_at(home, min_examples=1000)
    TrainerService(settings, bus, stop=threading.Event(), pinned=pinned).run(once=True)
    second = versions(bus)[-1]
    assert second.lineage.adapter_rank == 0
    assert second.lineage.objective == "sft"


def test_feedback_that_teaches_nothing_is_passed_over(home: Path, bus: InMemoryBus) -> None:
    settings = settings_at(home, sft=False, dpo_weight=0.0, kto_weight=0.0)
    send(bus, feedback(8, model="default"))
    one_round(settings, bus)
    assert len(versions(bus)) == 1


def test_a_round_by_hand_takes_what_there_is(home: Path, bus: InMemoryBus) -> None:
    settings = settings_at(home, min_examples=1000)
    send(bus, feedback(9, model="default"))
    TrainerService(settings, bus, stop=threading.Event()).run(once=True, now=True)
    assert stable(bus) == "2"
    # There is nothing new, and nothing to wait for.
    TrainerService(settings, bus, stop=threading.Event()).run(once=True, now=True)
    assert len(versions(bus)) == 2


def test_what_is_forgotten_is_shown_in_no_report(
    home: Path, bus: InMemoryBus, tmp_path: Path
) -> None:
    settings = settings_at(home, heldout_fraction=0.3, logging_dir=tmp_path)
    send(bus, feedback(40, model="default"))
    one_round(settings, bus)
    (run,) = runs_of(tmp_path, "default")
    shown = json.loads((run / SHOWN).read_text())
    assert shown
    assert (run / REPORT).is_file()
    publisher = bus.publisher()
    publisher.publish(catalogue.EXAMPLES.name, key=shown[0].encode(), value=None)
    TrainerService(settings, bus, stop=threading.Event()).run(once=True, now=True)
    assert not (run / REPORT).exists()


def test_a_fall_of_the_live_win_rate_starts_a_round(home: Path, bus: InMemoryBus) -> None:
    settings = settings_at(home, min_examples=1000, drift_window=10)
    service = TrainerService(settings, bus, stop=threading.Event())
    send(bus, judged("default@1", up=True, count=20))
    send(bus, judged("default@0", up=False, count=20, start=50))
    fallen = judged("default@1", up=False, count=10, start=20)
    timer = threading.Timer(1.0, send, (bus, fallen))
    timer.start()
    service.run(once=True)
    timer.join()
    assert [version.version for version in versions(bus)] == ["1", "2"]


def test_a_pinned_model_learns_but_keeps_its_version(home: Path, bus: InMemoryBus) -> None:
    watcher = RegistryWatcher(bus)

    def pin(value: bool) -> None:
        who: dict[str, Any] = {"now_ms": time.time_ns() // 1_000_000, "actor": "", "reason": ""}
        change_rollout(
            bus.publisher(), watcher, lambda state: pinned(state, "default", pin=value, **who)
        )

    pin(True)
    send(bus, feedback(12, model="default"))
    one_round(settings_at(home), bus)
    assert [one.rejected for one in versions(bus)] == [False, False]
    assert stable(bus) == "1"
    # Nothing that serves has learnt from it, so it is learnt again, with what is new.
    pin(False)
    send(bus, feedback(4, model="default", start=12))
    one_round(settings_at(home), bus)
    third = versions(bus)[-1]
    assert stable(bus) == third.version == "3"
    assert sum(span.end - span.start for span in third.lineage.feedback) == 16


def rollout(bus: InMemoryBus) -> RolloutChanged:
    found = read_registry(bus).rollout("default")
    assert found is not None
    return found


def configure(bus: InMemoryBus, **values: str) -> None:
    watcher, publisher = ConfigWatcher(bus), bus.publisher()
    for name, value in values.items():
        publish_config(publisher, watcher, f"rollout.{name}", json.dumps(value), now_ms=1)


def change(bus: InMemoryBus, transition: Callable[..., RolloutChanged], *names: str) -> None:
    watcher = RegistryWatcher(bus)
    who: dict[str, Any] = {"now_ms": time.time_ns() // 1_000_000, "actor": "ada", "reason": ""}
    change_rollout(
        bus.publisher(), watcher, lambda state: transition(state, "default", *names, **who)
    )


def test_a_version_is_tried_before_it_serves_if_that_is_the_strategy(
    home: Path, bus: InMemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    configure(bus, strategy="canary", unit="tenant")
    send(bus, feedback(12, model="default"))
    one_round(settings_at(home), bus)
    current = rollout(bus)
    assert (current.stable, current.candidate, current.state) == ("1", "2", "canary")
    assert (current.candidate_weight, current.unit) == (0.1, "tenant")
    assert (current.actor, current.experiment) == ("feedloom/trainer", "default@2#2")

    # What the next round makes of what came since waits, and so does its feedback.
    send(bus, feedback(4, model="default", start=12))
    one_round(settings_at(home), bus)
    third = versions(bus)[-1]
    assert (third.version, third.lineage.parent, third.rejected) == ("3", "1", False)
    assert rollout(bus) == current
    assert "no canary of default@3, which serves nobody yet" in caplog.text
    assert "default@2 is the candidate" in caplog.text
    assert awaiting_rollout(read_registry(bus), "default") is None

    # The candidate wins: what it had learnt stays learnt, the rest is learnt on top of it.
    change(bus, promoted, "2")
    send(bus, feedback(4, model="default", start=16))
    one_round(settings_at(home), bus)
    fourth = versions(bus)[-1]
    assert (fourth.version, fourth.lineage.parent) == ("4", "2")
    assert sum(span.end - span.start for span in fourth.lineage.feedback) == 8
    assert rollout(bus).candidate == "4"


def test_what_a_withdrawn_candidate_had_learnt_is_learnt_again_without_a_restart(
    home: Path, bus: InMemoryBus
) -> None:
    configure(bus, strategy="canary")
    send(bus, feedback(12, model="default"))
    stop = threading.Event()
    service = TrainerService(settings_at(home), bus, stop=stop)
    thread = threading.Thread(target=service.run)
    thread.start()

    def wait_for(candidate: str) -> None:
        deadline = time.monotonic() + 60
        while rollout(bus).candidate != candidate and time.monotonic() < deadline:
            time.sleep(0.02)
        assert rollout(bus).candidate == candidate

    try:
        wait_for("2")
        change(bus, rolled_back)
        send(bus, feedback(4, model="default", start=12))
        wait_for("3")
    finally:
        stop.set()
        thread.join(60)
    third = versions(bus)[-1]
    assert third.lineage.parent == "1"
    assert sum(span.end - span.start for span in third.lineage.feedback) == 16
    assert third.lineage.feedback_examples > 8


def test_what_a_version_had_learnt_that_serves_again_is_not_learnt_again(
    home: Path, bus: InMemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trainer")
    configure(bus, strategy="canary")
    send(bus, feedback(12, model="default"))
    stop = threading.Event()
    service = TrainerService(settings_at(home), bus, stop=stop)
    thread = threading.Thread(target=service.run)
    thread.start()

    def wait_until(done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not done() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert done()

    try:
        wait_until(lambda: rollout(bus).candidate == "2")
        change(bus, rolled_back)
        wait_until(lambda: "2 serves no more" in caplog.text)
        change(bus, promoted, "2")
        wait_until(lambda: "2 is in use" in caplog.text)
        send(bus, feedback(8, model="default", start=12))
        wait_until(lambda: rollout(bus).candidate == "3")
    finally:
        stop.set()
        thread.join(60)
    third = versions(bus)[-1]
    assert third.lineage.parent == "2"
    assert sum(span.end - span.start for span in third.lineage.feedback) == 8


def test_full_weights_make_no_shadow_and_stay_gated(
    home: Path, bus: InMemoryBus, caplog: pytest.LogCaptureFixture
) -> None:
    configure(bus, strategy="shadow")
    send(bus, feedback(12, model="default"))
    one_round(settings_at(home), bus)
    second, current = versions(bus)[-1], rollout(bus)
    assert (second.version, current.stable, current.candidate) == ("2", "1", None)
    assert stage_of(read_registry(bus), second) == "gated"
    assert "no shadow of default@2, which serves nobody yet" in caplog.text
    assert "full weights" in caplog.text

    # Another strategy at the next start finds it.
    configure(bus, strategy="canary")
    stop = threading.Event()
    stop.set()
    TrainerService(settings_at(home), bus, stop=stop).run()
    assert rollout(bus).candidate == "2"


def test_what_was_changed_during_a_round_is_not_undone(home: Path, bus: InMemoryBus) -> None:
    settings = settings_at(home, rollout_delay_s=2.0)
    send(bus, feedback(12, model="default"))

    def pin_once_published() -> None:
        while len(versions(bus)) < 2:
            time.sleep(0.01)
        change(bus, partial(pinned, pin=True))

    thread = threading.Thread(target=pin_once_published)
    thread.start()
    one_round(settings, bus)
    thread.join(10)
    current = rollout(bus)
    assert (current.stable, current.pinned, current.revision) == ("1", True, 2)


def test_a_schedule_starts_a_round_once_something_waits(home: Path, bus: InMemoryBus) -> None:
    settings = settings_at(home, min_examples=1000, schedule="* * * * *")
    send(bus, feedback(9, model="default"))
    one_round(settings, bus)  # the minute since the first version, or the next one
    assert stable(bus) == "2"


def test_an_imported_model_is_a_version_of_its_own(home: Path, bus: InMemoryBus) -> None:
    imported = publish(
        home / "first",
        model="default",
        lineage=Lineage(objective="imported"),
        metrics={},
        store=ArtifactStore(settings_at(home).artifacts),
        state=read_registry(bus),
        publisher=bus.publisher(),
    )
    assert imported.version == "2"
    assert len(versions(bus)) == 2


def test_without_a_stable_version_it_says_what_to_do(home: Path) -> None:
    bus = InMemoryBus()
    send(bus, feedback(8, model="default"))
    with pytest.raises(FatalError, match="models bootstrap"):
        one_round(settings_at(home), bus)
