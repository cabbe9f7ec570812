"""Adapters as versions: published beside their base, and merged where whole weights are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infra.contracts.errors import ConfigurationError, FatalError
from infra.contracts.events.model import Lineage, ModelVersionPublished
from infra.registry.client import read_registry
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.testing import InMemoryBus
from tests.conftest import Weights
from trainer.publishing import publish
from trainer.whole import whole


class Place:
    def __init__(self, folder: Path) -> None:
        self.bus, self.state = InMemoryBus(), RegistryState()
        self.store, self.cache = ArtifactStore(folder / "artifacts"), folder / "merged"

    def publish(self, files: Path, base: str | None = None) -> ModelVersionPublished:
        return publish(
            files,
            model="default",
            base=base,
            lineage=Lineage(objective="imported"),
            metrics={},
            store=self.store,
            state=self.state,
            publisher=self.bus.publisher(),
        )

    def whole(self, version: ModelVersionPublished) -> Path:
        return whole(version, state=self.state, store=self.store, cache=self.cache)


def test_an_adapter_is_merged_once(weights: Weights, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    place = Place(tmp_path)
    full, adapter = place.publish(weights.first), place.publish(weights.adapters[0], base="1")
    assert (full.kind, adapter.kind, adapter.base) == ("full", "lora", "1")
    assert place.whole(full) == Path(place.store.resolve(full))
    folder = place.whole(adapter)
    merged, expected = (load_file(one / "model.safetensors") for one in (folder, weights.merged))
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in expected)
    assert (folder / "tokenizer.json").is_file()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert place.whole(adapter) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in place.cache.iterdir()] == [folder.name]


def test_an_adapter_without_its_base_is_no_model(weights: Weights, tmp_path: Path) -> None:
    place = Place(tmp_path)
    with pytest.raises(FatalError, match="default@1 is an adapter of 7, which is no full version"):
        place.whole(place.publish(weights.adapters[0], base="7"))


def test_adapters_are_registered_with_their_base(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.test_registry_transitions import _Lent
    from trainer.commands import models

    bus = InMemoryBus()
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: _Lent(bus))
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))

    def register(*arguments: Any) -> str:
        result = CliRunner().invoke(models, ["register", *map(str, arguments)])
        if result.exception is not None:
            raise result.exception
        return result.output

    adapter = weights.adapters[0]
    with pytest.raises(ConfigurationError, match="no version of default serves"):
        register(adapter)
    assert "default@1" in register(weights.first, "--stable")
    with pytest.raises(ConfigurationError, match="--base is for adapters"):
        register(weights.first, "--base", "1")
    with pytest.raises(ConfigurationError, match="default has no version 9"):
        register(adapter, "--base", "9")
    assert "default@2" in register(adapter)
    with pytest.raises(ConfigurationError, match="default@2 is an adapter itself"):
        register(adapter, "--base", "2")
    assert "default@3" in register(weights.adapters[1], "--base", "1", "--stable")
    # Beside the adapter that serves now, on the same base.
    assert "default@4" in register(weights.second)
    versions = {one.version: one for one in read_registry(bus).versions("default")}
    assert {name: one.base for name, one in versions.items()} == {
        "1": None,
        "2": "1",
        "3": "1",
        "4": None,
    }
    with pytest.raises(ConfigurationError, match="it is no model"):
        register(tmp_path)
