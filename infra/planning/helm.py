"""Values of the chart in infra/deploy/helm/feedloom for one cluster of a plan. Pure.

The chart's names stand in ``NAMES`` alone; a test compares them with its ``values.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from infra.planning.plan import Plan

GIB = 1024**3
VERSIONS = 4
"""Of a model's weights that a worker's node keeps: the last ones, and a candidate."""

NAMES: dict[str, str] = {
    "partitions": "kafka.partitions",
    "replication": "kafka.replicationFactor",
    "brokers": "kafka.strimzi.nodes",
    "in_sync": "kafka.strimzi.minInSyncReplicas",
    "broker_disk": "kafka.strimzi.storage.size",
    "worker_kind": "workers.defaults.kind",
    "workers": "workers.defaults.replicas",
    "gpus": "workers.defaults.gpus",
    "sequences": "workers.defaults.settings.max_num_seqs",
    "inflight": "workers.defaults.settings.max_inflight_tokens",
    "scratch": "workers.defaults.scratch",
    "most_workers": "workers.defaults.autoscaling.maxReplicas",
    "least_workers": "workers.defaults.autoscaling.minReplicas",
    "gateways": "gateway.replicas",
}

Value = int | str


def values(plan: Plan) -> dict[str, Value]:
    """By the keys of ``NAMES``."""
    cluster, placement = plan.cluster, plan.placement
    worker, engine = cluster.worker, cluster.worker.capacity.engine
    on_gpu = engine.accelerator.bandwidth is not None
    disk = plan.figure("disk").value / cluster.brokers
    fill = next(one.grounds[1].value for one in cluster.sizings if one.key == "disk_size")
    return {
        "partitions": cluster.partitions,
        "replication": cluster.replication,
        "brokers": cluster.brokers,
        "in_sync": max(1, cluster.replication - 1),
        "broker_disk": f"{math.ceil(disk / fill / GIB)}Gi",
        "worker_kind": "gpu" if on_gpu else "cpu",
        "workers": cluster.workers,
        "gpus": engine.degree if on_gpu else 0,
        "sequences": worker.sequences,
        "inflight": worker.inflight_tokens(plan.workload),
        "scratch": f"{math.ceil(VERSIONS * plan.model.weight_bytes / GIB) + 10}Gi",
        "most_workers": max(cluster.workers, cluster.partitions // _over(plan)),
        "least_workers": placement.zones,
        "gateways": cluster.gateways,
    }


def _over(plan: Plan) -> int:
    """Partitions a worker, where all partitions are used for evenness."""
    need = next(one for one in plan.cluster.needs if one.key == "over")
    return max(1, round(need.count / plan.cluster.workers))


def values_yaml(plan: Plan) -> str:
    """For ``helm install -f``."""
    tree: dict[str, object] = {}
    for key, value in values(plan).items():
        *path, last = NAMES[key].split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})  # type: ignore[assignment]
        branch[last] = value
    count = plan.deployment.clusters
    which = "the only cluster" if count == 1 else f"each of {count:,} clusters"
    head = f"# `feedloom plan`: values of {which}, for {plan.cluster.rate:,.6g} requests/s.\n"
    return head + "\n".join(_lines(tree, 0)) + "\n"


def _lines(tree: Mapping[str, object], depth: int) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{'  ' * depth}{name}:"
            yield from _lines(value, depth + 1)
        else:
            yield f"{'  ' * depth}{name}: {value}"
