"""Which version learnt from what, and what of it is to be forgotten."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.contracts import catalogue, codec
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import Lineage, ModelVersionPublished
from infra.registry.client import read_registry
from infra.registry.lineage import (
    LEARNT_FROM,
    Lineages,
    ancestors,
    forgotten,
    requests_of,
    taken_out,
)
from infra.registry.store import ArtifactStore
from infra.settings import Settings
from infra.testing import InMemoryBus
from producers.feedback_commands import feedback as feedback_command
from trainer.publishing import publish
from trainer.version_commands import lineage, list_versions, show


@pytest.fixture
def bus() -> InMemoryBus:
    return InMemoryBus()


def learn(
    store: ArtifactStore, bus: InMemoryBus, folder: Path, parent: str | None, *requests: str
) -> ModelVersionPublished:
    """A version that was trained on ``requests``, published as the next one."""
    folder.mkdir()
    (folder / "weights").write_text(folder.name)
    if requests:
        (folder / LEARNT_FROM).write_text(json.dumps(requests))
    publisher = bus.publisher()
    version = publish(
        folder,
        model="default",
        lineage=Lineage(objective="sft", parent=parent, code_version=folder.name),
        metrics={},
        store=store,
        state=read_registry(bus),
        publisher=publisher,
    )
    publisher.close()
    return version


@pytest.fixture
def store(tmp_path: Path, bus: InMemoryBus) -> ArtifactStore:
    """1 <- 2 (a, b) <- 3 (c); 1 <- 4 (b)."""
    store = ArtifactStore(tmp_path / "artifacts")
    learn(store, bus, tmp_path / "one", None)
    learn(store, bus, tmp_path / "two", "1", "a", "b")
    learn(store, bus, tmp_path / "three", "2", "c")
    learn(store, bus, tmp_path / "four", "1", "b")
    return store


def example(bus: InMemoryBus, request_id: str, *principals: str, gone: bool = False) -> None:
    event = FeedbackExample(
        request_id=request_id, prompt="p", output="o", model="default", model_versions=(),
        feedback_ids=("f",), updated_at_ms=1, ups=1, principals=principals,
    )  # fmt: skip
    publisher = bus.publisher()
    value = None if gone else codec.encode(event)
    publisher.publish(catalogue.EXAMPLES.name, key=request_id.encode(), value=value)
    publisher.close()


def test_a_version_answers_for_its_ancestors(bus: InMemoryBus, store: ArtifactStore) -> None:
    state = read_registry(bus)
    lineages = Lineages(store, state)
    three = state.version("default", "3")
    assert three is not None
    assert [one.version for one in ancestors(state, three)] == ["2", "1"]
    assert lineages.requests(three) == {"c"}
    assert lineages.all_requests(three) == {"a", "b", "c"}
    found = [(version.version, itself) for version, itself in lineages.learners(["b"])]
    assert found == [("2", True), ("3", False), ("4", True)]
    assert lineages.learners(["z"]) == []


def test_a_tampered_version_is_warned_of_and_the_rest_is_told(
    bus: InMemoryBus, store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    state = read_registry(bus)
    two = state.version("default", "2")
    assert two is not None
    (Path(store.resolve(two)) / LEARNT_FROM).write_text("[]")
    assert [v.version for v, _ in Lineages(store, state).learners(["b"])] == ["4"]
    assert "default@2" in caplog.text


def test_the_newest_record_of_an_example_counts(bus: InMemoryBus) -> None:
    example(bus, "a", "ada", "bob")
    example(bus, "b", "bob")
    example(bus, "c", "ada")
    example(bus, "c", gone=True)
    assert requests_of(bus, ["ada"]) == ["a"]
    assert set(requests_of(bus, ["bob", "ada"])) == {"a", "b"}
    assert taken_out(bus, ["a", "c", "z"]) == {"c"}


@pytest.fixture
def connected(bus: InMemoryBus, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch,
              tmp_path: Path) -> None:  # fmt: skip
    """The commands see this bus and this store."""

    @contextmanager
    def connect(settings: Settings) -> Iterator[InMemoryBus]:
        yield bus

    monkeypatch.setattr("infra.kafka.bus.connect", connect)
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))


@pytest.mark.usefixtures("connected")
def test_forgetting_by_principal_names_the_versions(bus: InMemoryBus) -> None:
    example(bus, "b", "bob")
    example(bus, "other", "ada")
    run = CliRunner().invoke
    outcome = run(
        feedback_command, ["forget", "--principal", "bob", "--reason", "x", "--wait", "0"]
    )
    # No worker is there that would take it out.
    assert outcome.exit_code == 1
    assert "0 of 1" in outcome.output
    assert "default@2 was trained on it" in outcome.output
    assert "default@3 descends" in outcome.output
    assert [(one.request_id, one.reason) for one in forgotten(bus).values()] == [("b", "x")]
    example(bus, "b", gone=True)
    assert run(feedback_command, ["forget", "b", "--wait", "0"]).exit_code == 0

    listed = run(list_versions, []).output.splitlines()
    assert [("to be forgotten" in line) for line in listed] == [False, True, True, True]
    assert "to forget  b" in run(show, ["3"]).output
    told = run(lineage, ["3"]).output.splitlines()
    assert told == [
        "default@3: sft, 1 requests",
        "  c",
        "default@2: sft, 2 requests",
        "  a",
        "  b  to be forgotten",
        "default@1: sft, 0 requests",
    ]
    assert "default@4 was trained" in run(feedback_command, ["lineage", "b"]).output
    assert "no version" in run(feedback_command, ["lineage", "other"]).output


@pytest.mark.usefixtures("connected")
def test_nobody_to_forget_is_said(bus: InMemoryBus) -> None:
    outcome = CliRunner().invoke(feedback_command, ["forget", "--principal", "nobody"])
    assert outcome.exit_code == 0
    assert "no feedback by nobody" in outcome.output
    assert CliRunner().invoke(feedback_command, ["forget"]).exit_code == 2
