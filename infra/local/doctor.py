"""Checks of this machine and this deployment, each with the command that mends what it finds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from infra.contracts import catalogue
from infra.contracts.errors import FeedloomError
from infra.files import free_bytes
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.bus import connect, resolve_kafka
from infra.kafka.java import find_java
from infra.kafka.topics import missing_topics
from infra.settings import Settings

GIB = 1024**3
NEEDED_DISK_GIB = 4
NEEDED_MEMORY_GIB = 4


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check. ``remedy`` is what to do when the verdict is not ``ok``."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Run every check; a failing one never stops the others."""
    checks: list[Callable[[Settings], Finding]] = [
        _python,
        _packages,
        _java,
        _disk,
        _memory,
        _broker,
        _topics,
        _model,
    ]
    for check in checks:
        try:
            yield check(settings)
        except (FeedloomError, OSError) as error:
            yield Finding(
                check=check.__name__.strip("_"),
                verdict="failed",
                detail=str(error),
                remedy="see the message",
            )


def _python(settings: Settings) -> Finding:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Finding(check="python", verdict="ok", detail=f"{version} at {sys.executable}")


def _packages(settings: Settings) -> Finding:
    missing = [name for name in ("faust", "vllm", "torch", "transformers") if not find_spec(name)]
    if missing:
        return Finding(
            check="packages",
            verdict="warning",
            detail=f"not installed: {', '.join(missing)} (fine for a publisher)",
            remedy="make setup",
        )
    return Finding(check="packages", verdict="ok", detail="worker and trainer sets are installed")


def _java(settings: Settings) -> Finding:
    java = find_java()
    return Finding(check="java", verdict="ok", detail=str(java))


def _disk(settings: Settings) -> Finding:
    settings.home.mkdir(parents=True, exist_ok=True)
    free = free_bytes(settings.home) / GIB
    return Finding(
        check="disk",
        verdict="ok" if free >= NEEDED_DISK_GIB else "failed",
        detail=f"{free:.1f} GiB free for {settings.home}, {NEEDED_DISK_GIB} needed",
        remedy="free some, or set FEEDLOOM_HOME to a larger disk",
    )


def _memory(settings: Settings) -> Finding:
    import psutil

    free = psutil.virtual_memory().available / GIB
    return Finding(
        check="memory",
        verdict="ok" if free >= NEEDED_MEMORY_GIB else "warning",
        detail=f"{free:.1f} GiB available, {NEEDED_MEMORY_GIB} needed for broker, worker, trainer",
        remedy="lower FEEDLOOM_WORKER__KV_CACHE_GB and FEEDLOOM_KAFKA__LOCAL_HEAP_MB",
    )


def _broker(settings: Settings) -> Finding:
    if settings.kafka.bootstrap_servers is None and EmbeddedKafka(settings.home).status() is None:
        return Finding(
            check="broker",
            verdict="warning",
            detail="the embedded broker is not running, and no other is set",
            remedy="feedloom kafka start, or set FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS",
        )
    with connect(settings) as bus:
        bus.end_offsets(catalogue.REGISTRY.name)
    return Finding(check="broker", verdict="ok", detail="answers, and knows the registry topic")


def _topics(settings: Settings) -> Finding:
    if settings.kafka.bootstrap_servers is None and EmbeddedKafka(settings.home).status() is None:
        return Finding(check="topics", verdict="warning", detail="not checked: no broker runs")
    missing = missing_topics(resolve_kafka(settings))
    return Finding(
        check="topics",
        verdict="failed" if missing else "ok",
        detail=f"missing: {', '.join(missing)}" if missing else "the whole catalogue is there",
        remedy="feedloom topics apply",
    )


def _model(settings: Settings) -> Finding:
    directory = settings.home / "models" / settings.worker.model
    built = directory.is_dir() and any(directory.glob("*/config.json"))
    return Finding(
        check="model",
        verdict="ok" if built else "warning",
        detail=f"embedded model in {directory}" if built else "the embedded model is not built yet",
        remedy="feedloom models bootstrap",
    )
