"""Which version answers, who belongs to which arm, and what a worker is to load: by tables."""

from __future__ import annotations

import itertools
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.config_sections import Participation
from infra.contracts.events.generation import Arm, Assignment, GenerationRequest
from infra.contracts.events.model import Lineage, ModelVersionPublished, RolloutChanged, Unit
from infra.registry.state import RegistryState
from infra.rollouts.assignment import cohort, draw, place, unit_of
from stream_workers.plan import Plan, obstacle, plan_of, version_name
from stream_workers.routing import Route, Routing, Trial
from tests.gates import SPAN, decision

NAMES = st.text("abc", min_size=1, max_size=3)
SOMETIMES = st.none() | st.just("") | NAMES


@st.composite
def requests(draw: st.DrawFn) -> GenerationRequest:
    return GenerationRequest(
        request_id=draw(NAMES),
        submit_id="s",
        prompt="p",
        created_at_ms=0,
        user=draw(SOMETIMES),
        tenant=draw(SOMETIMES),
        affinity_key=draw(st.none() | NAMES),
    )


@given(requests(), st.sampled_from(["user", "tenant", "conversation"]))
def test_a_unit_is_what_names_it_and_else_its_conversation_and_else_alone(
    request: GenerationRequest, unit: Any
) -> None:
    named = {"user": request.user, "tenant": request.tenant}.get(unit)
    found = unit_of(request, unit)
    if named:
        assert found == f"{unit}:{named}"
    elif request.affinity_key:
        assert found == f"conversation:{request.affinity_key}"
    else:
        assert found == f"request:{request.request_id}"


def test_a_place_is_the_documented_hash() -> None:
    """Every worker of every release must draw alike while an experiment runs."""
    assert place("m@2#3", "user:ada") == 0x4EA58416A57E37A9 / 2**64
    assert draw("m@2#3", "user:ada", 0.3072) == "stable"
    assert draw("m@2#3", "user:ada", 0.3073) == "candidate"
    # The candidate has the places below its weight, and not the one at it.
    assert draw("m@2#3", "user:ada", place("m@2#3", "user:ada")) == "stable"


@given(st.sets(NAMES, max_size=8), NAMES, st.floats(-0.5, 1.5))
def test_a_cohort_is_its_workers_with_the_lowest_places(
    workers: set[str], experiment: str, weight: float
) -> None:
    count = round(weight * len(workers))
    if 0 < weight < 1:
        count = min(max(count, 1), len(workers) - 1) if len(workers) > 1 else 0
    count = max(0, min(count, len(workers)))
    if weight >= 1:
        count = len(workers)
    ranked = sorted(workers, key=lambda name: (place(experiment, f"worker:{name}"), name))
    assert cohort(experiment, workers, weight) == frozenset(ranked[:count])


def test_the_ends_of_the_weight() -> None:
    two = {"a", "b"}
    assert cohort("e", two, 1.0) == two
    assert cohort("e", two, 0.0) == frozenset()
    assert len(cohort("e", two, 0.999)) == len(cohort("e", two, 0.001)) == 1
    assert cohort("e", {"a"}, 0.999) == frozenset()
    assert cohort("e", {"a"}, 1.0) == {"a"}


TRIALS = [
    Trial(experiment="e", unit=unit, weight=weight, candidate=candidate, arm=arm, shadow=shadow)
    for unit, weight, candidate, arm, shadow in itertools.product(
        get_args(Unit), (0.0, 0.5, 1.0), (None, "m@2"), get_args(Arm), (False, True)
    )
]


@given(requests())
def test_a_route_follows_the_arm_and_what_the_tenant_takes_part_in(
    request: GenerationRequest,
) -> None:
    for part in get_args(Participation):
        alone = Routing(serving="m@1").route(request, part)
        assert alone == Route(version="m@1")
        for trial in TRIALS:
            found = Routing(serving="m@1", trial=trial).route(request, part)
            assert found == expected_route(request, trial, part)


def expected_route(request: GenerationRequest, trial: Trial, part: Participation) -> Route:
    unit = unit_of(request, trial.unit)
    arm = draw("e", unit, trial.weight) if trial.candidate else trial.arm
    if trial.shadow:
        if part == "stable" or arm == "stable":
            return Route(version="m@1")
        return Route(version="m@1", shadow=trial.candidate, experiment="e")
    if part == "split":
        answers = trial.candidate if arm == "candidate" and trial.candidate else "m@1"
        return Route(version=answers, assignment=Assignment(experiment="e", arm=arm, unit=unit))
    if part == "candidate" and trial.candidate:
        return Route(version=trial.candidate)
    return Route(version="m@1")


def version(name: str, base: str | None, kind: str = "imported") -> ModelVersionPublished:
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
        gate=decision(passed=False, reason="why") if learnt else None,
    )


VERSIONS = {"1": None, "2": None, "3": "1", "4": "2", "5": "9"}
LISTED = ["1", "2", "3", "4", "5", "missing"]


@given(st.sampled_from(LISTED), st.none() | st.sampled_from(LISTED), st.booleans())
def test_a_plan_has_the_weights_that_the_rollout_needs_here(
    stable: str, candidate: str | None, in_cohort: bool
) -> None:
    state = RegistryState()
    known = {name: version(name, base) for name, base in VERSIONS.items()}
    for one in known.values():
        state.apply(one)
    rollout = RolloutChanged(
        model="m", revision=1, stable=stable, candidate=candidate, changed_at_ms=0, actor="a"
    )
    found = plan_of(state, rollout, in_cohort=in_cohort)
    tried = known.get(candidate or "")
    if tried is not None and tried.kind == "full" and in_cohort:
        assert found == Plan(base=tried, serving=tried, arm="candidate")
        assert found.adapters == ()
        return
    beside = tried if tried is not None and tried.kind == "lora" else None
    serving = known.get(stable)
    base = serving and (serving if serving.base is None else known.get(serving.base))
    if serving is None or base is None:
        assert found is None
        return
    assert found == Plan(base=base, serving=serving, candidate=beside, arm="stable")
    wanted = [serving] if serving.kind == "lora" else []
    assert found.adapters == (*wanted, *([beside] if beside else []))


def test_what_stands_against_loading_a_version_is_said() -> None:
    base = version("1", None)
    plan = Plan(base=base, serving=base)
    assert version_name(base) == "m@1"
    assert obstacle(plan, base) is None
    assert obstacle(plan, version("2", None)) is None
    assert obstacle(plan, version("3", "1")) is None
    assert obstacle(plan, version("4", "2")) == (
        "it is an adapter of m@2, and the weights here are m@1"
    )
    assert obstacle(plan, version("5", "2", "failed")) == "its gate rejected it: why"
