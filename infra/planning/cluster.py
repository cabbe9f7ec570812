"""One Kafka cluster with its workers and gateways: sizes at a given rate, and what it runs into.

Each part gets what its load takes within the headroom, and enough that the zones which are left
when one is lost carry the peak within the headroom for losses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infra.planning import partitions as counts
from infra.planning.brokers import HORIZON_S, Sizing, sizings
from infra.planning.coefficients import Coefficient, Coefficients
from infra.planning.engine import Capacity, Pace, at_rate, pace
from infra.planning.models import ModelShape
from infra.planning.partitions import Need, needs
from infra.planning.traffic import Flow, Readers, chunks_per_request, flows, texts
from infra.planning.workload import Placement, Targets, Workload
from infra.settings import GatewaySettings, WorkerSettings

LOADS = 24


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One, with the platform around its engine. ``most``: requests a second at the limit."""

    capacity: Capacity
    ratio: Coefficient
    most: float
    loop: Coefficient
    limited_by: str
    planned: Pace
    """At the headroom."""
    chunks: float
    """Of a request, at the load that makes most of them."""

    @property
    def sequences(self) -> int:
        """To be set as ``max_num_seqs``."""
        return math.ceil(self.capacity.full.sequences)

    def inflight_tokens(self, workload: Workload) -> int:
        """To be set as ``max_inflight_tokens``, where callers ask for no more than they get."""
        return math.ceil(self.sequences * workload.sequence_tokens)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Something of which a cluster has only so much. Over 1 it is too large."""

    key: str
    label: str
    used: float
    most: float
    unit: str
    grounds: tuple[Coefficient, ...]

    @property
    def share(self) -> float:
        """Of the most."""
        return self.used / self.most


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The sizes. ``pace`` is that of each worker at the peak with all of them alive."""

    rate: float
    worker: Worker
    pace: Pace
    workers: int
    gateways: int
    gateway_scan: float
    partitions: int
    needs: tuple[Need, ...]
    flows: tuple[Flow, ...]
    sizings: tuple[Sizing, ...]
    brokers: int
    replication: int
    limits: tuple[Limit, ...]

    @property
    def gpus(self) -> int:
        """Accelerators of the workers."""
        return self.workers * self.worker.capacity.engine.degree

    @property
    def bytes_in(self) -> float:
        """A second, from clients, before replication."""
        return sum(flow.bytes_in for flow in self.flows)

    @property
    def bytes_out(self) -> float:
        """A second, to clients, without replication."""
        return sum(flow.bytes_out for flow in self.flows)

    @property
    def disk_bytes(self) -> float:
        """Of all replicas, when full."""
        return self.replication * sum(flow.kept_bytes(HORIZON_S) for flow in self.flows)

    @property
    def over(self) -> Limit | None:
        """The limit that is most exceeded."""
        worst = max(self.limits, key=lambda one: one.share)
        return worst if worst.share > 1 else None


def with_platform(
    coefficients: Coefficients, found: Capacity, workload: Workload, targets: Targets
) -> Worker:
    """The engine's most, less what the platform takes, or what one event loop can pass on."""
    ratio, loop = coefficients["worker.ratio"], coefficients["worker.records"]
    most, limited = found.full.requests_per_s * ratio.value, str(found.limited_by)
    # A chunk of a stream is counted as the whole short request that was measured.
    chunks = most_chunks(found, workload, coefficients)
    passed_on = loop.value / chunks
    if passed_on < most:
        most, limited = passed_on, "the worker's event loop"
    planned = at_rate(
        found, workload, most * targets.headroom / ratio.value, coefficients["worker.ttft"].value
    )
    return Worker(
        capacity=found,
        ratio=ratio,
        most=most,
        loop=loop,
        limited_by=limited,
        planned=planned,
        chunks=chunks,
    )


def most_chunks(found: Capacity, workload: Workload, coefficients: Coefficients) -> float:
    """A request's chunks at that load of a worker, from one request to its most, which makes most
    of them: how they are gathered depends on the load."""
    overhead = coefficients["worker.ttft"].value
    worker = WorkerSettings()
    loads = [found.full.sequences ** (step / LOADS) for step in range(LOADS + 1)]
    paces = [pace(found.engine, workload, load, overhead) for load in loads]
    interactive = max(chunks_per_request(one, workload, worker) for one in paces)
    batch = max(chunks_per_request(one, workload, worker, batch=True) for one in paces)
    return interactive * (1 - workload.batch_share) + batch * workload.batch_share


def enough(load: float, each: float, targets: Targets, placement: Placement) -> int:
    """Parts that carry ``load``, ``each`` so much at the most: within the headroom, and after a
    loss. A whole number a zone; in one zone, spares on top."""
    planned = load / (each * targets.headroom)
    if placement.zones == 1:
        return max(1, math.ceil(planned - 1e-9)) + placement.spare_workers
    lost = load / (each * targets.loss_headroom) * placement.zones / placement.surviving_zones
    return _by_zone(max(planned, lost), placement.zones)


def _by_zone(count: float, zones: int) -> int:
    return zones * max(1, math.ceil(count / zones - 1e-9))


def plan_cluster(
    coefficients: Coefficients,
    worker: Worker,
    model: ModelShape,
    workload: Workload,
    targets: Targets,
    placement: Placement,
    rate: float,
) -> Cluster:
    """Sizes at ``rate`` requests a second, whether or not one cluster can be so large."""
    workers = enough(rate, worker.most, targets, placement)
    overhead = coefficients["worker.ttft"].value
    at_peak = at_rate(worker.capacity, workload, rate / workers / worker.ratio.value, overhead)
    call, delta, foreign = (
        coefficients[name] for name in ("gateway.call", "gateway.chunk", "gateway.result")
    )
    cpu_s = call.value + worker.chunks * delta.value
    read = (0.0 if placement.own_results else 1.0) + 2 * workload.quota_share
    scan = rate * foreign.value * read
    gateways = _gateways(rate, worker.planned, cpu_s, scan, targets, placement)
    text = texts(coefficients, model, workload)
    readers = Readers(
        workers=workers,
        gateways=gateways,
        sdk_clients=workload.sdk_clients,
        own_results=placement.own_results,
    )

    def carried(partitions: int) -> tuple[Flow, ...]:
        return flows(
            coefficients,
            workload,
            worker.chunks,
            text,
            rate=rate,
            partitions=partitions,
            readers=readers,
        )

    reasons = needs(
        coefficients,
        workers=workers,
        clients=gateways + workload.sdk_clients,
        rate=rate,
        duration_s=worker.planned.duration_s,
        largest_bytes_s=max(flow.bytes_in for flow in carried(counts.LEAST)),
    )
    survivors = workers * placement.surviving_zones // placement.zones
    partitions = counts.rounded(
        max(need.count for need in reasons), workers=workers, survivors=survivors
    )
    carries = carried(partitions)
    by_load = sizings(coefficients, carries, targets, placement)
    least = max(placement.replication, placement.zones)
    brokers = _by_zone(max(least, *(one.count for one in by_load)), placement.zones)
    return Cluster(
        rate=rate,
        worker=worker,
        pace=at_peak,
        workers=workers,
        gateways=gateways,
        gateway_scan=scan,
        partitions=partitions,
        needs=reasons,
        flows=carries,
        sizings=by_load,
        brokers=brokers,
        replication=placement.replication,
        limits=_limits(
            coefficients, carries, brokers, workers, partitions, scan, targets, placement
        ),
    )


def _gateways(
    rate: float,
    planned: Pace,
    cpu_s: float,
    scan: float,
    targets: Targets,
    placement: Placement,
) -> int:
    """By CPU time: a gateway is one thread, of which reading everybody's results takes ``scan``.

    By connections too. Where reading alone takes more than there is, ``scan`` is left out, as the
    limits say so.
    """
    left = 1 - scan / targets.headroom if scan < targets.headroom else 1.0
    by_cpu = left / cpu_s
    by_connections = GatewaySettings().max_connections / planned.duration_s
    return enough(rate, min(by_cpu, by_connections), targets, placement)


def _limits(
    coefficients: Coefficients,
    carries: tuple[Flow, ...],
    brokers: int,
    workers: int,
    partitions: int,
    scan: float,
    targets: Targets,
    placement: Placement,
) -> tuple[Limit, ...]:
    most_brokers, members = coefficients["cluster.brokers"], coefficients["cluster.members"]
    replicas = coefficients["cluster.partitions"]
    foreign, scanned = coefficients["gateway.result"], coefficients["cluster.scan_share"]
    held = placement.replication * sum(flow.partitions for flow in carries)
    return (
        Limit(
            key="scan",
            label="results that every gateway reads",
            used=scan,
            most=targets.headroom * scanned.value,
            unit="of each gateway's core",
            grounds=(foreign, scanned),
        ),
        Limit(
            key="members",
            label="members of the workers' group",
            used=workers,
            most=members.value,
            unit="workers",
            grounds=(members,),
        ),
        Limit(
            key="brokers",
            label="brokers",
            used=brokers,
            most=most_brokers.value,
            unit="brokers",
            grounds=(most_brokers,),
        ),
        Limit(
            key="replicas",
            label="replicas of partitions",
            used=held,
            most=replicas.value,
            unit="replicas",
            grounds=(replicas,),
        ),
        Limit(
            key="ids",
            label="partition numbers in a request id",
            used=partitions,
            most=counts.MOST,
            unit="partitions",
            grounds=(),
        ),
    )
