"""Every change of a rollout, from any state: the whole event, or the whole sentence against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.model import (
    GateCheck,
    GateDecision,
    Lineage,
    ModelVersionPublished,
    RolloutChanged,
)
from infra.registry.state import RegistryState
from infra.registry.transitions import (
    KEPT,
    IllegalTransition,
    base_of,
    pinned,
    promoted,
    reasons,
    refusal,
    rolled_back,
    stage_of,
    tried,
)
from tests.gates import SPAN

NOW: dict[str, Any] = {"now_ms": 77, "actor": "ada", "reason": "because"}
CHANGED: dict[str, Any] = {"changed_at_ms": 77, "actor": "ada", "reason": "because"}
GONE: dict[str, Any] = {
    "candidate": None,
    "candidate_weight": 0.0,
    "experiment": "",
    "started_at_ms": 0,
}


def check(name: str, passed: bool) -> GateCheck:
    return GateCheck(
        name=name, passed=passed, value=0, low=0, high=0, limit=0, samples=1, reason=f"{name} says"
    )


def version(name: str, base: str | None = None, kind: str = "imported") -> ModelVersionPublished:
    gates = {
        "passed": GateDecision(passed=True, confidence=0.9, checks=(check("a", True),)),
        "failed": GateDecision(
            passed=False,
            confidence=0.9,
            checks=(check("a", True), check("b", False), check("c", False)),
        ),
    }
    return ModelVersionPublished(
        model="m",
        version=name,
        kind="full" if base is None else "lora",
        base=base,
        artifact_uri="file:///x",
        manifest=(),
        created_at_ms=0,
        lineage=Lineage(objective="sft", feedback=() if kind == "imported" else (SPAN,)),
        gate=gates.get(kind),
    )


KNOWN = {
    one.version: one
    for one in (
        version("1"),
        version("2", kind="passed"),
        version("3", kind="failed"),
        version("4", kind="ungated"),
        version("5", base="1", kind="passed"),
        version("6", base="2"),
        version("7", base="gone"),
        version("8", base="5"),
        version("9", base="1", kind="passed"),
    )
}
NAMES = [*KNOWN, "never"]
# What a registry whose rules were kept can call stable, or a candidate of it.
SERVE = ["1", "2", "5", "6", "9"]


@st.composite
def rollouts(draw: st.DrawFn) -> RolloutChanged:
    stable = draw(st.sampled_from(SERVE))
    candidate = draw(st.none() | st.sampled_from([name for name in SERVE if name != stable]))
    trial: dict[str, Any] = {}
    if candidate is not None:
        trial = {
            "candidate": candidate,
            "candidate_weight": draw(st.sampled_from([0.05, 0.5, 1.0])),
            "state": draw(st.sampled_from(["canary", "shadow"])),
            "experiment": "before",
            "started_at_ms": 3,
        }
    others = [name for name in SERVE if name not in (stable, candidate)]
    return RolloutChanged(
        model="m",
        revision=draw(st.integers(1, 5)),
        stable=stable,
        changed_at_ms=2,
        actor=draw(st.sampled_from(["", "bob"])),
        reason=draw(st.sampled_from(["", "so"])),
        retired=tuple(draw(st.lists(st.sampled_from(others), unique=True, max_size=3))),
        rolled_back=tuple(draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))),
        pinned=draw(st.booleans()),
        unit=draw(st.sampled_from(["user", "tenant"])),
        switch_policy=draw(st.sampled_from(["keep", "drain"])),
        **trial,
    )


def registry(current: RolloutChanged | None) -> RegistryState:
    state = RegistryState()
    for one in KNOWN.values():
        state.apply(one)
    if current is not None:
        state.apply(current)
    return state


def outcome(change: Callable[[], RolloutChanged]) -> RolloutChanged | str:
    try:
        return change()
    except IllegalTransition as refused:
        return str(refused)


def why(current: RolloutChanged) -> str:
    by = f" by {current.actor}" if current.actor else ""
    return f"revision {current.revision}{by}: {current.reason or 'no reason given'}"


def unservable(name: str) -> str | None:
    """The whole sentence against a version as such."""
    says = {
        "3": "its gate rejected it: b says; c says",
        "4": "it has learnt from feedback and was through no gate",
        "7": "its base m@gone was never published",
        "8": "its base m@5 is no full version",
    }
    if name == "never":
        return "m@never was never published; versions: 1, 2, 3, 4, 5, 6, 7, 8, 9"
    return f"m@{name} may not serve: {says[name]}" if name in says else None


def weights_of(name: str) -> str:
    return KNOWN[name].base or name


def apart(candidate: str, stable: str) -> str | None:
    if KNOWN[candidate].base is None or weights_of(candidate) == weights_of(stable):
        return None
    return (
        f"it is an adapter of m@{KNOWN[candidate].base}, and the weights that serve are "
        f"m@{weights_of(stable)}"
    )


def first(*against: tuple[object, str | None]) -> str | None:
    """Of sentences with what they hold of, the first that holds."""
    return next((says for holds, says in against if holds), None)


def without(names: Sequence[str], *gone: str | None) -> tuple[str, ...]:
    return tuple(name for name in names if name not in gone)


def after(current: RolloutChanged, **changes: Any) -> RolloutChanged:
    revision = current.revision + 1
    return msgspec.structs.replace(current, revision=revision, **CHANGED, **changes)


def pin_against(current: RolloutChanged) -> tuple[bool, str]:
    says = f"m is pinned to {current.stable} ({why(current)}): `feedloom models unpin m` first"
    return current.pinned, says


@given(rollouts(), st.sampled_from(NAMES))
def test_a_promotion(current: RolloutChanged, name: str) -> None:
    found = outcome(lambda: promoted(registry(current), "m", name, **NOW))
    against = first(
        (unservable(name), unservable(name)),
        (current.stable == name, f"m@{name} is the stable version already"),
        pin_against(current),
    )
    if against is not None:
        assert found == against
        return
    stays = current.candidate not in (None, name) and apart(str(current.candidate), name) is None
    begun = f"m@{current.candidate}#{current.revision + 1}"
    trial = {"experiment": begun, "started_at_ms": 77} if stays else {**GONE, "state": "steady"}
    assert found == after(
        current,
        stable=name,
        retired=(*without(current.retired, name), current.stable),
        rolled_back=without(current.rolled_back, name),
        **trial,
    )


@given(st.sampled_from(NAMES))
def test_the_first_promotion_of_a_model(name: str) -> None:
    found = outcome(lambda: promoted(registry(None), "m", name, **NOW))
    made = RolloutChanged(model="m", revision=1, stable=name, **CHANGED)
    assert found == (unservable(name) or made)


@given(
    rollouts(),
    st.sampled_from(NAMES),
    st.sampled_from(["canary", "shadow"]),
    st.sampled_from([-0.5, 0.0, 0.05, 0.5, 1.0, 1.5]),
    st.sampled_from(["user", "tenant"]),
)
def test_a_trial(current: RolloutChanged, name: str, mode: Any, weight: float, unit: Any) -> None:
    how: dict[str, Any] = {"mode": mode, "weight": weight, "unit": unit}
    found = outcome(lambda: tried(registry(current), "m", name, **how, **NOW))
    known = unservable(name) is None
    parted = apart(name, current.stable) if known else None
    same = (current.candidate, current.state, current.unit) == (name, mode, unit)
    against = first(
        (not known, unservable(name)),
        (not 0 < weight <= 1, f"a weight is above 0 and at most 1, not {weight:g}"),
        (current.stable == name, f"m@{name} is the stable version already"),
        pin_against(current),
        (
            current.candidate not in (None, name),
            f"m@{current.candidate} is the candidate ({why(current)}): promote it, or "
            "`feedloom models rollback m` withdraws it",
        ),
        (parted, f"m@{name} cannot serve beside m@{current.stable}: {parted}"),
        (
            mode == "shadow" and known and KNOWN[name].base is None,
            f"m@{name} has full weights, which take a worker whole, and cannot answer copies "
            f"beside others: `feedloom models replay --version m@{name}` compares it on past "
            "requests",
        ),
        (
            same and current.candidate_weight == weight,
            f"m@{name} is a {mode} at {weight:.4g} already ({why(current)})",
        ),
    )
    if against is not None:
        assert found == against
        return
    begun = {"experiment": f"m@{name}#{current.revision + 1}", "started_at_ms": 77}
    assert found == after(
        current,
        candidate=name,
        candidate_weight=weight,
        unit=unit,
        state=mode,
        rolled_back=without(current.rolled_back, name),
        **({} if same else begun),
    )


@given(rollouts())
def test_a_rollback(current: RolloutChanged) -> None:
    found = outcome(lambda: rolled_back(registry(current), "m", **NOW))
    if current.candidate is not None:
        stable, retired, gone = current.stable, current.retired, current.candidate
    elif current.retired:
        stable, retired, gone = current.retired[-1], current.retired[:-1], current.stable
    else:
        assert found == f"nothing was stable before m@{current.stable}"
        return
    assert found == after(
        current,
        stable=stable,
        retired=retired,
        rolled_back=(*without(current.rolled_back, gone, stable), gone),
        state="rolled_back",
        **GONE,
    )


@given(rollouts(), st.booleans())
def test_a_pin(current: RolloutChanged, pin: bool) -> None:
    found = outcome(lambda: pinned(registry(current), "m", pin=pin, **NOW))
    state = "pinned" if pin else "not pinned"
    if current.pinned == pin:
        assert found == f"m is {state} already ({why(current)})"
    else:
        assert found == after(current, pinned=pin)


@given(st.none() | rollouts(), st.sampled_from(list(KNOWN)))
def test_where_a_version_stands(current: RolloutChanged | None, name: str) -> None:
    gates = {"2": "gated", "3": "rejected", "5": "gated", "9": "gated"}
    expected = gates.get(name, "registered")
    if current is not None:
        tries = "canary" if current.state == "canary" else "candidate"
        expected = next(
            (
                stage
                for stage, names in (
                    ("stable", (current.stable,)),
                    (tries, (current.candidate,)),
                    ("rolled_back", current.rolled_back),
                    ("retired", current.retired),
                )
                if name in names
            ),
            expected,
        )
    assert stage_of(registry(current), KNOWN[name]) == expected


def test_what_a_version_needs_and_what_a_gate_said() -> None:
    assert {name: base_of(one) for name, one in KNOWN.items()} == {
        name: one.base or name for name, one in KNOWN.items()
    }
    assert [name for name, one in KNOWN.items() if refusal(one) is not None] == ["3", "4"]
    passed, failed = KNOWN["2"].gate, KNOWN["3"].gate
    assert passed is not None
    assert failed is not None
    assert (reasons(passed), reasons(failed)) == ("a says", "b says; c says")


def test_the_newest_of_those_that_served_before_are_kept() -> None:
    many = tuple(f"v{number}" for number in range(KEPT))
    current = RolloutChanged(
        model="m", revision=1, stable="1", changed_at_ms=0, retired=many, rolled_back=many
    )
    assert promoted(registry(current), "m", "2", **NOW).retired == (*many[1:], "1")
    tries = msgspec.structs.replace(current, candidate="2", state="canary")
    assert rolled_back(registry(tries), "m", **NOW).rolled_back == (*many[1:], "2")


@pytest.mark.parametrize("change", [rolled_back, lambda *a, **k: pinned(*a, pin=True, **k)])
def test_where_nothing_serves_it_says_what_does(change: Callable[..., RolloutChanged]) -> None:
    state = registry(None)
    with pytest.raises(
        IllegalTransition, match=r"^no version of 'm' serves; models that do: none$"
    ):
        change(state, "m", **NOW)
    for model in ("b", "a"):
        state.apply(msgspec.structs.replace(KNOWN["1"], model=model))
        state.apply(RolloutChanged(model=model, revision=1, stable="1", changed_at_ms=0))
    with pytest.raises(IllegalTransition, match=r"^no version of 'm' .* models that do: a, b$"):
        change(state, "m", **NOW)
    with pytest.raises(IllegalTransition, match=r"^x@1 was never published; versions: none$"):
        promoted(state, "x", "1", **NOW)


def test_what_a_rollback_would_bring_back_must_be_known() -> None:
    current = RolloutChanged(model="m", revision=1, stable="1", changed_at_ms=0, retired=("never",))
    with pytest.raises(IllegalTransition, match=r"^m@never was never published"):
        rolled_back(registry(current), "m", **NOW)
    orphan = RegistryState()
    orphan.apply(msgspec.structs.replace(KNOWN["5"], base=None))
    with pytest.raises(IllegalTransition, match=r"its base m@\? was never published$"):
        promoted(orphan, "m", "5", **NOW)


TRIED = RolloutChanged(
    model="m",
    revision=4,
    stable="1",
    changed_at_ms=2,
    candidate="5",
    candidate_weight=0.5,
    state="canary",
    experiment="before",
    actor="bob",
    rolled_back=("2", "5", "9"),
)


@pytest.mark.parametrize(("state", "stage"), [("canary", "canary"), ("shadow", "candidate")])
def test_a_candidate_is_a_canary_when_it_answers(state: Any, stage: str) -> None:
    current = msgspec.structs.replace(TRIED, state=state)
    assert stage_of(registry(current), KNOWN["5"]) == stage


@pytest.mark.parametrize(
    ("name", "weight", "mode", "says"),
    [
        ("1", 0.1, "canary", r"^m@1 is the stable version already$"),
        ("5", 0.5, "canary", r"^m@5 is a canary at 0\.5 already \(revision 4 by bob: no reason"),
        ("9", 0.5, "canary", r"^m@5 is the candidate \(revision 4 by bob: no reason given\): prom"),
    ],
)
def test_a_trial_that_is_refused_names_its_version(
    name: str, weight: float, mode: Any, says: str
) -> None:
    with pytest.raises(IllegalTransition, match=says):
        tried(registry(TRIED), "m", name, mode=mode, weight=weight, unit="user", **NOW)


def test_a_version_apart_and_one_that_is_full_are_refused_by_name() -> None:
    alone = msgspec.structs.replace(TRIED, candidate=None, state="steady")
    how: dict[str, Any] = {"weight": 0.1, "unit": "user", **NOW}
    with pytest.raises(IllegalTransition, match=r"^m@6 cannot serve beside m@1: it is an adapter"):
        tried(registry(alone), "m", "6", mode="canary", **how)
    with pytest.raises(IllegalTransition, match=r"^m@2 has full weights, which take a worker"):
        tried(registry(alone), "m", "2", mode="shadow", **how)


def test_a_version_that_is_tried_again_is_rolled_back_no_more() -> None:
    found = tried(registry(TRIED), "m", "5", mode="canary", weight=0.1, unit="user", **NOW)
    assert found.rolled_back == ("2", "9")
    assert promoted(registry(TRIED), "m", "9", **NOW).rolled_back == ("2", "5")


def test_a_candidate_that_is_promoted_is_one_no_more() -> None:
    found = promoted(registry(TRIED), "m", "5", **NOW)
    assert (found.stable, found.candidate, found.state) == ("5", None, "steady")
    assert (found.candidate_weight, found.experiment, found.started_at_ms) == (0.0, "", 0)
