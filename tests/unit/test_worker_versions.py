"""Which versions a worker takes, and what it says when it does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.contracts import catalogue, codec
from infra.contracts.config_sections import Participation
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.generation import GenerationRequest
from infra.contracts.events.model import (
    GateDecision,
    ModelVersionPublished,
    RolloutChanged,
)
from infra.contracts.events.platform import WorkerStatusReported
from infra.registry.client import RegistryWatcher, publish_rollout
from infra.registry.store import ArtifactStore
from infra.registry.workers import WorkersWatcher
from infra.settings import ArtifactStoreSettings
from infra.testing import InMemoryBus
from stream_workers.adapters import check_fit
from stream_workers.engine import EngineGenerateError, EngineOutput, SwitchFailed
from stream_workers.engine_memory import MemoryEngine
from stream_workers.plan import version_name
from stream_workers.routing import Route
from stream_workers.versions import VersionSwitcher, wait_for_plan
from tests.gates import decision, publish_files


class Place:
    """A registry on a bus, with files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.bus = InMemoryBus()
        self.store = ArtifactStore(ArtifactStoreSettings(url=str(folder / "artifacts")))
        self._folder = folder
        self._revision = 0

    def publish(
        self, name: str, gate: GateDecision | None = None, base: str | None = None
    ) -> ModelVersionPublished:
        """``gate`` makes it a version that has learnt from feedback, ``base`` an adapter."""
        source = self._folder / name
        source.mkdir()
        if base is None:
            (source / "config.json").write_text(f'{{"name": "{name}"}}')
            save_file({"layer.weight": np.zeros((6, 4), "f4")}, source / "model.safetensors")
        else:
            write_adapter(source)
        return publish_files(
            self.bus, self.store, source, model="m", version=name, gate=gate, base=base
        )

    def serve(self, name: str, **changes: Any) -> None:
        """Whatever the rules say: some writer may not know them."""
        self._revision += 1
        rollout = RolloutChanged(
            model="m", revision=self._revision, stable=name, changed_at_ms=0, **changes
        )
        publish_rollout(self.bus.publisher(), rollout)

    def canary(self, stable: str, candidate: str, weight: float = 0.5, **changes: Any) -> None:
        how: dict[str, Any] = {"state": "canary", "experiment": "e", **changes}
        self.serve(stable, candidate=candidate, candidate_weight=weight, **how)


def write_adapter(folder: Path, rank: int = 2, inner: int = 4, **config: Any) -> None:
    folder.mkdir(exist_ok=True)
    said = {"peft_type": "LORA", "r": rank, **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    name = "base_model.model.layer.lora_"
    tensors = {
        f"{name}A.weight": np.zeros((rank, inner), "f4"),
        f"{name}B.weight": np.zeros((6, rank), "f4"),
    }
    save_file(tensors, folder / "adapter_model.safetensors")


class Worker:
    """A worker's engine and switcher, on a registry."""

    def __init__(
        self,
        place: Place,
        base: ModelVersionPublished,
        *,
        name: str = "w",
        engine: MemoryEngine | None = None,
    ) -> None:
        self.watcher, self.workers = RegistryWatcher(place.bus), WorkersWatcher(place.bus)
        self.said: list[WorkerStatusReported] = []
        self.engine = engine or MemoryEngine(version=version_name(base))
        self.switcher = VersionSwitcher(
            engine=self.engine,
            store=place.store,
            watcher=self.watcher,
            workers=self.workers,
            base=base,
            path=place.store.resolve(base),
            worker_id=name,
            report=self.said.append,
            in_flight=lambda: 3,
            queued=lambda: 4,
            now_ms=lambda: 7,
        )

    async def follow(self) -> None:
        self.watcher.catch_up()
        self.workers.catch_up()
        await self.switcher.reconcile()

    def route(self, user: str, participation: Participation = "split") -> Route:
        return self.switcher.routing.route(request(user), participation)

    @property
    def loaded(self) -> tuple[str, ...]:
        return self.said[-1].loaded["m"]


def request(user: str | None) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"r-{user}", submit_id="s", prompt="a b", created_at_ms=0, model="m", user=user
    )


def test_a_version_that_its_gate_rejected_is_not_loaded(tmp_path: Path) -> None:
    place = Place(tmp_path)
    worker = Worker(place, place.publish("1"))
    place.publish("2", decision(passed=False, reason="it swore"))
    place.publish("3", decision(passed=True, reason="it did not swear"))

    async def follow(*names: str) -> None:
        for name in names:
            place.serve(name)
            await worker.follow()

    asyncio.run(follow("1", "2", "3"))
    refused, switched = worker.said
    assert refused.versions == {"m": "1"}
    assert refused.failure == "m@2: its gate rejected it: it swore"
    assert switched.versions == {"m": "3"}
    assert switched.failure is None
    assert worker.engine.version == worker.switcher.serving() == "m@3"


def test_a_worker_does_not_start_with_a_version_that_may_not_serve(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.publish("1", decision(passed=False, reason="it swore"))
    place.serve("1")
    with pytest.raises(ConfigurationError, match="m@1 is stable and may not serve: its gate"):
        asyncio.run(wait_for_plan(RegistryWatcher(place.bus), "m"))


def test_a_worker_does_not_start_without_the_adapter_that_is_stable(tmp_path: Path) -> None:
    place = Place(tmp_path)
    base = place.publish("1")
    place.publish("2", base="1")
    place.serve("2")
    worker = Worker(place, base, engine=MemoryEngine(version="m@1", max_adapters=0))

    async def start() -> None:
        plan = await wait_for_plan(worker.watcher, "m")
        assert (plan.base.version, plan.serving.version) == ("1", "2")
        with pytest.raises(ConfigurationError, match="m@2 is stable and cannot be loaded: m@2: no"):
            await worker.switcher.begin(plan)

    asyncio.run(start())


def test_an_adapter_answers_its_share_and_goes_when_it_is_withdrawn(tmp_path: Path) -> None:
    place = Place(tmp_path)
    worker = Worker(place, place.publish("1"))
    place.publish("2", base="1")
    users = [f"user{number}" for number in range(200)]

    async def follow() -> None:
        place.canary("1", "2", weight=0.3)
        await worker.follow()
        routes = {user: worker.route(user) for user in users}
        assert {route.version for route in routes.values()} == {"m@1", "m@2"}
        for user, route in routes.items():
            assert route.assignment is not None
            assert route.assignment.arm == ("candidate" if route.version == "m@2" else "stable")
            assert route.assignment.unit == f"user:{user}"
        assert worker.loaded == ("1", "2")
        assert worker.route("user1", "stable") == Route(version="m@1")
        assert worker.route("user1", "candidate") == Route(version="m@2")
        # More weight takes nobody out of the candidate's arm.
        place.canary("1", "2", weight=0.6)
        await worker.follow()
        before = {user for user, route in routes.items() if route.version == "m@2"}
        after = {user for user in users if worker.route(user).version == "m@2"}
        assert before < after
        place.serve("1", rolled_back=("2",))
        await worker.follow()
        assert {worker.route(user) for user in users} == {Route(version="m@1")}
        # It stays loaded until its place is needed.
        assert worker.engine.adapters == ("m@2",)

    asyncio.run(follow())


def test_a_promoted_adapter_serves_everybody(tmp_path: Path) -> None:
    place = Place(tmp_path)
    worker = Worker(place, place.publish("1"))
    for name in "2345":
        place.publish(name, base="1")

    async def follow() -> None:
        for stable, candidate in (("1", "2"), ("2", "3"), ("2", "4"), ("5", None)):
            if candidate is None:
                place.serve(stable)
            else:
                place.canary(stable, candidate)
            await worker.follow()
            assert worker.switcher.serving() == f"m@{stable}"
            assert worker.said[-1].failure is None
        # Room for two: what was wanted longest ago went first.
        assert worker.engine.adapters == ("m@2", "m@5")
        assert worker.said[-1].versions == {"m": "5"}
        assert (worker.said[-1].in_flight, worker.said[-1].queued) == (3, 4)
        last = worker.said[-1].last_switch
        assert last is not None
        assert (last.from_version, last.to_version) == ("2", "5")

    asyncio.run(follow())


def test_other_weights_take_their_adapters_away(tmp_path: Path) -> None:
    place = Place(tmp_path)
    worker = Worker(place, place.publish("1"))
    place.publish("2", base="1")
    place.publish("3")

    async def follow() -> None:
        place.serve("2")
        await worker.follow()
        assert worker.switcher.serving() == "m@2"
        place.canary("3", "2")
        await worker.follow()
        assert worker.switcher.serving() == "m@3"
        assert worker.engine.adapters == ()
        failure = worker.said[-1].failure
        assert failure is not None
        assert failure.startswith("m@2: it is an adapter of m@1, and the weights here are m@3")
        assert worker.route("ada") == Route(version="m@3")

    asyncio.run(follow())


class Broken(MemoryEngine):
    """Its ``bad`` versions load and then cannot generate."""

    bad: frozenset[str] = frozenset()

    async def generate(self, *arguments: Any, **named: Any) -> AsyncIterator[EngineOutput]:
        version = arguments[3] if arguments[3] in self.adapters else self.version
        if version in self.bad:
            raise EngineGenerateError("no numbers")
        async for output in super().generate(*arguments, **named):
            yield output


def test_what_loads_and_cannot_generate_is_taken_back(tmp_path: Path) -> None:
    place = Place(tmp_path)
    engine = Broken(version="m@1")
    engine.bad = frozenset({"m@3", "m@4", "m@6"})
    worker = Worker(place, place.publish("1"), engine=engine)
    place.publish("2", base="1")
    place.publish("3")
    place.publish("4", base="1")
    place.publish("5")
    place.publish("6", base="5")

    async def follow() -> None:
        place.serve("2")
        await worker.follow()
        place.serve("3")
        await worker.follow()
        assert worker.said[-1].failure == "m@3: m@3 cannot generate: no numbers"
        assert (engine.version, engine.adapters) == ("m@1", ("m@2",))
        assert worker.route("ada") == Route(version="m@2")
        place.canary("2", "4")
        await worker.follow()
        assert worker.said[-1].failure == "m@4: m@4 cannot generate: no numbers"
        assert engine.adapters == ("m@2",)
        assert worker.route("ada") == Route(version="m@2")
        # An adapter whose base loads, and which itself fails: the base goes as well.
        place.serve("6")
        await worker.follow()
        assert worker.said[-1].failure == "m@6: m@6 cannot generate: no numbers"
        assert (engine.version, engine.adapters) == ("m@1", ("m@2",))
        assert worker.said[-1].loaded == {"m": ("1", "2")}
        assert worker.route("ada") == Route(version="m@2")

    asyncio.run(follow())


def test_full_weights_are_tried_by_some_of_the_workers(tmp_path: Path) -> None:
    place = Place(tmp_path)
    base = place.publish("1")
    place.publish("2")
    fleet = [Worker(place, base, name=f"w{number}") for number in range(4)]
    publisher = place.bus.publisher()

    def report(name: str, state: Any, reported_at_ms: int = 7) -> None:
        event = WorkerStatusReported(
            worker_id=name, state=state, versions={"m": "1"}, reported_at_ms=reported_at_ms
        )
        publisher.publish(catalogue.WORKERS.name, key=name.encode(), value=codec.encode(event))

    async def serving() -> list[str]:
        for worker in fleet:
            await worker.follow()
        return [worker.switcher.serving() for worker in fleet]

    async def follow() -> None:
        place.canary("1", "2", weight=0.25)
        # Nobody has heard of another yet: none would be a share.
        assert await serving() == ["m@1"] * 4
        for number in range(4):
            report(f"w{number}", "ready")
        report("gone", "stopped")
        report("silent", "ready", reported_at_ms=-40_000)
        now = await serving()
        assert sorted(now) == ["m@1", "m@1", "m@1", "m@2"]
        for worker, version in zip(fleet, now, strict=True):
            assignment = worker.route("ada").assignment
            assert assignment is not None
            assert assignment.arm == ("candidate" if version == "m@2" else "stable")
            assert worker.route("ada", "candidate") == Route(version=version)
        # The one that tries it leaves, and another takes its place.
        index = now.index("m@2")
        report(f"w{index}", "draining")
        left = [one for number, one in enumerate(await serving()) if number != index]
        assert sorted(left) == ["m@1", "m@1", "m@2"]
        place.serve("2")
        assert await serving() == ["m@2"] * 4

    asyncio.run(follow())


def test_shadowed_requests_are_answered_by_stable(tmp_path: Path) -> None:
    place = Place(tmp_path)
    worker = Worker(place, place.publish("1"))
    place.publish("2", base="1")

    async def follow() -> None:
        place.canary("1", "2", state="shadow")
        await worker.follow()
        routes = [worker.route(f"user{number}") for number in range(100)]
        assert {route.version for route in routes} == {"m@1"}
        assert {route.shadow for route in routes} == {None, "m@2"}
        assert {route.assignment for route in routes} == {None}
        assert worker.route("user1", "stable") == Route(version="m@1")

    asyncio.run(follow())


def test_an_adapter_must_fit_its_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    save_file({"layer.weight": np.zeros((6, 4), "f4")}, base / "model.safetensors")

    def fit(name: str, **options: Any) -> int:
        write_adapter(tmp_path / name, **options)
        return check_fit(tmp_path / name, base, max_rank=8)

    assert fit("good") == 2
    with pytest.raises(SwitchFailed, match="rank is 9; this worker takes 8 at most"):
        fit("much", rank=9)
    with pytest.raises(SwitchFailed, match=r"lora_A.weight is \(2, 5\), and the base's layer is"):
        fit("other", inner=5)
    with pytest.raises(SwitchFailed, match="use_dora=True cannot be served"):
        fit("dora", use_dora=True)
    with pytest.raises(SwitchFailed, match="does not describe a LoRA adapter"):
        fit("strange", peft_type="IA3")
    (tmp_path / "good" / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(SwitchFailed, match=r"adapter_model.safetensors cannot be read"):
        check_fit(tmp_path / "good", base, max_rank=8)
    (tmp_path / "good" / "adapter_config.json").unlink()
    with pytest.raises(SwitchFailed, match=r"adapter_config.json of the adapter cannot be read"):
        check_fit(tmp_path / "good", base, max_rank=8)
