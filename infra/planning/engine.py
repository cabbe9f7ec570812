"""One worker's engine in its steady state: how many requests a second it ends, and how fast.

A step makes one token of each running sequence. It reads the weights and every sequence's cache
from memory, and multiplies; prompts are multiplied in between. Formulas: docs/scaling.md. Knows
nothing of Kafka.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from infra.contracts.errors import ConfigurationError
from infra.planning.coefficients import Coefficient, Coefficients
from infra.planning.figures import Ground
from infra.planning.models import ModelShape
from infra.planning.workload import Reach, Targets, Workload
from infra.settings import WorkerSettings

DEGREES = (1, 2, 4, 8)
"""Tensor parallel degrees: the accelerators of one host."""
BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One kind. ``bandwidth`` is ``None`` where it did not limit what was measured, which then
    holds for models up to ``largest``."""

    name: str
    memory: Coefficient
    bandwidth: Coefficient | None
    flops: Coefficient
    bandwidth_share: Coefficient
    flops_share: Coefficient
    step: Coefficient
    sequence: Coefficient
    reserve: Coefficient
    parallel: dict[int, Coefficient]
    largest: Coefficient | None

    @property
    def degrees(self) -> tuple[int, ...]:
        """How many of them one engine can use."""
        return (1, *sorted(self.parallel))

    @property
    def grounds(self) -> tuple[Ground, ...]:
        """All that its speed rests on."""
        reading = () if self.bandwidth is None else (self.bandwidth, self.bandwidth_share)
        return (*reading, self.flops, self.flops_share, self.step, self.sequence)


def accelerator(coefficients: Coefficients, name: str, model: ModelShape) -> Accelerator:
    """By name. 8-bit weights use the 8-bit rate where the accelerator has one.

    Raises ConfigurationError: there is none of that name.
    """
    known = coefficients.accelerators
    if name not in known:
        raise ConfigurationError(f"no GPU {name!r}: give one of {', '.join(known)}")
    own = coefficients.below(f"gpu.{name}.")
    every = coefficients.below("engine.")
    flops = own["flops"]
    if model.weights == "fp8" and "flops_fp8" in own:
        flops = own["flops_fp8"]

    def either(field: str) -> Coefficient:
        return own.get(field) or every[field]

    degrees = {degree: every[f"parallel_{degree}"] for degree in DEGREES[1:] if name != "cpu"}
    return Accelerator(
        name=name,
        memory=own["memory"],
        bandwidth=own.get("bandwidth"),
        flops=flops,
        bandwidth_share=either("bandwidth_share"),
        flops_share=either("flops_share"),
        step=either("step"),
        sequence=either("sequence"),
        reserve=either("reserve"),
        parallel=degrees,
        largest=own.get("parameters"),
    )


@dataclass(frozen=True, kw_only=True)
class Engine:
    """``degree`` accelerators that serve one model together."""

    accelerator: Accelerator
    degree: int
    model: ModelShape
    memory_share: float
    cache_limit: float = math.inf
    """Bytes for keys and values that the settings allow."""

    @property
    def _together(self) -> float:
        """Accelerators' worth of speed."""
        share = self.accelerator.parallel.get(self.degree)
        return self.degree * (1.0 if share is None else share.value)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that a step really reads."""
        kind = self.accelerator
        if kind.bandwidth is None:
            return math.inf
        return kind.bandwidth.value * kind.bandwidth_share.value * self._together

    @property
    def flops(self) -> float:
        """Operations a second that are really reached."""
        kind = self.accelerator
        return kind.flops.value * kind.flops_share.value * self._together

    @property
    def grounds(self) -> tuple[Ground, ...]:
        """What its speed rests on."""
        share = self.accelerator.parallel.get(self.degree)
        return (*self.accelerator.grounds, *(() if share is None else (share,)))

    @property
    def room(self) -> tuple[Ground, ...]:
        """What its memory for keys and values rests on; nothing, where a setting decides."""
        kind = self.accelerator
        return () if self.cache_bytes == self.cache_limit else (kind.memory, kind.reserve)

    @property
    def cache_bytes(self) -> float:
        """What is left for keys and values; below zero, the weights do not fit."""
        kind = self.accelerator
        usable = self.memory_share * kind.memory.value - kind.reserve.value
        return min(self.cache_limit, usable * self.degree - self.model.weight_bytes)

    def step_s(self, sequences: float, context: float) -> float:
        """One token for each of ``sequences`` whose context is ``context`` tokens long."""
        kind, model = self.accelerator, self.model
        weights = max(model.read_bytes / self.bandwidth, sequences * model.token_flops / self.flops)
        cache = sequences * context * model.cache_bytes / self.bandwidth
        return kind.step.value + sequences * kind.sequence.value + weights + cache

    def prefill_s(self, workload: Workload) -> float:
        """The prompt of one request, without what the prefix cache has."""
        fresh = workload.prompt_tokens * (1 - workload.cached_share)
        looked_at = workload.prompt_tokens - fresh / 2
        flops = fresh * self.model.token_flops
        flops += self.model.attention_flops(fresh, looked_at)
        return flops / self.flops


@dataclass(frozen=True, kw_only=True)
class Pace:
    """An engine with ``sequences`` running all the time."""

    sequences: float
    requests_per_s: float
    itl_s: float
    ttft_s: float
    duration_s: float


def pace(engine: Engine, workload: Workload, sequences: float, overhead_s: float) -> Pace:
    """Little's law over decode and prefill: of each second, prompts take ``rate x prefill``, and
    the steps share the rest.

    ``overhead_s``: what the platform adds to a first token. The wait of a prompt behind others is
    that of M/D/1 (Pollaczek and Khinchine), and no longer than all other sequences' prompts take.
    """
    output = workload.output_tokens
    step = engine.step_s(sequences, workload.prompt_tokens + output / 2)
    prefill = engine.prefill_s(workload)
    rate = sequences / (output * step + sequences * prefill)
    share = rate * prefill
    others = max(0.0, sequences - 1)
    waiting = others * prefill
    if share < 1:
        waiting = min(waiting, share * prefill / (2 * (1 - share)))
    # A request's own prompt comes before its first token; others' come between its tokens.
    itl = step + others * prefill / output
    ttft = overhead_s + waiting + prefill + step
    return Pace(
        sequences=sequences,
        requests_per_s=rate,
        itl_s=itl,
        ttft_s=ttft,
        duration_s=ttft + (output - 1) * itl,
    )


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The most that one engine can do within the targets, and what stops it there."""

    engine: Engine
    full: Pace
    limited_by: Reach
    cached: float
    """Sequences whose keys and values fit the memory."""


def capacity(engine: Engine, workload: Workload, targets: Targets, overhead_s: float) -> Capacity:
    """The most sequences that fit the memory and the targets. ``full.sequences`` is 0 if none.

    They need not be whole: requests come and go, and the mean is what is planned with.
    """
    per_sequence = workload.sequence_tokens * engine.model.cache_bytes
    fitting = max(0.0, engine.cache_bytes / per_sequence)
    most = min(fitting, float(targets.max_sequences))
    limit: Reach = "memory" if fitting < targets.max_sequences else "engine slots"
    alone = pace(engine, workload, 1, overhead_s)
    if most < 1:
        return Capacity(engine=engine, full=none(alone), limited_by="memory", cached=fitting)
    missed = _missed(alone, targets)
    if missed is not None:
        return Capacity(engine=engine, full=none(alone), limited_by=missed, cached=fitting)
    low, high = 1.0, most
    found = _missed(pace(engine, workload, most, overhead_s), targets)
    if found is None:
        low = most
    else:
        limit = found
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            missed = _missed(pace(engine, workload, middle, overhead_s), targets)
            if missed is None:
                low = middle
            else:
                high, limit = middle, missed
    full = pace(engine, workload, low, overhead_s)
    return Capacity(engine=engine, full=full, limited_by=limit, cached=fitting)


def none(alone: Pace) -> Pace:
    """What is said of an engine that cannot run even one request as it should."""
    return replace(alone, sequences=0.0, requests_per_s=0.0)


def _missed(found: Pace, targets: Targets) -> Reach | None:
    if found.itl_s > targets.itl_s:
        return "token latency"
    return "first token" if found.ttft_s > targets.ttft_s else None


def at_rate(found: Capacity, workload: Workload, rate: float, overhead_s: float) -> Pace:
    """The pace at a rate that the engine can keep up with; sequences need not be whole."""
    low, high = 0.0, found.full.sequences
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if pace(found.engine, workload, middle, overhead_s).requests_per_s < rate:
            low = middle
        else:
            high = middle
    return pace(found.engine, workload, high, overhead_s)


def choose(
    coefficients: Coefficients,
    kind: Accelerator,
    model: ModelShape,
    workload: Workload,
    targets: Targets,
    *,
    degree: int | None = None,
) -> Capacity:
    """The degree that ends most requests a second for each accelerator; of equals the smallest.

    Raises ConfigurationError: the model has no room, or no degree meets the targets.
    """
    if workload.sequence_tokens > model.context:
        raise ConfigurationError(
            f"a prompt and answer of {workload.sequence_tokens:,.0f} tokens do not fit the context "
            f"of {model.name}, {model.context:,} tokens"
        )
    if kind.largest is not None and model.parameters > kind.largest.value:
        raise ConfigurationError(
            f"{model.name} has {model.parameters / 1e6:,.0f}M parameters, and the figures of --gpu "
            f"{kind.name} hold up to {kind.largest.value / 1e6:,.0f}M ({kind.largest.source})"
        )
    overhead = coefficients["worker.ttft"].value
    defaults = WorkerSettings()
    small = kind.name == "cpu"
    found: list[Capacity] = []
    for tried in _degrees(kind, model, degree):
        engine = Engine(
            accelerator=kind,
            degree=tried,
            model=model,
            memory_share=1.0 if small else defaults.gpu_memory_utilization,
            cache_limit=defaults.kv_cache_gb * 1024**3 if small else math.inf,
        )
        found.append(capacity(engine, workload, targets, overhead))
    usable = [one for one in found if one.full.sequences]
    if not usable:
        raise ConfigurationError(_refusal(found, workload, targets))
    return max(usable, key=lambda one: one.full.requests_per_s / one.engine.degree)


def _degrees(kind: Accelerator, model: ModelShape, asked: int | None) -> tuple[int, ...]:
    possible = tuple(one for one in kind.degrees if model.heads % one == 0)
    if asked is None:
        return possible
    if asked not in possible:
        raise ConfigurationError(
            f"--tensor-parallel {asked}: {model.name} on {kind.name} can be spread over "
            + ", ".join(map(str, possible))
        )
    return (asked,)


def _refusal(found: list[Capacity], workload: Workload, targets: Targets) -> str:
    last = found[-1]
    model, kind, degree = last.engine.model, last.engine.accelerator.name, last.engine.degree
    place = f"{degree} x {kind}"
    if last.cached < 1:
        room = last.engine.cache_bytes + model.weight_bytes
        return (
            f"{model.name} in {model.weights} takes {model.weight_bytes / 1e9:,.0f} GB and the "
            f"cache of one request {workload.sequence_tokens * model.cache_bytes / 1e9:.3g} GB; "
            f"{place} have {room / 1e9:,.3g} GB for both. Take a larger GPU, or --weights fp8"
        )
    if last.limited_by == "token latency":
        return (
            f"one request alone gets a token every {1e3 * last.full.itl_s:.3g} ms on {place}, not "
            f"every {1e3 * targets.itl_s:.3g} ms: raise --itl-ms or take a faster GPU"
        )
    return (
        f"a prompt of {workload.prompt_tokens:,.0f} tokens has its first token after "
        f"{1e3 * last.full.ttft_s:.3g} ms on {place}, not after {1e3 * targets.ttft_s:.3g} ms: "
        "raise --ttft-ms, or say with --cached-share what the prefix cache has"
    )
