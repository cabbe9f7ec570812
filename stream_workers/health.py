"""``/healthz`` and ``/readyz``: what is wrong with a worker, told apart.

Liveness (``/healthz``) fails when only a restart helps: the engine is dead, or commits have been
failing for long. Readiness (``/readyz``) also fails while the worker starts or drains, when the
broker does not answer, and when a partition does not move. Both answer with every check, its
verdict and its reason; status 200 or 503.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
from aiohttp import web

from stream_workers.dispatcher import PartitionHealth

BROKER_TIMEOUT_S = 2.0

Phase = Literal["starting", "ready", "draining"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One verdict. ``reason`` says what is wrong and since when; empty when nothing is."""

    name: str
    ok: bool
    reason: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint answers."""

    ok: bool
    checks: tuple[Check, ...]


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """Where the checks look. ``stuck_s``: a partition whose oldest request is older is stuck."""

    engine_dead: Callable[[], bool]
    commits_failing_s: Callable[[], float]
    broker_answers: Callable[[float], Awaitable[bool]]
    partitions: Callable[[], Sequence[PartitionHealth]]
    phase: Callable[[], Phase]
    stuck_s: float


def engine_check(*, dead: bool) -> Check:
    """A dead engine never comes back by itself."""
    reason = "the engine process has ended: this worker must be restarted" if dead else ""
    return Check(name="engine", ok=not dead, reason=reason)


def commits_check(failing_s: float, limit_s: float) -> Check:
    """Results that cannot be committed are answers that nobody gets."""
    ok = failing_s < limit_s
    reason = "" if failing_s == 0 else f"no transaction has succeeded for {failing_s:.0f} s"
    return Check(name="commits", ok=ok, reason=reason)


def partitions_check(partitions: Sequence[PartitionHealth], stuck_s: float) -> Check:
    """A partition is stuck when its oldest request has been in the worker for too long."""
    stuck = [each for each in partitions if each.unfinished and each.oldest_s > stuck_s]
    worst = sorted(stuck, key=lambda each: -each.oldest_s)[:5]
    reason = "; ".join(
        f"{each.partition.topic}/{each.partition.partition}: a request for {each.oldest_s:.0f} s, "
        f"{each.window} offsets uncommitted, {each.held} held back"
        for each in worst
    )
    return Check(name="partitions", ok=not stuck, reason=reason)


class HealthServer:
    """Serves both endpoints on ``host:port``. Port 0 picks a free one."""

    def __init__(self, vitals: Vitals, *, host: str, port: int) -> None:
        self._vitals = vitals
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        assert self._runner is not None
        return int(self._runner.addresses[0][1])

    def live(self) -> Report:
        """Whether a restart is needed."""
        vitals = self._vitals
        return _report(
            engine_check(dead=vitals.engine_dead()),
            commits_check(vitals.commits_failing_s(), vitals.stuck_s),
        )

    async def ready(self) -> Report:
        """Whether this worker answers requests now."""
        vitals = self._vitals
        phase = vitals.phase()
        broker = await vitals.broker_answers(BROKER_TIMEOUT_S)
        lost = f"no broker answered within {BROKER_TIMEOUT_S:.0f} s"
        return _report(
            Check(name="phase", ok=phase == "ready", reason="" if phase == "ready" else phase),
            Check(name="broker", ok=broker, reason="" if broker else lost),
            engine_check(dead=vitals.engine_dead()),
            commits_check(vitals.commits_failing_s(), BROKER_TIMEOUT_S),
            partitions_check(vitals.partitions(), vitals.stuck_s),
        )

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()

    async def stop(self) -> None:
        """Stop listening. Safe to call twice."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return _response(self.live())

    async def _readyz(self, request: web.Request) -> web.Response:
        return _response(await self.ready())


def _report(*checks: Check) -> Report:
    return Report(ok=all(check.ok for check in checks), checks=checks)


def _response(report: Report) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(report),
        status=200 if report.ok else 503,
        content_type="application/json",
    )
