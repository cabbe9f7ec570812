"""``feedloom up`` and ``feedloom doctor``."""

from __future__ import annotations

import signal
import threading
from typing import Literal

import click


@click.command()
@click.option("--quiet", is_flag=True, help="No progress, only problems.")
@click.option("--traces", is_flag=True, help="Run a trace UI too, and send every span to it.")
@click.option(
    "--traces-port",
    default=6006,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Of the trace UI.",
)
@click.option(
    "--spans/--no-spans",
    default=True,
    show_default=True,
    help="Keep span files, for `feedloom trace` and the console.",
)
@click.option(
    "--engine",
    type=click.Choice(["vllm", "memory"]),
    default="vllm",
    show_default=True,
    help="The worker's; memory draws words of the prompt, without vLLM.",
)
def up(
    quiet: bool, traces: bool, traces_port: int, spans: bool, engine: Literal["vllm", "memory"]
) -> None:
    """Run the whole platform in the foreground; Ctrl-C drains and stops all of it.

    Broker, worker, trainer, rollout controller and gateway; with --traces a trace UI, which is
    installed at the first time into an environment of its own.
    """
    from infra.local.platform import LocalPlatform, span_folder
    from infra.local.trace_ui import TraceUi
    from infra.settings import load_settings

    stop = threading.Event()

    def ask_to_stop(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Until the platform is up, an interrupt ends the start at once.
        if not started:
            raise KeyboardInterrupt

    started = False
    say = (lambda line: None) if quiet else click.echo
    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGTERM, ask_to_stop)
    settings = load_settings()
    kept = {"FEEDLOOM_TELEMETRY__SPAN_DIRECTORY": str(span_folder(settings))} if spans else {}
    with LocalPlatform(
        settings,
        say,
        environment=kept,
        quiet=quiet,
        gateway=True,
        trace_ui=TraceUi(settings.home, port=traces_port) if traces else None,
        engine=engine,
    ) as platform:
        started = True
        click.echo('ready. In another terminal: feedloom generate "PROMPT" --stream')
        click.echo(
            f"HTTP API and console: http://{settings.gateway.host}:{settings.gateway.port}/console"
            " (a key: feedloom keys create --tenant me --name me --role caller --role feedback"
            " --role operator)"
        )
        versions: dict[str, str] = {}
        while not stop.is_set():
            platform.check()
            platform.watch.poll(0.5)
            for report in platform.watch.workers.values():
                serving = ", ".join(f"{m}@{v}" for m, v in sorted(report.versions.items()))
                if serving and versions.get(report.worker_id) != serving:
                    versions[report.worker_id] = serving
                    say(f"{report.worker_id} serves {serving}")


@click.command()
def doctor() -> None:
    """Check this machine and deployment; exit 1 if anything fails."""
    from infra.local.doctor import examine
    from infra.settings import load_settings

    marks = {"ok": ("ok  ", "green"), "warning": ("warn", "yellow"), "failed": ("FAIL", "red")}
    failed = False
    for finding in examine(load_settings()):
        mark, colour = marks[finding.verdict]
        click.echo(f"{click.style(mark, fg=colour)}  {finding.check:9} {finding.detail}")
        if finding.verdict != "ok" and finding.remedy:
            click.echo(f"                 -> {finding.remedy}")
        failed = failed or finding.verdict == "failed"
    if failed:
        raise SystemExit(1)
