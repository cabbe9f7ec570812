"""``feedloom generate`` and ``feedloom publish``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("prompt")
@click.option("--stream", is_flag=True, help="Show tokens as they arrive.")
@click.option("--model", default="default", show_default=True)
@click.option("--max-tokens", default=128, show_default=True)
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--seed", type=int, help="The same seed on the same version gives the same text.")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds.")
@click.option("--chat", is_flag=True, help="PROMPT is a message to answer, not a text to continue.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def generate(
    prompt: str,
    stream: bool,
    model: str,
    max_tokens: int,
    temperature: float,
    seed: int | None,
    timeout_s: float,
    chat: bool,
    as_json: bool,
) -> None:
    """Ask for one completion of PROMPT; its request id goes to standard error."""
    from infra.contracts import codec
    from infra.contracts.events.generation import ChatMessage, SamplingParameters
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from producers.client import GenerationClient

    settings = load_settings()
    sampling = SamplingParameters(max_tokens=max_tokens, temperature=temperature, seed=seed)
    with (
        configure_telemetry("feedloom-cli", settings.telemetry),
        GenerationClient.connect(settings, source="feedloom-cli") as client,
    ):
        handle = client.submit(
            "" if chat else prompt,
            messages=[ChatMessage(role="user", content=prompt)] if chat else (),
            model=model,
            sampling=sampling,
            ttl_s=timeout_s,
        )
        if stream and not as_json:
            for chunk in handle.stream(timeout_s):
                click.echo(chunk.text, nl=False)
            click.echo()
        result = handle.result(timeout_s)
    if as_json:
        click.echo(codec.encode(result).decode())
    elif not stream:
        click.echo(result.text)
    click.echo(f"request {result.request_id}", err=True)
    if result.error is not None:
        click.echo(f"feedloom: {result.error.message} ({result.error.code})", err=True)
        sys.exit(1)


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--results", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests a second.")
@click.option("--max-in-flight", default=256, show_default=True, type=click.IntRange(min=1))
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds each.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def publish(
    prompts: Path,
    results: Path,
    rate: float | None,
    max_in_flight: int,
    timeout_s: float,
    quiet: bool,
) -> None:
    """Publish a JSON-lines file of PROMPTS and collect the results, in the order of the file.

    A line is {"prompt": "..."} or {"messages": [{"role", "content"}]}, and optionally
    "request_id", "model", "affinity_key": strings, "batch": true, "sampling": {...}. A line that
    cannot be used is reported with its number; the others still go. Exit status 1 if any failed.
    """
    from rich.console import Console
    from rich.progress import Progress

    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from producers.client import GenerationClient
    from producers.files import publish_lines

    settings = load_settings()
    console = Console(stderr=True)
    failed = 0
    # Bytes: of a text, more characters end a line than of JSON lines.
    lines = prompts.read_bytes().splitlines()
    with (
        configure_telemetry("feedloom-cli", settings.telemetry),
        GenerationClient.connect(settings, source="feedloom-cli") as client,
        results.open("w", encoding="utf-8") as output,
        Progress(console=console, disable=quiet or not console.is_terminal) as bars,
    ):
        bar = bars.add_task("answers", total=sum(1 for line in lines if line.strip()))
        for outcome in publish_lines(
            client, lines, rate_per_s=rate, max_in_flight=max_in_flight, timeout_s=timeout_s
        ):
            output.write(json.dumps(outcome.row, ensure_ascii=False) + "\n")
            bars.advance(bar)
            if outcome.error is not None:
                failed += 1
                click.echo(f"{prompts}:{outcome.line}: {outcome.error}", err=True)
    if failed:
        click.echo(f"feedloom: {failed} of the lines failed; see above", err=True)
        sys.exit(1)
