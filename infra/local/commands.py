"""``feedloom up`` and ``feedloom doctor``."""

from __future__ import annotations

import signal
import threading

import click


@click.command()
@click.option("--quiet", is_flag=True, help="No progress, only problems.")
def up(quiet: bool) -> None:
    """Run the whole platform in the foreground; Ctrl-C drains and stops all of it.

    Broker, worker, trainer, rollout controller and gateway.
    """
    from infra.local.platform import LocalPlatform
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
    with LocalPlatform(settings, say, quiet=quiet, gateway=True) as platform:
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
