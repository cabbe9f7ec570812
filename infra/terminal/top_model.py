"""The platform as its topics tell it now: a fold of records and readings into a frame. Pure.

Knows of a request only its result: what is not answered is told by the offsets of the workers'
group, which move when a request has been answered, and by what the workers report.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from infra.contracts import catalogue, codec
from infra.contracts.bus import Record
from infra.contracts.errors import ContractError
from infra.contracts.events.generation import Assignment, Timings
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged, RolloutDecided
from infra.contracts.events.platform import GatewayStatusReported, WorkerStatusReported
from infra.kafka.partition_lag import GroupReport
from infra.registry.state import RegistryState
from infra.registry.transitions import stage_of
from infra.registry.workers import SILENT_MS
from infra.rollouts.arms import FAILED
from infra.terminal.top_frame import (
    ArmRow,
    Frame,
    GatewayRow,
    LagRow,
    OwnerRow,
    Rates,
    TrainingRow,
    WorkerRow,
)

WINDOW_S = 60
STOPPED_SHOWN_MS = 600_000
"""One that stopped, or was not heard of, is shown for so long."""
MOST_RESULTS = 200_000
"""Of the window; beyond them the oldest are forgotten, and rates are too low."""

FOLDED = (
    catalogue.WORKERS.name,
    catalogue.GATEWAYS.name,
    catalogue.REGISTRY.name,
    catalogue.ROLLOUTS.name,
    catalogue.DECISIONS.name,
)
"""Read from the beginning."""
REQUESTS = (catalogue.REQUESTS.name, catalogue.REQUESTS_BATCH.name)


class _Ended(msgspec.Struct):
    """What of a result is counted. All of the platform's pass here: texts are not decoded."""

    model: str
    finish_reason: str
    output_tokens: int
    model_versions: tuple[str, ...] = ()
    worker_id: str = ""
    timings: Timings = Timings()
    assignment: Assignment | None = None


_DECODER = msgspec.json.Decoder(_Ended)


class TopModel:
    """Apply the records of a partition in order; one that comes again changes nothing.

    For one thread.
    """

    def __init__(self, *, window_s: int = WINDOW_S) -> None:
        self._window_s = window_s
        self._registry = RegistryState()
        self._workers: dict[str, WorkerStatusReported] = {}
        self._gateways: dict[str, GatewayStatusReported] = {}
        self._decided: dict[str, RolloutDecided] = {}
        self._ended: deque[tuple[int, _Ended]] = deque(maxlen=MOST_RESULTS)
        self._seen: dict[int, int] = {}
        self._reports: Sequence[GroupReport] = ()
        self._letters: dict[str, int] = {}
        self._unreadable = 0

    def apply(self, record: Record) -> None:
        """Take in one record; one that cannot be read is counted and passed over."""
        if record.topic == catalogue.RESULTS.name:
            self._end(record)
        elif record.value is None:
            self._workers.pop(record.key_text, None)
            self._gateways.pop(record.key_text, None)
        else:
            self._fold(record.value)

    def sample(self, reports: Sequence[GroupReport], dead_letters: Mapping[str, int]) -> None:
        """How the groups stand, and how many records each dead-letter topic holds."""
        self._reports = tuple(reports)
        self._letters = dict(dead_letters)

    def frame(self, now_ms: int) -> Frame:
        """Everything as of ``now_ms``."""
        begin_ms = now_ms - 1000 * self._window_s
        # Writers' clocks may be ahead; the window's end is this one's.
        window = [ended for at_ms, ended in self._ended if begin_ms < at_ms <= now_ms + SILENT_MS]
        return Frame(
            at_ms=now_ms,
            window_s=self._window_s,
            rates=self._rates(window),
            lag=tuple(self._lag()),
            owners=tuple(self._owners()),
            workers=tuple(self._worker_rows(window, now_ms)),
            arms=tuple(self._arms(window)),
            gateways=tuple(self._gateway_rows(now_ms)),
            training=tuple(self._training(now_ms)),
            dead_letters={topic: count for topic, count in sorted(self._letters.items()) if count},
            unreadable=self._unreadable,
        )

    def _end(self, record: Record) -> None:
        # A reader that is set back gives a record again.
        if record.value is None or record.offset < self._seen.get(record.partition, 0):
            return
        self._seen[record.partition] = record.offset + 1
        try:
            ended = _DECODER.decode(record.value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._unreadable += 1
            return
        self._ended.append((record.timestamp_ms, ended))
        newest = record.timestamp_ms - 2000 * self._window_s
        while self._ended and self._ended[0][0] < newest:
            self._ended.popleft()

    def _fold(self, value: bytes) -> None:
        try:
            event = codec.decode_any(value)
        except ContractError:
            self._unreadable += 1
            return
        if isinstance(event, WorkerStatusReported):
            known = self._workers.get(event.worker_id)
            if known is None or known.reported_at_ms <= event.reported_at_ms:
                self._workers[event.worker_id] = event
        elif isinstance(event, GatewayStatusReported):
            seen = self._gateways.get(event.gateway_id)
            if seen is None or seen.reported_at_ms <= event.reported_at_ms:
                self._gateways[event.gateway_id] = event
        elif isinstance(event, ModelVersionPublished | RolloutChanged):
            self._registry.apply(event)
        elif isinstance(event, RolloutDecided):
            last = self._decided.get(event.model)
            if last is None or last.decided_at_ms <= event.decided_at_ms:
                self._decided[event.model] = event

    def _rates(self, window: Sequence[_Ended]) -> Rates:
        times = [one.timings.ttft_ms for one in window if one.timings.ttft_ms is not None]
        return Rates(
            requests_per_s=len(window) / self._window_s,
            tokens_per_s=sum(one.output_tokens for one in window) / self._window_s,
            failed=sum(one.finish_reason in FAILED for one in window),
            ttft_p50_ms=quantile(times, 0.5),
            ttft_p95_ms=quantile(times, 0.95),
        )

    def _lag(self) -> Iterable[LagRow]:
        for report in self._reports:
            topics: dict[str, dict[int, int]] = defaultdict(dict)
            for one in report.partitions:
                topics[one.topic][one.partition] = one.lag
            for topic, lags in sorted(topics.items()):
                worst = max(lags, key=lambda one: (lags[one], -one))
                yield LagRow(
                    group=report.group,
                    topic=topic,
                    lag=sum(lags.values()),
                    worst_partition=worst if lags[worst] else None,
                    worst_lag=lags[worst],
                )

    def _owners(self) -> Iterable[OwnerRow]:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        partitions: Counter[str] = Counter()
        for report in self._reports:
            for one in report.partitions:
                if one.topic in REQUESTS and (one.owner or one.lag):
                    counts[one.owner][one.topic] += one.lag
                    partitions[one.owner] += 1
        for owner, lags in sorted(counts.items()):
            yield OwnerRow(
                owner=owner,
                partitions=partitions[owner],
                unanswered=lags[REQUESTS[0]],
                unanswered_batch=lags[REQUESTS[1]],
            )

    def _worker_rows(self, window: Sequence[_Ended], now_ms: int) -> Iterable[WorkerRow]:
        tokens: Counter[str] = Counter()
        requests: Counter[str] = Counter()
        for ended in window:
            tokens[ended.worker_id] += ended.output_tokens
            requests[ended.worker_id] += 1
        for worker_id, one in sorted(self._workers.items()):
            age_ms = max(0, now_ms - one.reported_at_ms)
            silent = one.state not in ("stopped", "failed") and age_ms > SILENT_MS
            if (silent or one.state == "stopped") and age_ms > STOPPED_SHOWN_MS:
                continue
            yield WorkerRow(
                worker_id=worker_id,
                state=one.state,
                silent=silent,
                age_s=age_ms / 1000,
                serving=tuple(f"{model}@{name}" for model, name in sorted(one.versions.items())),
                loaded=tuple(
                    f"{model}@{name}"
                    for model, names in sorted(one.loaded.items())
                    for name in names
                ),
                requests_per_s=requests[worker_id] / self._window_s,
                tokens_per_s=tokens[worker_id] / self._window_s,
                last_pause_ms=None if one.last_switch is None else one.last_switch.pause_ms,
                failure=one.failure,
                in_flight=one.in_flight,
                queued=one.queued,
            )

    def _arms(self, window: Sequence[_Ended]) -> Iterable[ArmRow]:
        answered: dict[tuple[str, str], list[_Ended]] = defaultdict(list)
        for ended in window:
            if ended.model_versions:
                # As the worker names it: MODEL@VERSION, or the version alone.
                version = ended.model_versions[-1].rpartition("@")[2]
                answered[ended.model, version].append(ended)
        for model in self._registry.models():
            rollout = self._registry.rollout(model)
            if rollout is None:
                continue
            tried = rollout.candidate_weight if rollout.candidate is not None else 0.0
            # A shadow's copies are shown to nobody.
            share = 0.0 if rollout.state == "shadow" else tried
            arms = [("stable", rollout.stable, 1.0 - share)]
            if rollout.candidate is not None:
                arms.append(("candidate", rollout.candidate, tried))
            arms += [
                ("other", version, 0.0)
                for name, version in sorted(answered)
                if name == model and version not in (rollout.stable, rollout.candidate)
            ]
            for arm, version, weight in arms:
                mine = answered[model, version]
                times = [one.timings.ttft_ms for one in mine if one.timings.ttft_ms is not None]
                yield ArmRow(
                    model=model,
                    version=version,
                    arm=arm,
                    weight=weight,
                    rollout=rollout.state + (", pinned" if rollout.pinned else ""),
                    requests=len(mine),
                    tokens_per_s=sum(one.output_tokens for one in mine) / self._window_s,
                    ttft_p50_ms=quantile(times, 0.5),
                )

    def _gateway_rows(self, now_ms: int) -> Iterable[GatewayRow]:
        for gateway_id, one in sorted(self._gateways.items()):
            age_ms = max(0, now_ms - one.reported_at_ms)
            silent = one.state == "ready" and age_ms > SILENT_MS
            if age_ms > STOPPED_SHOWN_MS:
                continue
            yield GatewayRow(
                gateway_id=gateway_id,
                state=one.state,
                silent=silent,
                age_s=age_ms / 1000,
                url=one.url,
                reply_partition=one.reply_partition,
            )

    def _training(self, now_ms: int) -> Iterable[TrainingRow]:
        for model in self._registry.models():
            versions = self._registry.versions(model)
            newest, decided = versions[-1], self._decided.get(model)
            rounds = [one for one in versions if one.lineage.feedback_examples]
            yield TrainingRow(
                model=model,
                rounds=len(rounds),
                rejected=sum(one.rejected for one in rounds),
                newest=newest.version,
                stage=stage_of(self._registry, newest),
                age_s=max(0, now_ms - newest.created_at_ms) / 1000,
                examples=newest.lineage.feedback_examples,
                verdict="" if decided is None else f"{decided.verdict}: {decided.reason}",
            )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that ``share`` of them do not exceed; ``None`` of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
