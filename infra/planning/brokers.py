"""How many brokers a cluster's topics ask for, by each thing of which a broker has only so much."""

from __future__ import annotations

from dataclasses import dataclass

from infra.planning.coefficients import Coefficient, Coefficients
from infra.planning.traffic import Flow
from infra.planning.workload import Placement, Targets

HORIZON_S = 30 * 86_400.0
"""After how long the size of topics is given from which nothing is ever deleted."""


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Brokers that one kind of load asks for, before rounding to zones."""

    key: str
    label: str
    count: float
    formula: str
    grounds: tuple[Coefficient, ...]


def sizings(
    coefficients: Coefficients,
    carries: tuple[Flow, ...],
    targets: Targets,
    placement: Placement,
) -> tuple[Sizing, ...]:
    copies = placement.replication
    bytes_in = sum(flow.bytes_in for flow in carries)
    bytes_out = sum(flow.bytes_out for flow in carries)
    disk = copies * sum(flow.kept_bytes(HORIZON_S) for flow in carries)
    replicas = copies * sum(flow.partitions for flow in carries)
    network, write = coefficients["broker.network"], coefficients["broker.disk_write"]
    size, fill = coefficients["broker.disk_size"], coefficients["broker.disk_fill"]
    cpu, cores = coefficients["broker.record_cpu"], coefficients["broker.cores"]
    most = coefficients["broker.partitions"]
    received, sent = bytes_in * copies, bytes_out + bytes_in * (copies - 1)
    records = sum(flow.records_s for flow in carries)
    # Within the headroom, or while a zone is lost: then the rest has all the clients' traffic.
    spread = targets.headroom
    if placement.zones > 1:
        left = placement.surviving_zones / placement.zones
        spread = min(spread, targets.loss_headroom * left)

    def sizing(
        key: str, label: str, load: float, each: float, formula: str, *on: Coefficient
    ) -> Sizing:
        return Sizing(
            key=key,
            label=label,
            count=load / (each * spread),
            formula=f"{formula} / {spread:.2g}",
            grounds=on,
        )

    gb = 1e9
    return (
        sizing(
            "network_in",
            "network, in",
            received,
            network.value,
            f"{received / gb:,.3g} GB/s with copies / {network.value / gb:g} GB/s",
            network,
        ),
        sizing(
            "network_out",
            "network, out",
            sent,
            network.value,
            f"{sent / gb:,.3g} GB/s with copies / {network.value / gb:g} GB/s",
            network,
        ),
        sizing(
            "disk_write",
            "disk, writing",
            received,
            write.value,
            f"{received / gb:,.3g} GB/s / {write.value / gb:g} GB/s",
            write,
        ),
        Sizing(
            key="disk_size",
            label="disk, size",
            count=disk / (size.value * fill.value),
            formula=f"{disk / 1e12:,.3g} TB / ({size.value / 1e12:g} TB x {fill.value:g})",
            grounds=(size, fill),
        ),
        sizing(
            "cpu",
            "CPU",
            records * cpu.value * copies,
            cores.value,
            f"{records:,.0f} records/s x {cpu.value * 1e6:.3g} us x {copies} / {cores.value:g}",
            cpu,
            cores,
        ),
        Sizing(
            key="partitions",
            label="partitions",
            count=replicas / most.value,
            formula=f"{replicas:,} replicas / {most.value:,.0f}",
            grounds=(most,),
        ),
    )
