"""What one cluster's topics carry at the peak: records, bytes, readers, and what is kept.

Who reads what follows from the code of the services, and is told in docs/scaling.md. A test
compares the constants below with theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from infra.contracts import catalogue
from infra.contracts.catalogue import EVER, TopicSpec
from infra.planning.coefficients import Coefficient, Coefficients
from infra.planning.engine import Pace
from infra.planning.figures import Ground
from infra.planning.models import ModelShape
from infra.planning.wire import token_id_bytes
from infra.planning.workload import Workload
from infra.settings import WorkerSettings

CROWD, WIDEST, BATCH = 16, 6, 5
"""How chunks are gathered: stream_workers/coalescer.py."""
COMMIT_S = 0.025
"""Between two transactions of a worker: INTERVAL_S in stream_workers/outcomes.py."""
HEARTBEAT_S = 10.0
"""Of workers and gateways."""

CHANGELOG = "feedback-join-changelog"
TRANSACTIONS = "transactions and offsets"


@dataclass(frozen=True, kw_only=True)
class Readers:
    """How many there are of those who read topics in a cluster."""

    workers: int
    gateways: int
    sdk_clients: int
    own_results: bool = False


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One topic. ``readers``: how many times every byte is read. ``kept_s``: ``None``, for good.

    ``mean_s`` is the mean rate, which fills what is kept; ``keys``: of a compacted topic whose
    records replace each other.
    """

    topic: str
    partitions: int
    records_s: float
    mean_s: float
    record_bytes: float
    readers: float
    kept_s: float | None
    keys: float | None
    grounds: tuple[Ground, ...]

    @property
    def bytes_in(self) -> float:
        """A second, from clients."""
        return self.records_s * self.record_bytes

    @property
    def bytes_out(self) -> float:
        """A second, to clients."""
        return self.bytes_in * self.readers

    def kept_bytes(self, horizon_s: float) -> float:
        """Of one replica, once it is full, or after ``horizon_s`` where nothing is deleted."""
        if self.keys is not None:
            return self.keys * self.record_bytes
        kept = horizon_s if self.kept_s is None else self.kept_s
        return self.mean_s * self.record_bytes * kept


def crowding(in_flight: float) -> int:
    """How many times longer a worker with so many requests gathers."""
    return min(WIDEST, max(1, round(in_flight / CROWD)))


def chunks_per_request(
    found: Pace, workload: Workload, worker: WorkerSettings, *, batch: bool = False
) -> float:
    """The first token, what is gathered by time or size, and the end."""
    longer = BATCH if batch else 1
    interval = worker.chunk_interval_s * crowding(found.sequences) * longer
    size = min(worker.chunk_max_tokens * longer, max(1.0, interval / found.itl_s))
    return 1 + math.ceil((workload.output_tokens - 1) / size) + (workload.output_tokens > 1)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Bytes of a prompt, an answer, and the answer's token ids, in JSON."""

    prompt: float
    answer: float
    ids: float
    grounds: tuple[Coefficient, ...]


def texts(coefficients: Coefficients, model: ModelShape, workload: Workload) -> Texts:
    """By the mean token of a large vocabulary, or the embedded model's."""
    small = model.vocabulary < 16_384
    letters = coefficients["text.token_small" if small else "text.token"]
    escaped = coefficients["text.escaped"]
    each = letters.value * escaped.value
    return Texts(
        prompt=workload.prompt_tokens * each,
        answer=workload.output_tokens * each,
        ids=workload.output_tokens * token_id_bytes(model.vocabulary),
        grounds=(letters, escaped),
    )


def flows(
    coefficients: Coefficients,
    workload: Workload,
    chunks: float,
    text: Texts,
    *,
    rate: float,
    partitions: int,
    readers: Readers,
) -> tuple[Flow, ...]:
    """Of every topic with traffic worth planning. ``chunks``: of a request."""
    batch, interactive = workload.batch_share, 1 - workload.batch_share
    clients = readers.gateways + readers.sdk_clients
    # Each has a reply partition; of more clients than partitions some share one.
    sharing = max(1.0, clients / partitions)
    framing = coefficients["wire.batch"]

    def flow(
        spec: TopicSpec,
        records_s: float,
        wire: str,
        body: float,
        read_by: float,
        *,
        keys: float | None = None,
        periodic: bool = False,
    ) -> Flow:
        size = coefficients[wire]
        kept = spec.retention_ms
        return Flow(
            topic=spec.name,
            partitions=1 if spec.partitions == 1 else partitions,
            records_s=records_s,
            mean_s=records_s * (1.0 if periodic else workload.mean_load),
            record_bytes=size.value + framing.value + body,
            readers=read_by,
            kept_s=None if kept is None or kept == EVER else kept / 1000,
            keys=keys,
            grounds=(size, framing, *(text.grounds if body else ())),
        )

    answered = text.prompt + text.answer
    asked = rate * workload.quota_share
    rated = rate * workload.feedback_share
    found_flows = [
        flow(catalogue.REQUESTS, rate * interactive, "wire.request", text.prompt, 1),
        flow(catalogue.REQUESTS_BATCH, rate * batch, "wire.request", text.prompt, 1),
        flow(
            catalogue.CHUNKS,
            rate * chunks,
            "wire.chunk",
            (text.answer + text.ids) / chunks,
            sharing,
        ),
        # The join's group once, the controller of rollouts, and every client the whole topic.
        flow(
            catalogue.RESULTS,
            rate,
            "wire.result",
            answered,
            2 + (1 if readers.own_results else clients),
        ),
        flow(catalogue.FEEDBACK, rated, "wire.feedback", 0, 1),
        flow(catalogue.EXAMPLES, rated, "wire.example", answered, 3),
        flow(
            catalogue.SHADOW,
            rate * workload.shadow_share,
            "wire.shadow",
            answered + text.answer,
            0,
        ),
        flow(
            catalogue.CANCELLATIONS,
            rate * workload.cancelled_share,
            "wire.cancellation",
            0,
            readers.workers,
        ),
        flow(catalogue.ADMISSIONS, asked, "wire.admission_asked", 0, readers.gateways),
        flow(catalogue.ADMISSIONS, asked, "wire.admission_ended", 0, readers.gateways),
        flow(
            catalogue.WORKERS,
            readers.workers / HEARTBEAT_S,
            "wire.worker_status",
            0,
            readers.workers + clients,
            keys=readers.workers,
            periodic=True,
        ),
        flow(
            catalogue.GATEWAYS,
            readers.gateways / HEARTBEAT_S,
            "wire.gateway_status",
            0,
            1,
            keys=readers.gateways,
            periodic=True,
        ),
        _changelog(
            coefficients,
            workload,
            text,
            rate=rate,
            partitions=partitions,
        ),
        _transactions(coefficients, rate=rate, partitions=partitions, readers=readers),
    ]
    return tuple(one for one in found_flows if one.records_s > 0)


def _changelog(
    coefficients: Coefficients,
    workload: Workload,
    text: Texts,
    *,
    rate: float,
    partitions: int,
) -> Flow:
    """Faust's log of the join's table, which is read when partitions move."""
    size, framing = coefficients["wire.join_state"], coefficients["wire.batch"]
    records = rate * (1 + workload.feedback_share)
    return Flow(
        topic=CHANGELOG,
        partitions=partitions,
        records_s=records,
        mean_s=rate * workload.mean_load,
        record_bytes=size.value + framing.value + text.prompt + text.answer,
        readers=0,
        kept_s=WorkerSettings().feedback_window_s,
        keys=None,
        grounds=(size, framing, *text.grounds),
    )


def _transactions(
    coefficients: Coefficients,
    *,
    rate: float,
    partitions: int,
    readers: Readers,
) -> Flow:
    """Each commits what ended meanwhile, and marks every partition that it wrote to. As often as
    with few requests in flight: with many, a worker takes up to six times as long."""
    commit, marker = coefficients["worker.transaction"], coefficients["wire.marker"]
    workers = max(1, readers.workers)
    commits = min(rate, workers / COMMIT_S)
    touched = min(partitions, rate / commits)
    return Flow(
        topic=TRANSACTIONS,
        partitions=partitions,
        records_s=commits,
        mean_s=0.0,
        record_bytes=commit.value + (touched - 1) * marker.value,
        readers=0,
        kept_s=0.0,
        keys=None,
        grounds=(commit, marker),
    )
