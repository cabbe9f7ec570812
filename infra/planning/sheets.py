"""A cluster's numbers, and everybody's, as sheets: value, formula with its numbers, grounds."""

from __future__ import annotations

from infra.contracts import catalogue
from infra.planning.brokers import HORIZON_S
from infra.planning.cluster import Cluster
from infra.planning.coefficients import Coefficients
from infra.planning.engine import Accelerator
from infra.planning.figures import Sheet, number, shown
from infra.planning.models import ModelShape
from infra.planning.partitions import unevenness
from infra.planning.topology import Deployment, mirrored
from infra.planning.traffic import CHANGELOG
from infra.planning.workload import Placement, Targets, Workload

DAY_S = 86_400.0
EXAMPLES = catalogue.EXAMPLES.name


def cluster_sheet(
    coefficients: Coefficients, cluster: Cluster, targets: Targets, placement: Placement
) -> Sheet:
    """Workers, gateways and partitions."""
    worker = cluster.worker
    engine = worker.capacity.engine
    grounds = (
        *engine.room,
        *engine.grounds,
        worker.ratio,
        worker.loop,
    )
    sheet = Sheet("One cluster")
    sheet.add("rate", "requests/s at the peak", cluster.rate, "requests/s", "see Everything")
    rate, most = number(cluster.rate), number(worker.most)
    if placement.zones > 1:
        formula = (
            f"max({rate} / ({most} x {targets.headroom:g}), {rate} / ({most} x "
            f"{targets.loss_headroom:g}) x {placement.zones}/{placement.surviving_zones}), "
            "as many in each zone"
        )
    else:
        formula = f"{rate} / ({most} x {targets.headroom:g}), and {placement.spare_workers} spare"
    workers = sheet.add("workers", "workers", cluster.workers, "", formula, *grounds)
    sheet.add(
        "gpus",
        f"{engine.accelerator.name} accelerators",
        cluster.gpus,
        "",
        f"{cluster.workers} x {engine.degree}",
        workers,
    )
    sheet.add(
        "concurrency",
        "requests in flight",
        cluster.rate * cluster.pace.duration_s,
        "",
        f"{rate}/s x {shown(cluster.pace.duration_s, 's')} (Little)",
        workers,
    )
    call, chunk, foreign = (
        coefficients[name] for name in ("gateway.call", "gateway.chunk", "gateway.result")
    )
    sheet.add(
        "gateways",
        "gateways, a core each",
        cluster.gateways,
        "",
        f"{rate}/s x ({shown(call.value, 's')} + {number(worker.chunks)} chunks x "
        f"{shown(chunk.value, 's')}) / ({targets.headroom:g} - {cluster.gateway_scan:.3g} for "
        "reading others' results)"
        + (f", and the loss of 1 of {placement.zones} zones" if placement.zones > 1 else ""),
        call,
        chunk,
        *(() if placement.own_results else (foreign,)),
    )
    left = cluster.workers * placement.surviving_zones // placement.zones
    even = left < cluster.workers and unevenness(cluster.partitions, left) == 1
    for need in cluster.needs:
        sheet.add(
            f"partitions_{need.key}",
            f"  partitions for {need.label}",
            need.count,
            "",
            need.formula,
            *need.grounds,
        )
    sheet.add(
        "partitions",
        "partitions",
        cluster.partitions,
        "",
        f"the most of these, rounded up so that {cluster.workers} workers share them evenly"
        + (f", and {left} that a lost zone leaves" if even else ""),
        workers,
        *(ground for need in cluster.needs for ground in need.grounds),
    )
    return sheet


def kafka_sheet(cluster: Cluster, placement: Placement) -> Sheet:
    """Bandwidth, disks and brokers."""
    sheet = Sheet("Its Kafka")
    grounds = [ground for flow in cluster.flows for ground in flow.grounds]
    copies = placement.replication
    coming = sheet.add(
        "bytes_in", "in from clients", cluster.bytes_in, "B/s", "all topics, below", *grounds
    )
    going = sheet.add(
        "bytes_out", "out to clients", cluster.bytes_out, "B/s", "in x readers, below", *grounds
    )
    sheet.add(
        "replication",
        "between brokers",
        cluster.bytes_in * (copies - 1),
        "B/s",
        f"{shown(cluster.bytes_in, 'B/s')} x ({copies} - 1)",
        coming,
    )
    disk = sheet.add(
        "disk",
        "on disk when full",
        cluster.disk_bytes,
        "B",
        f"kept, below, x {copies}; what is never deleted after {HORIZON_S / DAY_S:.0f} days",
        *grounds,
    )
    for one in cluster.sizings:
        sheet.add(
            f"brokers_{one.key}",
            f"  brokers by {one.label}",
            one.count,
            "",
            one.formula,
            coming,
            going,
            disk,
            *one.grounds,
        )
    sheet.add(
        "brokers",
        "brokers",
        cluster.brokers,
        "",
        f"the most of these and of {copies} copies, as many in each of {placement.zones} zones",
        coming,
        going,
        disk,
        *(ground for one in cluster.sizings for ground in one.grounds),
    )
    return sheet


def loop_sheet(
    coefficients: Coefficients,
    cluster: Cluster,
    kind: Accelerator,
    model: ModelShape,
    workload: Workload,
    replay: float,
) -> Sheet:
    """What learning, telemetry and the join take."""
    sheet = Sheet("Its feedback and telemetry")
    mean = cluster.rate * workload.mean_load
    examples = mean * workload.feedback_share * DAY_S
    sheet.add(
        "examples",
        "examples a day",
        examples,
        "",
        f"{number(mean)}/s x {workload.feedback_share:g} x 1 day",
    )
    tokens = examples * workload.sequence_tokens / (1 - replay)
    formula = f"{number(examples)} x {workload.sequence_tokens:,.0f} tokens / (1 - {replay:g})"
    if kind.bandwidth is None:
        speed = coefficients["trainer.cpu_tokens"]
        hours, by = tokens / speed.value / 3600, f"{formula} / {speed.value:,.0f} tokens/s"
        sheet.add("training", "hours of training", hours, "h", by, speed)
    else:
        share = coefficients["trainer.flops_share"]
        each = 6.0 * model.parameters
        rate = kind.flops.value * share.value
        sheet.add(
            "training",
            f"{kind.name} hours of training",
            tokens * each / rate / 3600,
            "h",
            f"{formula} x 6 x {model.parameters:.3g} / ({shown(kind.flops.value, 'FLOP/s')} x "
            f"{share.value:g})",
            share,
            kind.flops,
        )
    size, spans = coefficients["telemetry.bytes"], coefficients["telemetry.spans"]
    sheet.add(
        "telemetry",
        "OTLP to collectors, all traces",
        cluster.rate * size.value,
        "B/s",
        f"{number(cluster.rate)}/s x {size.value:,.0f} B",
        size,
    )
    sheet.add(
        "spans",
        "spans/s",
        cluster.rate * spans.value,
        "",
        f"{number(cluster.rate)}/s x {spans.value:g}",
        spans,
    )
    cpu = coefficients["telemetry.cpu"]
    sheet.add(
        "telemetry_cpu",
        "CPU of workers and clients with it",
        cpu.value,
        "x",
        "of what they take without",
        cpu,
    )
    join = next(flow for flow in cluster.flows if flow.topic == CHANGELOG)
    kept_s = join.kept_s
    assert kept_s is not None, "the join's changelog is deleted by age"
    sheet.add(
        "join",
        "join's memory in each worker",
        join.kept_bytes(kept_s) / cluster.workers,
        "B",
        f"{number(join.mean_s)}/s x {shown(join.record_bytes, 'B')} x {kept_s / DAY_S:g} days "
        f"/ {cluster.workers}",
        *join.grounds,
    )
    return sheet


def deployment_sheet(
    coefficients: Coefficients,
    deployment: Deployment,
    model: ModelShape,
    workload: Workload,
    placement: Placement,
    loop: Sheet,
) -> Sheet:
    """All regions together. ``loop``: the sheet of one cluster's feedback."""
    sheet = Sheet("Everything")
    cluster, count = deployment.cluster, deployment.clusters
    left = placement.regions - (placement.survive_region and placement.regions > 1)
    sheet.add(
        "region_rate",
        "requests/s that a region is built for",
        deployment.region_rate,
        "requests/s",
        f"{number(workload.requests_per_s)} / {left}"
        + (" regions that are left when one is lost" if left < placement.regions else ""),
    )
    limit = deployment.edge_limit
    by = limit.grounds if limit else ()
    edge = "none" if deployment.edge is None else f"{number(deployment.edge)} requests/s"
    clusters = sheet.add(
        "clusters",
        "clusters",
        count,
        "",
        f"{placement.regions} regions x {deployment.clusters_per_region}; one cluster ends at "
        f"{edge}" + (f" ({limit.label})" if limit else ""),
        *by,
    )
    ground = clusters
    for key, label, each in (
        ("all_workers", "workers", cluster.workers),
        ("all_gpus", "accelerators", cluster.gpus),
        ("all_gateways", "gateways", cluster.gateways),
        ("all_brokers", "brokers", cluster.brokers),
    ):
        sheet.add(
            key,
            label,
            count * each,
            "",
            f"{number(count)} x {number(each)}",
            ground,
            *cluster.worker.capacity.engine.grounds,
        )
    sheet.add(
        "all_disk",
        "on disk when full",
        count * cluster.disk_bytes,
        "B",
        f"{number(count)} x {shown(cluster.disk_bytes, 'B')}",
        ground,
    )
    training = loop["training"]
    sheet.add(
        "all_training",
        f"{training.label}, a day",
        count * training.value,
        "h",
        f"{number(count)} x {shown(training.value, 'h')}",
        ground,
        training,
    )
    store = coefficients["store.bandwidth"]
    fetched = workload.versions_per_day * model.weight_bytes
    sheet.add(
        "artifacts",
        "fetched from the stores a day",
        fetched * count * cluster.workers,
        "B",
        f"{workload.versions_per_day:g} versions x {shown(model.weight_bytes, 'B')} x "
        f"{number(count * cluster.workers)} workers",
        ground,
    )
    sheet.add(
        "fetch",
        "a version in a worker after",
        model.weight_bytes / store.value,
        "s",
        f"{shown(model.weight_bytes, 'B')} / {shown(store.value, 'B/s')}, then checked and loaded",
        store,
    )
    if placement.regions > 1:
        sheet.add(
            "copied",
            "copied to other regions' stores a day",
            fetched * (placement.regions - 1),
            "B",
            f"{shown(fetched, 'B')} x ({placement.regions} - 1)",
        )
    if count > 1:
        flow = next((one for one in cluster.flows if one.topic == EXAMPLES), None)
        home = 0.0 if flow is None else flow.bytes_in * (count - 1)
        sheet.add(
            "links",
            "MirrorMaker 2 flows",
            deployment.links,
            "",
            f"2 x ({number(count)} - 1): {len(mirrored('from home'))} topics from home, "
            f"{len(mirrored('to home'))} to home",
            ground,
        )
        on = () if flow is None else flow.grounds
        sheet.add(
            "mirrored",
            "examples to the home cluster",
            home,
            "B/s",
            f"{number(count - 1)} x {shown(home / (count - 1), 'B/s')} at the peak",
            ground,
            *on,
        )
        kept = 0.0 if flow is None else placement.replication * flow.kept_bytes(HORIZON_S)
        sheet.add(
            "home_disk",
            "on its disks, besides its own",
            kept * (count - 1),
            "B",
            f"{number(count - 1)} x {shown(kept, 'B')}",
            ground,
            *on,
        )
    return sheet
