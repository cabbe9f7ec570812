"""What the topics say of past requests: each with the answer it was given and the feedback on it.

Reads without a group, from a moment up to the ends that the topics have now, and writes nothing.
Knows nothing of engines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import pairwise

from infra.contracts.bus import Bus, read_since
from infra.contracts.catalogue import EXAMPLES, REQUESTS, REQUESTS_BATCH, RESULTS
from infra.contracts.codec import decode
from infra.contracts.errors import ContractError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import GenerationRequest, GenerationResult

HELD = 10
"""Requests that are held for each one that is wanted: what is skipped is known only later."""
MAX_BYTES = 64 * 1024**2
"""Of the requests that are held, as JSON."""
CLOCK_SKEW_MS = 60_000
FINISHED = ("stop", "length")
ANOTHER_MODEL = "asked for another model"
UNANSWERED = "no answer on the topic"
UNREADABLE = "unreadable"

_LOG = logging.getLogger(__name__)
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a version answered, the first completion; or the ``error`` that it ended with."""

    text: str = ""
    finish_reason: str | None = None
    tokens: int = 0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    error: str | None = None
    versions: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """An answer that says nothing."""
        return self.error is None and not self.text.strip()


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request, what it was answered, and what people said of that.

    ``resumed``: one worker went on with another's answer.
    """

    request: GenerationRequest
    recorded: Answer
    resumed: bool = False
    feedback: FeedbackExample | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the same version would give the same answer: greedy, beams, or from a seed."""
        sampling = self.request.sampling
        if sampling.temperature == 0 or sampling.beam_width is not None:
            return True
        # Who goes on with a sampled answer draws anew.
        return sampling.seed is not None and not self.resumed


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What was found. Of ``requests`` so many were ``looked_at``, the rest only counted.

    ``skipped``: how many cannot be compared, by reason. ``fit``: how many of those looked at can;
    ``cases`` are chosen of them, in the order of their creation.
    """

    requests: int
    looked_at: int
    skipped: Mapping[str, int]
    fit: int
    cases: tuple[Case, ...]


def read_past(
    bus: Bus,
    *,
    model: str,
    since_ms: int,
    limit: int,
    batch: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Past:
    """Requests of a model since a moment that were answered, at most ``limit``.

    Which ones does not depend on the order of reading. Of more than HELD times ``limit`` requests,
    or more than ``max_bytes`` of them, that many are looked at, chosen by a hash of their ids.
    Those that can be compared are cut, in the order of creation, into ``limit`` parts alike in
    size, and of each part the one of the smallest hash is taken.
    """
    held = _Held(HELD * limit, max_bytes)
    skipped: Counter[str] = Counter()
    count = 0
    for topic in (REQUESTS.name, *((REQUESTS_BATCH.name,) if batch else ())):
        for record in read_since(bus, topic, since_ms):
            count += 1
            try:
                request = decode(record.value or b"", GenerationRequest)
            except ContractError:
                skipped[UNREADABLE] += 1
                continue
            if request.model != model:
                skipped[ANOTHER_MODEL] += 1
            else:
                held.add(request, len(record.value or b""))
    fit: list[Case] = []
    unanswered = dict(held.requests)
    for result in _results(bus, since_ms, {request_id for request_id, _ in unanswered}):
        asked = unanswered.pop((result.request_id, result.submit_id), None)
        if asked is None:
            continue
        why = _unfit(result)
        if why is None:
            fit.append(_case(asked, result))
        else:
            skipped[why] += 1
    if unanswered:
        skipped[UNANSWERED] += len(unanswered)
    fit.sort(key=lambda case: (case.request.created_at_ms, *_key(case.request)))
    chosen = fit if len(fit) <= limit else _spread(fit, limit)
    return Past(
        requests=count,
        looked_at=len(held.requests),
        skipped=dict(skipped.most_common()),
        fit=len(fit),
        cases=tuple(_with_feedback(bus, since_ms, chosen)),
    )


class _Held:
    """Requests by key: those of the smallest hashes, as many as there is room for.

    Which they are in the end is decided by which there were, not by their order.
    """

    def __init__(self, most: int, max_bytes: int) -> None:
        self._most = most
        self._max_bytes = max_bytes
        self._bytes = 0
        self._largest: list[tuple[int, int, Key]] = []  # a heap, by the hash with its sign turned
        self._limit = 1 << 64
        self.requests: dict[Key, GenerationRequest] = {}

    def add(self, request: GenerationRequest, size: int) -> None:
        """Hold it, if there is room or its hash is a small one; the same submit once."""
        key = _key(request)
        mark = _mark(key)
        if mark >= self._limit or key in self.requests:
            return
        self.requests[key] = request
        heappush(self._largest, (-mark, size, key))
        self._bytes += size
        while len(self.requests) > self._most or self._bytes > self._max_bytes:
            turned, size, key = heappop(self._largest)
            self._limit = -turned
            self._bytes -= size
            del self.requests[key]


def _key(request: GenerationRequest) -> Key:
    return request.request_id, request.submit_id


def _mark(key: Key) -> int:
    return int.from_bytes(blake2b("\0".join(key).encode(), digest_size=8).digest(), "big")


def _spread(cases: list[Case], limit: int) -> list[Case]:
    """Not every n-th: callers that take turns would be in step with it."""
    cuts = [place * len(cases) // limit for place in range(limit + 1)]
    parts = (cases[start:end] for start, end in pairwise(cuts))
    return [min(part, key=lambda case: _mark(_key(case.request))) for part in parts]


def _results(bus: Bus, since_ms: int, wanted: Container[str]) -> Iterator[GenerationResult]:
    for record in read_since(bus, RESULTS.name, since_ms - CLOCK_SKEW_MS):
        if record.value is None or record.key_text not in wanted:
            continue
        try:
            yield decode(record.value, GenerationResult)
        except ContractError as error:
            _LOG.warning("unreadable result %d/%d: %s", record.partition, record.offset, error)


def _unfit(result: GenerationResult) -> str | None:
    """Why there is no answer to compare with."""
    if result.error is not None:
        return f"failed: {result.error.code}"
    if result.finish_reason not in FINISHED:
        return result.finish_reason.replace("_", " ")
    return None


def _case(request: GenerationRequest, result: GenerationResult) -> Case:
    others = sum(other.output_tokens for other in result.alternatives)
    return Case(
        request=request,
        recorded=Answer(
            text=result.text,
            finish_reason=result.finish_reason,
            tokens=result.output_tokens - others,
            ttft_ms=result.timings.ttft_ms,
            itl_ms=result.timings.itl_ms,
            versions=result.model_versions,
        ),
        resumed=result.resumed_tokens > 0,
    )


def _with_feedback(bus: Bus, since_ms: int, cases: list[Case]) -> Iterator[Case]:
    """Feedback is by request id alone: only that on this very answer is taken."""
    wanted = {case.request.request_id for case in cases}
    found: dict[str, FeedbackExample] = {}
    for record in read_since(bus, EXAMPLES.name, since_ms - CLOCK_SKEW_MS) if wanted else ():
        if record.key_text not in wanted:
            continue
        if record.value is None:
            found.pop(record.key_text, None)  # forgotten
            continue
        try:
            found[record.key_text] = decode(record.value, FeedbackExample)
        except ContractError as error:
            _LOG.warning("unreadable example %d/%d: %s", record.partition, record.offset, error)
    for case in cases:
        example = found.get(case.request.request_id)
        about_it = example is not None and example.output == case.recorded.text
        yield replace(case, feedback=example) if about_it else case
