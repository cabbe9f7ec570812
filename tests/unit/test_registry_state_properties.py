"""The registry's fold: versions never change, revisions only rise, and models do not mix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.registry.state import DEFAULT_MODEL, RegistryState, named

MODELS = ("a", "b")
Event = ModelVersionPublished | RolloutChanged


def published(model: str, name: str, made: int) -> ModelVersionPublished:
    return ModelVersionPublished(
        model=model,
        version=name,
        kind="full",
        artifact_uri=f"file:///{made}",
        manifest=(),
        created_at_ms=made,
    )


def rollout(model: str, revision: int, stable: str, made: int) -> RolloutChanged:
    return RolloutChanged(
        model=model, revision=revision, stable=stable, changed_at_ms=made, actor="ada"
    )


NAMES = st.sampled_from(["1", "2", "10", "x1", "٣"])
EVENTS = st.lists(
    st.builds(published, st.sampled_from(MODELS), NAMES, st.integers(0, 2))
    | st.builds(rollout, st.sampled_from(MODELS), st.integers(0, 3), NAMES, st.integers(0, 1)),
    max_size=25,
)


def folded(events: list[Event]) -> RegistryState:
    state = RegistryState()
    for event in events:
        state.apply(event)
    return state


def seen(state: RegistryState) -> list[object]:
    return [
        state.models(),
        *(
            (state.versions(model), state.rollout(model), state.next_version(model))
            for model in MODELS
        ),
    ]


@given(EVENTS)
def test_it_holds_the_first_of_each_version_and_the_last_of_the_highest_revision(
    events: list[Event],
) -> None:
    state = RegistryState()
    versions: dict[str, dict[str, ModelVersionPublished]] = {model: {} for model in MODELS}
    rollouts: dict[str, RolloutChanged] = {}
    for event in events:
        if isinstance(event, ModelVersionPublished):
            news = event.version not in versions[event.model]
            versions[event.model].setdefault(event.version, event)
        else:
            known = rollouts.get(event.model)
            news = known is None or (event.revision >= known.revision and event != known)
            if news:
                rollouts[event.model] = event
        assert state.apply(event) == news
    assert state.models() == sorted(model for model in MODELS if versions[model])
    for model in MODELS:
        assert state.versions(model) == list(versions[model].values())
        assert state.rollout(model) == rollouts.get(model)
        for name in ("1", "2", "10", "x1", "never"):
            assert state.version(model, name) == versions[model].get(name)
        current = rollouts.get(model)
        stable = None if current is None else versions[model].get(current.stable)
        assert state.stable(model) == stable
        numbers = [int(name) for name in versions[model] if name.isdecimal()]
        assert state.next_version(model) == str(max([0, *numbers]) + 1)
    assert state.version("never", "1") is None
    assert (state.versions("never"), state.next_version("never")) == ([], "1")


@given(EVENTS)
def test_read_a_second_time_it_is_the_same(events: list[Event]) -> None:
    once = folded(events)
    twice = folded(events)
    for event in events:
        if isinstance(event, ModelVersionPublished):
            assert not twice.apply(event)
    newest = [one for model in MODELS if (one := once.rollout(model)) is not None]
    assert all(not twice.apply(one) for one in newest)
    assert seen(once) == seen(twice)


@given(EVENTS)
def test_the_models_may_come_in_any_order_to_each_other(events: list[Event]) -> None:
    apart = sorted(events, key=lambda event: event.model)
    assert seen(folded(events)) == seen(folded(apart))


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("m@2", ("m", "2")),
        ("2", (DEFAULT_MODEL, "2")),
        ("@2", (DEFAULT_MODEL, "2")),
        ("org@m@2", ("org@m", "2")),
        ("m@", ("m", "")),
    ],
)
def test_a_version_is_named_with_its_model_or_is_the_default_models(
    reference: str, found: tuple[str, str]
) -> None:
    assert named(reference) == found
