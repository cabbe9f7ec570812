"""Puts a plan together: sizes from load, and every one with its formula and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from infra.contracts.catalogue import EXAMPLES
from infra.contracts.config_sections import TrainerConfig
from infra.planning import topology
from infra.planning.cluster import Cluster, plan_cluster, with_platform
from infra.planning.coefficients import Basis, Coefficients
from infra.planning.engine import accelerator, choose
from infra.planning.figures import Figure, Sheet, weakest
from infra.planning.models import ModelShape, load_model
from infra.planning.sheets import (
    cluster_sheet,
    deployment_sheet,
    kafka_sheet,
    loop_sheet,
)
from infra.planning.topology import Deployment
from infra.planning.worker_sheet import engine_sheet
from infra.planning.workload import Machines, Placement, Targets, Workload


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A limit of one cluster, and the rate at which it is reached."""

    key: str
    label: str
    rate: float
    basis: Basis


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was worked out. ``sheets`` are for reading; the rest is for programs."""

    workload: Workload
    targets: Targets
    machines: Machines
    placement: Placement
    model: ModelShape
    deployment: Deployment
    sheets: tuple[Sheet, ...]
    edges: tuple[Edge, ...]
    warnings: tuple[str, ...]

    @property
    def cluster(self) -> Cluster:
        """One of the clusters, which are all alike."""
        return self.deployment.cluster

    def figure(self, key: str) -> Figure:
        """By key, from whichever sheet has it."""
        return next(one for sheet in self.sheets for one in sheet.figures if one.key == key)


def make_plan(
    coefficients: Coefficients,
    workload: Workload,
    targets: Targets,
    machines: Machines,
    placement: Placement,
) -> Plan:
    """Raises ConfigurationError: an unknown name, a model that does not fit, a target missed."""
    model = load_model(machines.model, weights=machines.weights, cache=machines.cache)
    kind = accelerator(coefficients, machines.gpu, model)
    chosen = choose(coefficients, kind, model, workload, targets, degree=machines.tensor_parallel)
    worker = with_platform(coefficients, chosen, workload, targets)

    def build(rate: float) -> Cluster:
        return plan_cluster(coefficients, worker, model, workload, targets, placement, rate)

    deployment = topology.deploy(build, workload.requests_per_s, placement)
    cluster = deployment.cluster
    loop = loop_sheet(coefficients, cluster, kind, model, workload, TrainerConfig().replay_fraction)
    sheets = (
        engine_sheet(coefficients, worker, model, workload, targets),
        cluster_sheet(coefficients, cluster, targets, placement),
        kafka_sheet(cluster, placement),
        loop,
        deployment_sheet(coefficients, deployment, model, workload, placement, loop),
    )
    alone = replace(placement, own_results=True)

    def apart(rate: float) -> Cluster:
        return plan_cluster(coefficients, worker, model, workload, targets, alone, rate)

    # The others are looked at without the gateways that read for nothing: those come first.
    edges = [
        Edge(
            key=limit.key,
            label=limit.label,
            rate=topology.edge_of(build if limit.key == "scan" else apart, limit.key),
            basis=weakest(limit.grounds),
        )
        for limit in cluster.limits
        if limit.used
    ]
    return Plan(
        workload=workload,
        targets=targets,
        machines=machines,
        placement=placement,
        model=model,
        deployment=deployment,
        sheets=sheets,
        edges=tuple(sorted(edges, key=lambda edge: edge.rate)),
        warnings=tuple(_warnings(deployment, workload, placement, loop)),
    )


def _warnings(
    deployment: Deployment, workload: Workload, placement: Placement, loop: Sheet
) -> list[str]:
    cluster = deployment.cluster
    found = []
    if cluster.over is not None:
        limit = cluster.over
        found.append(
            f"{limit.label}: {limit.used:,.3g} {limit.unit}, and {limit.most:,.3g} is the most: "
            "ask for more --clusters, or auto"
        )
    each = loop["join"].value
    if each > 4e9:
        found.append(
            f"each worker holds {each / 1e9:,.3g} GB of answers that feedback may still come for: "
            "worker.feedback_window_s"
        )
    if placement.zones > 1 and placement.replication < 3:
        found.append(
            "with --replication 2 a lost zone leaves one replica: acks=all then waits or loses"
        )
    examples = next((one for one in cluster.flows if one.topic == EXAMPLES.name), None)
    if examples is not None and deployment.clusters > 1:
        mirrored = examples.bytes_in * (deployment.clusters - 1)
        if mirrored > cluster.bytes_in:
            found.append(
                f"examples of all clusters bring {mirrored / 1e6:,.0f} MB/s to the home cluster, "
                f"whose own traffic is {cluster.bytes_in / 1e6:,.0f} MB/s: plan it apart, or "
                "mirror a sample"
            )
    if deployment.regions == 2 and placement.survive_region:
        found.append("two regions: each is built for the whole load")
    if workload.quota_share and cluster.rate * workload.quota_share > 1_000:
        found.append(
            "every gateway folds the whole admission log: "
            f"{2 * cluster.rate * workload.quota_share:,.0f} records/s in each"
        )
    return found
