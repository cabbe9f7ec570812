"""``feedloom plan`` as a whole: sizes that grow with the load, hold a loss, and are explained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import catalogue
from infra.contracts.errors import ConfigurationError
from infra.planning import document, topology
from infra.planning.cluster import Cluster, Worker, plan_cluster, with_platform
from infra.planning.coefficients import Coefficient, load_coefficients
from infra.planning.commands import plan as command
from infra.planning.engine import accelerator, choose
from infra.planning.figures import BASES, duration, shown
from infra.planning.helm import NAMES, values
from infra.planning.models import load_model
from infra.planning.page import used
from infra.planning.partitions import LEAST, divisors, rounded, unevenness
from infra.planning.plan import Plan, make_plan
from infra.planning.workload import Machines, Placement, Targets, Workload
from infra.settings import GatewaySettings, WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COEFFICIENTS = load_coefficients()
H200 = Machines(gpu="h200", model="llama-3.1-8b")
LAPTOP = Machines(gpu="cpu", model="feedloom-tiny")
ARGUMENTS = ["--rps", "100", "--prompt-tokens", "512", "--output-tokens", "256"]
ARGUMENTS += ["--gpu", "h200", "--model", "llama-3.1-8b"]


def planned(
    rate: float = 100.0,
    prompt: float = 512,
    output: float = 256,
    *,
    machines: Machines = H200,
    placement: Placement | None = None,
    targets: Targets | None = None,
    **more: Any,
) -> Plan:
    return make_plan(
        COEFFICIENTS,
        Workload(requests_per_s=rate, prompt_tokens=prompt, output_tokens=output, **more),
        targets or Targets(),
        machines,
        placement or Placement(),
    )


@cache
def worker_of(output: float, itl_s: float, headroom: float) -> Worker:
    """Of Llama 3.1 8B on an H200."""
    workload = Workload(requests_per_s=1, prompt_tokens=512, output_tokens=output)
    targets = Targets(itl_s=itl_s, ttft_s=10, headroom=headroom)
    model = load_model(H200.model)
    kind = accelerator(COEFFICIENTS, H200.gpu, model)
    found = choose(COEFFICIENTS, kind, model, workload, targets)
    return with_platform(COEFFICIENTS, found, workload, targets)


def sized(
    rate: float, placement: Placement, *, output: float = 256, headroom: float = 0.7
) -> Cluster:
    """One cluster, without looking for where it ends."""
    return plan_cluster(
        COEFFICIENTS,
        worker_of(output, 0.2, headroom),
        load_model(H200.model),
        Workload(requests_per_s=rate, prompt_tokens=512, output_tokens=output),
        Targets(itl_s=0.2, ttft_s=10, headroom=headroom),
        placement,
        rate,
    )


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments))


ONE = Placement(clusters=1, own_results=True)
RATES = st.floats(0.1, 20_000)


@given(rate=RATES, more=st.floats(1, 5))
def test_no_size_falls_when_the_load_rises(rate: float, more: float) -> None:
    """In one cluster, as clusters are cut anew for each load."""
    small, large = (sized(one, ONE) for one in (rate, rate * more))
    for name in ("workers", "gpus", "gateways", "brokers", "bytes_in", "bytes_out", "disk_bytes"):
        assert getattr(small, name) <= getattr(large, name), name


@given(rate=RATES, output=st.floats(2, 2_000), more=st.floats(1, 4))
def test_longer_answers_never_take_fewer_gpus(rate: float, output: float, more: float) -> None:
    one, other = (sized(rate, ONE, output=tokens) for tokens in (output, output * more))
    assert one.gpus <= other.gpus
    results = [
        next(flow for flow in found.flows if flow.topic == catalogue.RESULTS.name)
        for found in (one, other)
    ]
    assert results[0].bytes_in <= results[1].bytes_in


@given(
    rate=st.floats(0.1, 1_500),
    zones=st.integers(1, 5),
    spare=st.integers(0, 3),
    headroom=st.sampled_from([0.2, 0.5, 0.7, 0.9]),
)
def test_a_lost_zone_or_worker_leaves_enough(
    rate: float, zones: int, spare: int, headroom: float
) -> None:
    placement = Placement(zones=zones, spare_workers=spare, clusters=1)
    cluster = sized(rate, placement, headroom=headroom)
    most = cluster.worker.most
    assert rate <= cluster.workers * most * headroom * (1 + 1e-9)
    left = cluster.workers * (zones - 1) // zones if zones > 1 else cluster.workers - spare
    assert rate <= left * most * 0.9 * (1 + 1e-9)
    if zones > 1:
        for count in (cluster.workers, cluster.gateways, cluster.brokers):
            assert count % zones == 0
    # The worker with most partitions too, even after the loss.
    fullest = rate / left * unevenness(cluster.partitions, left)
    assert fullest <= most * (1.0 if zones > 1 or headroom <= 0.7 else 1.2)
    assert unevenness(cluster.partitions, cluster.workers) == 1


@given(rate=st.floats(1, 1_500), zones=st.integers(1, 3))
def test_every_need_for_partitions_is_met(rate: float, zones: int) -> None:
    cluster = sized(rate, Placement(zones=zones))
    for need in cluster.needs:
        assert need.count <= cluster.partitions
    # The rule of the workers' group: a member without a partition would do nothing.
    assert cluster.workers <= cluster.partitions


@given(least=st.floats(0.1, 60_000), more=st.floats(1, 3))
def test_counts_are_rounded_to_many_divisors(least: float, more: float) -> None:
    found = rounded(least)
    assert max(LEAST, least) - 1e-6 <= found <= max(LEAST, least * 1.25 + 1)
    assert rounded(least * more) >= found
    assert divisors(found) >= 5


def test_partitions_can_be_shared_by_workers_and_by_those_a_zone_leaves() -> None:
    assert rounded(27, workers=9, survivors=6) == 36
    assert rounded(100) == 120
    assert rounded(1) == 12
    assert unevenness(10, 4) == pytest.approx(1.2)
    assert [divisors(number) for number in (1, 7, 12, 720)] == [1, 2, 6, 30]


def test_brokers_hold_what_the_topics_bring() -> None:
    cluster = planned(1_000).cluster
    network = COEFFICIENTS["broker.network"].value
    disk = COEFFICIENTS["broker.disk_size"].value
    left = cluster.brokers * 2 / 3
    copies = cluster.bytes_in * 3
    assert copies < left * network * 0.9
    assert cluster.bytes_out + copies - cluster.bytes_in < left * network * 0.9
    assert cluster.disk_bytes < cluster.brokers * disk


def test_what_is_kept_is_rate_times_retention() -> None:
    found = planned(100, mean_load=0.25)
    by_topic = {flow.topic: flow for flow in found.cluster.flows}
    chunks = by_topic[catalogue.CHUNKS.name]
    assert chunks.kept_bytes(1e9) == pytest.approx(chunks.bytes_in * 0.25 * 6 * 3600)
    results = by_topic[catalogue.RESULTS.name]
    assert results.kept_bytes(1e9) == pytest.approx(results.bytes_in * 0.25 * 30 * 86_400)
    assert results.readers == 2 + found.cluster.gateways
    changelog = by_topic["feedback-join-changelog"]
    assert changelog.kept_bytes(1e9) == pytest.approx(
        changelog.mean_s * changelog.record_bytes * 7 * 86_400
    )


def test_every_topic_with_traffic_of_its_own_is_planned() -> None:
    found = planned(100, batch_share=0.1, shadow_share=0.1, quota_share=0.1)
    topics = {flow.topic for flow in found.cluster.flows}
    rare = {
        *("model.registry", "model.rollouts", "model.decisions", "platform.config"),
        *("platform.config.history", "platform.keys", "gateway.files", "gateway.batches"),
        "feedback.forgotten",
    }
    assert {spec.name for spec in catalogue.CATALOGUE} - topics == rare


# Clusters and regions.


def test_every_topic_is_mirrored_or_stays_for_a_reason() -> None:
    assert {one.spec.name for one in topology.MIRRORING} == {
        spec.name for spec in catalogue.CATALOGUE
    }
    from_home = {spec.name for spec in topology.mirrored("from home")}
    assert from_home == {"model.registry", "model.rollouts", "platform.config", "platform.keys"}
    assert {spec.name for spec in topology.mirrored("to home")} == {"feedback.examples"}
    # What has an order of its own, or offsets, must not be there twice.
    for spec in (catalogue.REQUESTS, catalogue.RESULTS, catalogue.CHUNKS, catalogue.ADMISSIONS):
        assert spec in topology.mirrored("stays")


@pytest.mark.parametrize("rate", [10.0, 5_000.0, 1e6])
@pytest.mark.parametrize("regions", [1, 2, 5])
def test_clusters_are_as_few_as_the_limits_allow(rate: float, regions: int) -> None:
    found = planned(rate, placement=Placement(regions=regions)).deployment
    assert found.cluster.over is None
    built = found.region_rate * regions
    assert built == pytest.approx(rate * regions / max(1, regions - 1))
    assert found.cluster.rate * found.clusters == pytest.approx(built)
    if found.clusters_per_region > 1:
        fewer = planned(
            rate, placement=Placement(regions=regions, clusters=found.clusters_per_region - 1)
        )
        assert fewer.cluster.over is not None
        assert any("ask for more --clusters" in line for line in fewer.warnings)
    assert found.links == 2 * (found.clusters - 1)


def test_the_regions_that_are_left_carry_everything() -> None:
    found = planned(9_000, placement=Placement(regions=3)).deployment
    assert 2 * found.clusters_per_region * found.cluster.rate == pytest.approx(9_000)
    kept = planned(9_000, placement=Placement(regions=3, survive_region=False)).deployment
    assert kept.region_rate == pytest.approx(3_000)


def test_one_cluster_ends_where_its_edges_say() -> None:
    found = planned(10)
    edges = {edge.key: edge.rate for edge in found.edges}
    assert found.deployment.edge == pytest.approx(min(edges.values()), rel=0.01)
    scan = COEFFICIENTS["gateway.result"].value * edges["scan"]
    assert scan == pytest.approx(0.7 * COEFFICIENTS["cluster.scan_share"].value, rel=0.01)
    apart = planned(10, placement=Placement(own_results=True))
    assert apart.deployment.edge == pytest.approx(edges["members"], rel=0.01)
    assert "scan" not in {edge.key for edge in apart.edges}


# What is printed.


def test_a_number_is_worth_as_much_as_the_weakest_below_it() -> None:
    found = planned()
    for sheet in found.sheets:
        for figure in sheet.figures:
            bases = [COEFFICIENTS[name].basis for name in figure.rests_on]
            assert figure.basis == max(bases, key=BASES.index, default="given"), figure.key
    assert found.figure("workers").basis == "assumed"
    assert found.figure("telemetry").basis == "measured"
    given_ = make_plan(
        COEFFICIENTS.replaced({"telemetry.bytes": 1.0}),
        found.workload,
        found.targets,
        found.machines,
        found.placement,
    )
    assert given_.figure("telemetry").basis == "given"


def test_no_coefficient_is_there_for_nothing() -> None:
    everything = {"batch_share": 0.1, "quota_share": 0.1, "shadow_share": 0.1}
    plans = [planned(machines=LAPTOP, prompt=21, output=64, **everything)]
    for gpu in ("a100", "h100", "h200", "l40s", "b200"):
        for weights in ("bfloat16", "fp8"):
            machines = Machines(gpu=gpu, model="llama-3.1-8b", weights=weights)
            plans.append(planned(machines=machines, **everything))
    plans += [planned(machines=replace(H200, tensor_parallel=degree)) for degree in (2, 4, 8)]
    rested_on = {name for found in plans for name in used(found)}
    flows = {
        ground.id
        for found in plans
        for flow in found.cluster.flows
        for ground in flow.grounds
        if isinstance(ground, Coefficient)
    }
    limits = {one.id for found in plans for limit in found.cluster.limits for one in limit.grounds}
    unused = {one.id for one in COEFFICIENTS} - rested_on - flows - limits
    # These stand in the way of what would be planned wrongly.
    assert unused == {"gpu.cpu.parameters", "gpu.cpu.memory"}


def test_json_has_every_figure_with_its_grounds() -> None:
    result = invoked(*ARGUMENTS, "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    figures = data["figures"]
    assert figures["workers"]["value"] == planned().cluster.workers
    for key, one in figures.items():
        assert one["formula"], key
        assert one["basis"] in BASES
        assert set(one["rests_on"]) <= set(data["coefficients"]), key
    assert all(one["source"] and one["as_of"] for one in data["coefficients"].values())
    assert {one["topic"] for one in data["topics"]} >= {"generation.chunks", "generation.results"}
    assert data["one_cluster_ends_at"]["scan"] > 0


def test_explaining_fills_in_formulas_and_sources() -> None:
    result = invoked(*ARGUMENTS, "--explain")
    assert result.exit_code == 0
    cluster = planned().cluster
    assert f"3 x {cluster.workers} workers" in result.stdout
    assert "NVIDIA H200 data sheet" in result.stdout
    plain = invoked(*ARGUMENTS)
    assert "NVIDIA" not in plain.stdout
    assert not re.search(r"[ \t]$", plain.stdout, re.MULTILINE)
    assert max(map(len, plain.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rps", "0"], "--rps must be above 0"),
        (["--output-tokens", "0.5"], "at least one prompt and one output token"),
        (["--gpu", "tpu"], "no GPU 'tpu': give one of a100"),
        (["--model", "gpt-5"], "no model 'gpt-5'"),
        (["--headroom", "0.95"], "at most --loss-headroom"),
        (["--zones", "0"], "--zones must be at least 1"),
        (["--replication", "1"], "surviving a zone takes --replication 2"),
        (["--clusters", "few"], "give auto or a whole number"),
        (["--cached-share", "1.5"], "--cached-share is a share"),
        (["--mean-load", "0"], "--mean-load"),
        (["--set", "broker.cores"], "give ID=NUMBER"),
        (["--set", "broker.core=8"], "did you mean broker.cores"),
        (["--weights", "int3"], "number format 'int3'"),
        (["--spare", "-1"], "--spare may not be negative"),
        (["--itl-ms", "0"], "--itl-ms and --ttft-ms"),
        (["--max-sequences", "0"], "--max-sequences"),
        (["--sdk-clients", "-1"], "--sdk-clients"),
        (["--zones", "150"], "no cluster is small enough: even at next to no load"),
        (["--tensor-parallel", "3"], "can be spread over 1, 2, 4, 8"),
    ],
)
def test_mistakes_are_named_with_what_to_do(arguments: list[str], complaint: str) -> None:
    result = invoked(*ARGUMENTS, *arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert complaint in str(result.exception)


def test_outputs_exclude_each_other() -> None:
    assert invoked(*ARGUMENTS, "--json", "--helm").exit_code == 2


def test_warnings_speak_of_what_grows_or_is_missing() -> None:
    large = planned(1_200, quota_share=1.0, placement=Placement(clusters=1))
    assert any("answers that feedback may still come for" in line for line in large.warnings)
    assert any("folds the whole admission log" in line for line in large.warnings)
    two = planned(placement=Placement(regions=2, replication=2))
    assert any("two regions" in line for line in two.warnings)
    assert any("--replication 2" in line for line in two.warnings)
    far = planned(1e6, placement=Placement(regions=5))
    assert any("bring" in line and "home cluster" in line for line in far.warnings)
    quiet = planned(
        1, 21, 64, machines=LAPTOP, placement=Placement(zones=1, spare_workers=0, replication=1)
    )
    assert quiet.warnings == ()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B/s", "0 B/s"),
        (999.6, "B", "1 kB"),
        (1234, "B/s", "1.23 kB/s"),
        (1_500_000, "B", "1.5 MB"),
        (4.8e12, "B/s", "4.8 TB/s"),
        (1234.5, "requests/s", "1,234 requests/s"),
        (3, "", "3"),
        (0.25, "", "0.25"),
        (0.0129, "s", "12.9 ms"),
        (12.85, "s", "12.8 s"),
        (7200, "s", "2 h"),
    ],
)
def test_numbers_are_shown_with_their_units(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_days_stay_days() -> None:
    assert duration(30 * 86_400) == "30 d"
    assert duration(6 * 3600) == "6 h"


# The chart.


def test_the_charts_values_have_the_names_that_are_written() -> None:
    chart = yaml.safe_load((ROOT / "infra/deploy/helm/feedloom/values.yaml").read_text("utf-8"))
    settings = {"workers": WorkerSettings, "gateway": GatewaySettings}
    for path in NAMES.values():
        parts = path.split(".")
        if "settings" in parts:
            assert parts[-1] in settings[parts[0]].model_fields
            parts = parts[:-1]
        value: Any = chart
        for part in parts:
            assert part in value, path
            value = value[part]


def test_the_charts_schema_takes_what_is_written() -> None:
    chart = ROOT / "infra/deploy/helm/feedloom"
    given_ = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))
    written = yaml.safe_load(invoked(*ARGUMENTS, "--helm").stdout)
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    jsonschema.validate(merged(given_, written), schema)


def merged(one: Any, other: Any) -> Any:
    if not isinstance(one, dict) or not isinstance(other, dict):
        return other
    return {key: merged(one.get(key), other.get(key, one.get(key))) for key in one | other}


def test_helm_prints_the_plans_values() -> None:
    result = invoked(*ARGUMENTS, "--helm")
    assert result.exit_code == 0
    written = yaml.safe_load(result.stdout)
    found = planned()
    cluster = found.cluster
    assert written["kafka"]["partitions"] == cluster.partitions
    assert written["kafka"]["strimzi"]["nodes"] == cluster.brokers
    defaults = written["workers"]["defaults"]
    assert defaults["replicas"] == cluster.workers
    assert cluster.workers <= defaults["autoscaling"]["maxReplicas"] <= cluster.partitions
    assert defaults["settings"]["max_num_seqs"] <= 256
    size = int(written["kafka"]["strimzi"]["storage"]["size"].removesuffix("Gi")) * 1024**3
    assert size * cluster.brokers * 0.75 >= cluster.disk_bytes
    assert set(values(found)) == set(NAMES)
    small = planned(1, 21, 64, machines=LAPTOP, placement=Placement(zones=1, replication=1))
    assert values(small)["worker_kind"] == "cpu"
    assert values(small)["in_sync"] == 1


# The document.


def test_outputs_in_the_document_are_those_of_the_command() -> None:
    """If not: python -m infra.planning.document"""
    text = (ROOT / document.DOCUMENT).read_text("utf-8")
    assert len(document.commands(text)) >= 3

    def run(words: Any) -> str:
        result = invoked(*words)
        assert result.exit_code == 0, result.exception
        return result.stdout

    assert document.rewritten(text, run) == text


def test_the_documents_table_of_bottlenecks_has_the_plans_numbers() -> None:
    text = (ROOT / document.DOCUMENT).read_text("utf-8")
    found = planned(1e6, 1024, placement=Placement(regions=5))
    edges = {edge.key: edge.rate for edge in found.edges}
    assert f"{edges['scan']:,.0f} requests/s a cluster" in text
    assert f"(assumed, 16 measured): {edges['members']:,.0f} requests/s" in text
    assert f"{found.figure('join').value / 1e9:.0f} GB in each worker" in text


def test_blocks_are_found_with_their_lines_joined() -> None:
    text = "a\n```console\n$ feedloom plan --rps 1 \\\n    --gpu cpu\nold\n```\nb\n```\n$ ls\n```\n"
    assert document.commands(text) == [["--rps", "1", "--gpu", "cpu"]]
    new = document.rewritten(text, lambda words: " ".join(words) + "\n")
    assert new == text.replace("old", "--rps 1 --gpu cpu")
