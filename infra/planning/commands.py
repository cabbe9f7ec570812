"""``feedloom plan``."""

from __future__ import annotations

import json

import click

from infra.contracts.errors import ConfigurationError

WIDTH = 200
"""Of a page with formulas. A page is the same on every terminal, so that it can be compared."""


@click.command()
@click.option("--rps", required=True, type=float, help="Requests a second at the peak, everywhere.")
@click.option("--prompt-tokens", required=True, type=float, help="Mean, a request.")
@click.option("--output-tokens", required=True, type=float, help="Mean, a request.")
@click.option("--gpu", required=True, help="a100, h100, h200, l40s, b200; cpu: two cores.")
@click.option("--model", required=True, help="A preset, or a path to a config.json.")
@click.option("--weights", help="Number format: float32, bfloat16, float16, fp8.")
@click.option("--kv-cache", help="The same, of keys and values.")
@click.option("--tensor-parallel", type=int, help="GPUs a worker; unset: the best that fits.")
@click.option("--itl-ms", default=50.0, show_default=True, help="Most time a token may take.")
@click.option("--ttft-ms", default=1000.0, show_default=True, help="Most until the first token.")
@click.option("--headroom", default=0.7, show_default=True, help="Share that is planned with.")
@click.option("--loss-headroom", default=0.9, show_default=True, help="Share after a loss.")
@click.option("--max-sequences", default=256, show_default=True, help="At once in one engine.")
@click.option("--zones", default=3, show_default=True, help="In a region; one may be lost.")
@click.option("--spare", default=1, show_default=True, help="Workers and gateways, in one zone.")
@click.option("--replication", default=3, show_default=True, help="Copies of every topic.")
@click.option("--regions", default=1, show_default=True, help="One may be lost, of several.")
@click.option("--lose-region/--keep-regions", default=True, show_default=True)
@click.option("--clusters", default="auto", show_default=True, help="In a region, or auto.")
@click.option("--cached-share", default=0.0, show_default=True, help="Of prompts, in the cache.")
@click.option("--batch-share", default=0.0, show_default=True, help="Requests that may wait.")
@click.option("--quota-share", default=0.0, show_default=True, help="Requests under a quota.")
@click.option("--shadow-share", default=0.0, show_default=True, help="Requests that are copied.")
@click.option("--feedback-share", default=0.05, show_default=True, help="Answers with feedback.")
@click.option("--cancelled-share", default=0.02, show_default=True, help="Requests cancelled.")
@click.option("--mean-load", default=0.5, show_default=True, help="Mean over peak: fills disks.")
@click.option("--sdk-clients", default=0, show_default=True, help="In a cluster, next to gateways.")
@click.option("--versions-per-day", default=1.0, show_default=True, help="That workers load.")
@click.option(
    "--own-results", is_flag=True, help="As if a gateway read only its own requests' results."
)
@click.option(
    "--set", "values", multiple=True, metavar="ID=VALUE", help="A coefficient of your own."
)
@click.option("--explain", is_flag=True, help="Each formula with its numbers, and their sources.")
@click.option("--json", "as_json", is_flag=True, help="For programs, in SI units.")
@click.option("--helm", is_flag=True, help="Values for infra/deploy/helm/feedloom, one cluster.")
def plan(
    rps: float,
    prompt_tokens: float,
    output_tokens: float,
    gpu: str,
    model: str,
    weights: str | None,
    kv_cache: str | None,
    tensor_parallel: int | None,
    itl_ms: float,
    ttft_ms: float,
    headroom: float,
    loss_headroom: float,
    max_sequences: int,
    zones: int,
    spare: int,
    replication: int,
    regions: int,
    lose_region: bool,
    clusters: str,
    cached_share: float,
    batch_share: float,
    quota_share: float,
    shadow_share: float,
    feedback_share: float,
    cancelled_share: float,
    mean_load: float,
    sdk_clients: int,
    versions_per_day: float,
    own_results: bool,
    values: tuple[str, ...],
    explain: bool,
    as_json: bool,
    helm: bool,
) -> None:
    """Plan a deployment: workers, GPUs, partitions, brokers, disks, clusters and regions.

    Every line says whether it rests on something measured, published or assumed; docs/scaling.md
    has the formulas. A worker is one engine with its GPUs. All clusters are planned alike.
    """
    from infra.planning.coefficients import load_coefficients
    from infra.planning.plan import make_plan
    from infra.planning.workload import Machines, Placement, Targets, Workload

    if sum((explain, as_json, helm)) > 1:
        raise click.UsageError("--explain, --json and --helm exclude each other")
    coefficients = load_coefficients().replaced(dict(map(_assignment, values)))
    made = make_plan(
        coefficients,
        Workload(
            requests_per_s=rps,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            cached_share=cached_share,
            batch_share=batch_share,
            quota_share=quota_share,
            shadow_share=shadow_share,
            feedback_share=feedback_share,
            cancelled_share=cancelled_share,
            mean_load=mean_load,
            sdk_clients=sdk_clients,
            versions_per_day=versions_per_day,
        ),
        Targets(
            itl_s=itl_ms / 1000,
            ttft_s=ttft_ms / 1000,
            headroom=headroom,
            loss_headroom=loss_headroom,
            max_sequences=max_sequences,
        ),
        Machines(
            gpu=gpu,
            model=model,
            weights=weights,
            cache=kv_cache,
            tensor_parallel=tensor_parallel,
        ),
        Placement(
            zones=zones,
            spare_workers=spare,
            regions=regions,
            survive_region=lose_region,
            clusters=_clusters(clusters),
            replication=replication,
            own_results=own_results,
        ),
    )
    if helm:
        from infra.planning.helm import values_yaml

        click.echo(values_yaml(made), nl=False)
        return
    from infra.planning.page import as_data, page, without_trailing_spaces

    if as_json:
        click.echo(json.dumps(as_data(made, coefficients), indent=2))
        return
    from rich.console import Console

    console = Console(width=WIDTH, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(page(made, coefficients, explain=explain))
    click.echo(without_trailing_spaces(captured.get()), nl=False)


def _assignment(text: str) -> tuple[str, float]:
    name, found, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        found = ""
    if not found or not 0 < number < float("inf"):
        raise ConfigurationError(f"--set {text}: give ID=NUMBER, such as broker.cores=8")
    return name, number


def _clusters(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigurationError(f"--clusters {text}: give auto or a whole number from 1 on")
    return int(text)
