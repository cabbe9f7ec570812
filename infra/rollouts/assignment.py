"""Which arm of an experiment a request belongs to. Pure, and the same in every worker.

A unit's place between 0 and 1 is a hash of the experiment and the unit; the candidate has the
places below its weight. So one unit stays in one arm wherever it is answered; more weight only
moves units from stable to the candidate, less only back; and another experiment draws anew.
"""

from __future__ import annotations

from hashlib import blake2b

from infra.contracts.events.generation import Arm, GenerationRequest
from infra.contracts.events.model import Unit

_PLACES = 1 << 64


def unit_of(request: GenerationRequest, unit: Unit) -> str:
    """What a request is drawn by: its user, tenant or conversation (``affinity_key``).

    One that does not name it is drawn by its conversation, and else alone: nothing tells which
    other requests it should stay together with.
    """
    named = {"user": request.user, "tenant": request.tenant, "conversation": None}[unit]
    if named:
        return f"{unit}:{named}"
    if request.affinity_key:
        return f"conversation:{request.affinity_key}"
    return f"request:{request.request_id}"


def place(experiment: str, unit: str) -> float:
    """Uniform from 0 up to 1, the same for the same two names."""
    digest = blake2b(f"{experiment}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / _PLACES


def draw(experiment: str, unit: str, weight: float) -> Arm:
    """The arm of a unit, of which the candidate's share is ``weight``, 0 to 1."""
    return "candidate" if place(experiment, unit) < weight else "stable"


def cohort(experiment: str, workers: set[str], weight: float) -> frozenset[str]:
    """The workers that serve a candidate's full weights, which take a worker whole.

    As near to ``weight`` as whole workers come, but at least one and not all, unless the weight is
    0 or 1. A single worker never: it would be all.
    """
    if weight >= 1:
        return frozenset(workers)
    if weight <= 0 or len(workers) < 2:
        return frozenset()
    count = min(max(1, round(weight * len(workers))), len(workers) - 1)
    # By name where two have one place.
    ranked = sorted(workers, key=lambda name: (place(experiment, f"worker:{name}"), name))
    return frozenset(ranked[:count])
