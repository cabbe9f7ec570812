"""Trainers that are killed, each at another point, and others that go on after them.

A process of its own, started by ``test_trainer_killed``: it imports torch once and forks for every
trainer, so that each is a real process that a real SIGKILL ends.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import infra.registry.store
import trainer.intake
import trainer.publishing
import trainer.recording
import trainer.rounds
import trainer.service
from infra.kafka.bus import KafkaBus
from infra.registry.client import RegistryWatcher
from infra.settings import KafkaSettings, Settings
from tests.learning import feedback, prepare, register, send, settings_at
from trainer.model import load_model
from trainer.service import TrainerService

FEEDBACK = 12
QUIET_S = 8.0
LIMIT_S = 120.0
AT_ONCE = 3


def _die(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        if found != 0:
            _die()
        return found

    return called


POINTS: dict[str, tuple[Any, str, bool]] = {
    "feedback-read": (trainer.intake.FeedbackIntake, "poll", True),
    "curating": (trainer.service, "curated_feedback", False),
    "parent-measured": (trainer.rounds, "train", False),
    "training": (trainer.recording.RoundRecord, "progress", False),
    "trained": (trainer.rounds, "decide", False),
    "saved": (trainer.service, "save_model", True),
    "copying": (infra.registry.store.shutil, "copyfile", True),
    "stored": (infra.registry.store.ArtifactStore, "put", True),
    "published": (trainer.publishing, "publish_version", True),
    "rolling-out": (trainer.publishing, "publish_rollout", False),
    "rolled-out": (trainer.publishing, "publish_rollout", True),
}
"""Where a trainer dies: before or (True) after the call of something."""


def settings_of(point: str, home: Path, kafka: KafkaSettings) -> Settings:
    """A model for each point; all feedback is in one round."""
    return settings_at(home, kafka, model=point, min_examples=FEEDBACK, heldout_fraction=0.0)


def _fork(work: Callable[[], None]) -> int:
    """Runs in a child, whose process id this is."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _forked(work: Callable[[], None]) -> int:
    """Runs in a child to its end; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(work), 0)[1])


def _killed(settings: Settings, point: str) -> None:
    owner, name, after = POINTS[point]
    found = _dying_after(getattr(owner, name)) if after else _die
    with patch.object(owner, name, found):
        TrainerService(settings, KafkaBus(settings.kafka), stop=threading.Event()).run(once=True)


def _going_on(settings: Settings) -> None:
    """Runs until the second version is stable."""
    bus, stop = KafkaBus(settings.kafka), threading.Event()

    def watch() -> None:
        watcher = RegistryWatcher(bus)
        while not stop.is_set():
            watcher.poll(0.2)
            current = watcher.state.rollout(settings.trainer.model)
            if current is not None and current.stable == "2":
                stop.set()
        watcher.close()

    limit = threading.Timer(LIMIT_S, _die)
    limit.daemon = True
    limit.start()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        TrainerService(settings, bus, stop=stop).run()
    finally:
        stop.set()
        thread.join()
        limit.cancel()


def _drill(point: str, settings: Settings) -> None:
    """One trainer dies, and another goes on."""
    died = _forked(lambda: _killed(settings, point))
    went_on = _forked(lambda: _going_on(settings))
    sys.stdout.write(f"{point}: {died}, then {went_on}\n")
    assert (died, went_on) == (-signal.SIGKILL, 0), point


def _drill_all(every: dict[str, Settings]) -> int:
    """A few side by side, as they wait for the broker more than they compute; how many failed."""
    waiting, running, failed = list(every), set[int](), 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            point = waiting.pop(0)
            running.add(_fork(partial(_drill, point, every[point])))
        child, status = os.wait()
        running.remove(child)
        failed += status != 0
    return failed


def _idle(every: list[Settings]) -> None:
    """All trainers for a while: there is nothing left to do for any."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def serve(settings: Settings) -> None:
        try:
            TrainerService(settings, KafkaBus(settings.kafka), stop=stop).run()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=serve, args=[settings]) for settings in every]
    for thread in threads:
        thread.start()
    stop.wait(QUIET_S)
    stop.set()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _set_up(every: dict[str, Settings]) -> None:
    """A model for each point, all of the same weights, and its feedback."""
    first: Path | None = None
    for point, settings in every.items():
        first = first or prepare(settings)
        bus = KafkaBus(settings.kafka)
        register(settings, bus, first, model=point)
        send(bus, feedback(FEEDBACK, model=point))


def main(home: Path, bootstrap: str, prefix: str) -> int:
    """How much went wrong."""
    kafka = KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix)
    every = {point: settings_of(point, home, kafka) for point in POINTS}
    if (status := _forked(lambda: _set_up(every))) != 0:
        return abs(status)
    # What transformers works out at its first load, and what is here already, is worked out and
    # looked through by none of the forks.
    load_model(home / "first")
    gc.freeze()
    return _drill_all(every) + abs(_forked(lambda: _idle(list(every.values()))))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
