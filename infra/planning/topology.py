"""Regions and clusters: how many, which topics are mirrored between them, and what a loss costs.

A cluster is complete: its own Kafka, workers and gateways, and no request leaves it. Clusters share
versions, rollouts, settings and keys, which are written in one of them, the home, and examples,
which the trainer reads there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infra.contracts import catalogue
from infra.contracts.catalogue import TopicSpec
from infra.contracts.errors import ConfigurationError
from infra.planning.cluster import Cluster, Limit
from infra.planning.workload import Placement

MOST_CLUSTERS = 1_000_000
LEAST_RATE = 1e-6
Direction = Literal["from home", "to home", "stays"]


@dataclass(frozen=True, kw_only=True)
class Mirroring:
    """What becomes of a topic in a deployment of several clusters, and why."""

    spec: TopicSpec
    direction: Direction
    why: str


def _mirroring() -> tuple[Mirroring, ...]:
    def topic(spec: TopicSpec, direction: Direction, why: str) -> Mirroring:
        return Mirroring(spec=spec, direction=direction, why=why)

    own = "belongs to requests of its own cluster"
    return (
        topic(catalogue.REGISTRY, "from home", "one trainer publishes; all workers load"),
        topic(catalogue.ROLLOUTS, "from home", "revisions have one writer's order"),
        topic(catalogue.CONFIG, "from home", "revisions have one writer's order"),
        topic(catalogue.KEYS, "from home", "a key is good in every region"),
        topic(catalogue.EXAMPLES, "to home", "one trainer learns from all"),
        topic(catalogue.REQUESTS, "stays", "would be answered once in each cluster"),
        topic(catalogue.REQUESTS_BATCH, "stays", "would be answered once in each cluster"),
        topic(catalogue.CANCELLATIONS, "stays", own),
        topic(catalogue.CHUNKS, "stays", f"{own}; names partitions and offsets of it"),
        topic(catalogue.RESULTS, "stays", f"{own}; would be joined twice"),
        topic(catalogue.FEEDBACK, "stays", "is joined where the result lies; examples go home"),
        topic(catalogue.FORGOTTEN, "stays", "its tombstones reach home with the examples"),
        topic(catalogue.ADMISSIONS, "stays", "its order is its meaning, and two logs have none"),
        topic(catalogue.SHADOW, "stays", "for people to look at, by cluster"),
        topic(catalogue.DECISIONS, "stays", "follows from what one cluster saw"),
        topic(catalogue.CONFIG_HISTORY, "stays", "is read where changes are made"),
        topic(catalogue.WORKERS, "stays", "says what its own cluster serves"),
        topic(catalogue.GATEWAYS, "stays", "gives out its own cluster's reply partitions"),
        topic(catalogue.FILES, "stays", "a batch runs in one cluster"),
        topic(catalogue.BATCHES, "stays", "a batch runs in one cluster"),
    )


MIRRORING = _mirroring()
"""Every topic of the catalogue but dead letters, which stay."""


def mirrored(direction: Direction) -> tuple[TopicSpec, ...]:
    """The topics that go this way."""
    return tuple(one.spec for one in MIRRORING if one.direction == direction)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """All clusters are of one size. ``region_rate``: requests a second that a region is built for,
    which is more than its part where the others must carry a lost one's."""

    regions: int
    clusters_per_region: int
    region_rate: float
    cluster: Cluster
    edge: float | None
    edge_limit: Limit | None

    @property
    def clusters(self) -> int:
        """Everywhere."""
        return self.regions * self.clusters_per_region

    @property
    def links(self) -> int:
        """MirrorMaker 2 flows: each cluster but the home takes from a parent and gives to it."""
        return 2 * (self.clusters - 1)


def region_rate(rate: float, placement: Placement) -> float:
    """What each region is built for."""
    left = placement.regions
    if placement.survive_region and left > 1:
        left -= 1
    return rate / left


def deploy(build: Callable[[float], Cluster], rate: float, placement: Placement) -> Deployment:
    """As few clusters a region as the limits allow, or as many as are asked for.

    ``build`` gives the sizes of one cluster at a rate. Raises ConfigurationError: no cluster is
    small enough.
    """
    each = region_rate(rate, placement)
    edge, limit = _edge(build)
    if edge is None and limit is not None:
        raise ConfigurationError(
            f"no cluster is small enough: even at next to no load it has {limit.used:,.4g} "
            f"{limit.unit}, of {limit.most:,.4g} at the most. Ask for fewer --zones, or --set "
            f"{limit.grounds[0].id if limit.grounds else limit.key}"
        )
    if placement.clusters is not None:
        count = placement.clusters
    elif edge is None:
        count = 1
    else:
        count = min(MOST_CLUSTERS, max(1, math.ceil(each / edge - 1e-9)))
        # Rounding to zones may put a cluster just over what its rate alone would allow.
        while count < MOST_CLUSTERS and build(each / count).over is not None:
            count += 1
    return Deployment(
        regions=placement.regions,
        clusters_per_region=count,
        region_rate=each,
        cluster=build(each / count),
        edge=edge,
        edge_limit=limit,
    )


def _edge(build: Callable[[float], Cluster]) -> tuple[float | None, Limit | None]:
    """The greatest rate of one cluster, to a thousandth, and what stops it there."""
    least = build(LEAST_RATE).over
    if least is not None:
        return None, least
    low, high = LEAST_RATE, 1.0
    while build(high).over is None:
        low, high = high, 4 * high
        if high > 1e9:
            return None, None
    while high - low > high / 1000:
        middle = (low + high) / 2
        if build(middle).over is None:
            low = middle
        else:
            high = middle
    return low, build(high).over


def edge_of(build: Callable[[float], Cluster], key: str) -> float:
    """The greatest rate at which one limit holds, to a thousandth."""

    def within(rate: float) -> bool:
        return next(one for one in build(rate).limits if one.key == key).share <= 1

    low, high = 0.0, 1.0
    while within(high) and high < 1e9:
        low, high = high, 4 * high
    while high - low > high / 1000:
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low
