"""What a round of chaos does to whom, and how it is undone. A draw names it all."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "kill",
    "pause",
    "stop",
    "disk full",
    "slow disk",
    "clock forward",
    "clock back",
    "network cut",
    "network reset",
    "network delay",
]

SERVICES = ("worker-0", "worker-1", "gateway", "trainer")
BROKERS = ("broker-1", "broker-2", "broker-3")
TARGETS: dict[Kind, tuple[str, ...]] = {
    "kill": (*SERVICES, *BROKERS),
    "pause": (*SERVICES, *BROKERS),
    "stop": (*SERVICES, *BROKERS),
    "disk full": ("trainer", *BROKERS),
    "slow disk": (*BROKERS, "trainer"),
    "clock forward": (*SERVICES, *BROKERS),
    "clock back": (*SERVICES, *BROKERS),
    "network cut": (*SERVICES, *BROKERS),
    "network reset": (*SERVICES, *BROKERS),
    "network delay": (*SERVICES, *BROKERS),
}
LONGEST_S = 15.0
"""Longer than a session lasts (6 s here), than a broker is missed (9 s) and than a transaction."""
SLOWEST_WRITE_S = 0.05
LONGEST_DELAY_S = 0.5
FURTHEST_S = 7_200.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault: after ``wait_s`` of traffic, for ``last_s``. ``size``: seconds, of what grows."""

    kind: Kind
    target: str
    wait_s: float
    last_s: float
    size: float = 0.0

    def __str__(self) -> str:
        how = f" ({self.size:.3g} s)" if self.size else ""
        return f"{self.kind} of {self.target}{how}, {self.last_s:.1f} s"


def drawn(seed: int, number: int) -> Fault:
    """Of a round, whatever the rounds before were."""
    draw = random.Random(f"{seed}/{number}")
    kind = draw.choice(list(TARGETS))
    sizes = {
        "slow disk": SLOWEST_WRITE_S,
        "network delay": LONGEST_DELAY_S,
        "clock forward": FURTHEST_S,
        "clock back": FURTHEST_S,
    }
    return Fault(
        kind=kind,
        target=draw.choice(TARGETS[kind]),
        wait_s=draw.uniform(1.0, 4.0),
        last_s=draw.uniform(1.0, LONGEST_S),
        size=sizes.get(kind, 0.0) * draw.uniform(0.1, 1.0),
    )
