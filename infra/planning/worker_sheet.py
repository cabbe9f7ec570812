"""The sheet of one worker: its engine's memory, its step, and the rate that is planned with."""

from __future__ import annotations

from infra.planning.cluster import Worker
from infra.planning.coefficients import Coefficients
from infra.planning.figures import Sheet, number, shown
from infra.planning.models import ModelShape
from infra.planning.workload import Targets, Workload
from infra.settings import WorkerSettings


def engine_sheet(
    coefficients: Coefficients,
    worker: Worker,
    model: ModelShape,
    workload: Workload,
    targets: Targets,
) -> Sheet:
    """One worker."""
    found = worker.capacity
    engine, full, kind = found.engine, found.full, found.engine.accelerator
    grounds = engine.grounds
    sheet = Sheet("One worker")
    sheet.add(
        "weights",
        "weights",
        model.weight_bytes,
        "B",
        f"{model.parameters:,} parameters in {model.weights}",
    )
    sheet.add(
        "degree",
        f"{kind.name} a worker",
        engine.degree,
        "",
        "tensor parallel: of those that fit, the degree with most requests/s a GPU",
        *engine.room,
        *grounds,
    )
    sheet.add(
        "cache",
        "sequences in the KV cache",
        found.cached,
        "",
        f"{shown(engine.cache_bytes, 'B')} / ({workload.sequence_tokens:,.0f} tokens x "
        f"{shown(model.cache_bytes, 'B')})",
        *engine.room,
    )
    context = workload.prompt_tokens + workload.output_tokens / 2
    step = engine.step_s(full.sequences, context)
    sheet.add(
        "step",
        f"a step of {number(full.sequences)} sequences",
        step,
        "s",
        _step_formula(worker, model, context),
        *grounds,
    )
    prefill = engine.prefill_s(workload)
    fresh = workload.prompt_tokens * (1 - workload.cached_share)
    sheet.add(
        "prefill",
        "a prompt",
        prefill,
        "s",
        f"{fresh:,.0f} tokens x {model.token_flops:.3g} FLOP, and attention / "
        f"{shown(engine.flops, 'FLOP/s')}",
        *grounds,
    )
    sheet.add(
        "engine_rate",
        f"engine's most (limited by {worker.limited_by})",
        full.requests_per_s,
        "requests/s",
        f"{number(full.sequences)} / ({workload.output_tokens:,.0f} x {shown(step, 's')} + "
        f"{number(full.sequences)} x {shown(prefill, 's')})",
        *engine.room,
        *grounds,
    )
    most = sheet.add(
        "worker_rate",
        "worker's most",
        worker.most,
        "requests/s",
        f"min({number(full.requests_per_s)} x {worker.ratio.value:g}, "
        f"{number(worker.loop.value)} records/s / {number(worker.chunks)} chunks)",
        *engine.room,
        *grounds,
        worker.ratio,
        worker.loop,
    )
    planned = worker.most * targets.headroom
    sheet.add(
        "planned_rate",
        "planned with",
        planned,
        "requests/s",
        f"{number(worker.most)} x headroom {targets.headroom:g}",
        most,
    )
    per_gpu = planned * workload.output_tokens / engine.degree
    sheet.add(
        "gpu_tokens",
        f"output tokens/s a {kind.name}",
        per_gpu,
        "tokens/s",
        f"{number(planned)} x {workload.output_tokens:,.0f} / {engine.degree}",
        most,
    )
    pace = worker.planned
    sheet.add(
        "itl",
        "time a token, there",
        pace.itl_s,
        "s",
        f"at {number(pace.sequences)} sequences; the target is {shown(targets.itl_s, 's')}",
        most,
    )
    sheet.add(
        "ttft",
        "first token, there",
        pace.ttft_s,
        "s",
        f"prompt, a step, the wait behind other prompts, and the platform's "
        f"{shown(coefficients['worker.ttft'].value, 's')}; the target is "
        f"{shown(targets.ttft_s, 's')}",
        most,
        coefficients["worker.ttft"],
    )
    sheet.add(
        "max_num_seqs",
        "setting max_num_seqs",
        worker.sequences,
        "",
        f"{number(full.sequences)}; unset it is {WorkerSettings().max_num_seqs}",
        *engine.room,
        *grounds,
    )
    sheet.add(
        "max_inflight_tokens",
        "setting max_inflight_tokens",
        worker.inflight_tokens(workload),
        "",
        f"{worker.sequences} x {workload.sequence_tokens:,.0f}, where nobody asks for more tokens "
        f"than they get; unset it is {WorkerSettings().max_inflight_tokens:,}",
        *engine.room,
        *grounds,
    )
    return sheet


def _step_formula(worker: Worker, model: ModelShape, context: float) -> str:
    engine, full = worker.capacity.engine, worker.capacity.full
    kind, count = engine.accelerator, full.sequences
    multiplied = f"{number(count)} x {model.token_flops:.3g} FLOP / {shown(engine.flops, 'FLOP/s')}"
    own = f"{shown(kind.step.value, 's')} + {number(count)} x {shown(kind.sequence.value, 's')}"
    if kind.bandwidth is None:
        return f"{own} + {multiplied}"
    read = f"{shown(model.read_bytes, 'B')} / {shown(engine.bandwidth, 'B/s')}"
    cache = (
        f"{number(count)} x {number(context)} x {shown(model.cache_bytes, 'B')} / "
        f"{shown(engine.bandwidth, 'B/s')}"
    )
    return f"{own} + max({read}, {multiplied}) + {cache}"
