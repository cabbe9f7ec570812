"""``feedloom models replay``. vLLM is imported once there is something to ask it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from infra.registry.state import DEFAULT_MODEL, named
from stream_workers.commands import engine_option

if TYPE_CHECKING:
    from infra.settings import Settings
    from stream_workers.engine import Engine
    from stream_workers.engines import EngineKind
    from stream_workers.replay import Target
    from stream_workers.replay_past import Answer

Against = Literal["recorded", "stable"]
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _seconds(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is not such as 90s, 30m, 24h or 7d")
    return int(found[1]) * SECONDS[found[2]]


@click.command()
@click.option("--version", required=True, help="The candidate: VERSION or MODEL@VERSION.")
@click.option("--model", help=f"If VERSION does not name it.  [default: {DEFAULT_MODEL}]")
@click.option(
    "--since",
    "since_s",
    default="24h",
    show_default=True,
    callback=_seconds,
    help="How far back: such as 90s, 30m, 24h or 7d.",
)
@click.option(
    "--limit",
    default=200,
    show_default=True,
    type=click.IntRange(1, 10_000),
    help="Requests at most, spread evenly over those that can be compared.",
)
@click.option("--batch", is_flag=True, help="Batch requests too.")
@click.option(
    "--against",
    type=click.Choice(["recorded", "stable"]),
    default="recorded",
    show_default=True,
    help="The answers that were given, or the stable version's, asked again here.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the report.  [default: replays/MODEL-VERSION-TIME below the settings' home]",
)
@engine_option
def replay(
    version: str,
    model: str | None,
    since_s: int,
    limit: int,
    batch: bool,
    against: Against,
    out: Path | None,
    engine: EngineKind,
) -> None:
    """Put past requests to a version before it sees any, and compare its answers.

    Figures and a page of the most different answers, no verdict. Reads the topics and publishes
    nothing. Loads the version in this process, beside whatever serves on this machine.
    """
    import asyncio
    import os
    import time

    from infra.contracts.errors import ConfigurationError
    from infra.kafka.bus import connect
    from infra.registry.client import read_registry
    from infra.registry.store import ArtifactStore
    from infra.settings import load_settings
    from stream_workers.replay import answers_of, target_of
    from stream_workers.replay_figures import figures_of, pair_of
    from stream_workers.replay_past import read_past
    from stream_workers.replay_report import REPORT, Replay, summary, write

    chosen, name = _named(version, model)
    settings = load_settings()
    began = time.time()
    since_ms = int((began - since_s) * 1000)
    with connect(settings) as bus:
        state = read_registry(bus)
        store = ArtifactStore(settings.artifacts)
        candidate = target_of(state, store, chosen, name)
        rival = None
        if against == "stable":
            stable = state.stable(chosen)
            if stable is None:
                raise ConfigurationError(f"{chosen} has no stable version to compare with")
            rival = target_of(state, store, chosen, stable.version)
        _say(f"reading the requests of {chosen}")
        past = read_past(bus, model=chosen, since_ms=since_ms, limit=limit, batch=batch)
    if not past.cases:
        why = ", ".join(f"{count} {reason}" for reason, count in past.skipped.items())
        raise ConfigurationError(
            f"none of {past.requests} requests can be compared{f' ({why})' if why else ''}: "
            "give an earlier --since, or --batch"
        )

    def build(target: Target) -> Engine:
        return _engine(engine, settings, target)

    async def run() -> tuple[list[Answer], list[Answer]]:
        before = [case.recorded for case in past.cases]
        if rival is not None:
            before = await answers_of(rival, past.cases, build=build, say=_say)
        return before, await answers_of(candidate, past.cases, build=build, say=_say)

    if engine == "vllm":
        os.nice(5)  # answers that somebody waits for come first
    before, after = asyncio.run(run())
    pairs = [pair_of(*one) for one in zip(past.cases, before, after, strict=True)]
    found = Replay(
        candidate=candidate.name,
        against="the recorded answers" if rival is None else rival.name,
        fresh=rival is not None,
        engine=engine,
        since_ms=since_ms,
        began_ms=int(began * 1000),
        seconds=time.time() - began,
        past=past,
        pairs=pairs,
        figures=figures_of(pairs),
        adapter_of=candidate.weights if candidate.adapter is not None else None,
        refused=candidate.refused,
    )
    folder = out or settings.home / "replays" / _folder(candidate.name, began)
    write(folder, found)
    click.echo(summary(found))
    click.echo(f"\n{folder / REPORT}")


def _named(version: str, model: str | None) -> tuple[str, str]:
    chosen, name = named(version)
    if model is not None and "@" in version and chosen != model:
        raise click.UsageError(f"--version is of {chosen}, --model says {model}")
    return model or chosen, name


def _folder(name: str, began_s: float) -> str:
    import time

    moment = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began_s))
    return re.sub(r"[^\w.-]", "-", f"{name}-{moment}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _engine(kind: EngineKind, settings: Settings, target: Target) -> Engine:
    """As a worker's, but on whatever cores are free, and with room for no more than one adapter."""
    import os

    from stream_workers.engines import build_engine

    if kind == "vllm":
        # What it has to say belongs beside the progress, not into the summary.
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    room = {"max_adapters": int(target.adapter is not None), "pin_cores": False}
    worker = settings.worker.model_copy(update=room)
    return build_engine(kind, worker, path=target.path, version=target.weights)
