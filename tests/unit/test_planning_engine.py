"""The engine model: against measurements, against a simulation, and against common sense."""

from __future__ import annotations

import json
import random
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from infra.planning.cluster import with_platform
from infra.planning.coefficients import load_coefficients
from infra.planning.engine import (
    Capacity,
    Engine,
    accelerator,
    at_rate,
    capacity,
    choose,
    pace,
)
from infra.planning.models import ModelShape, load_model, presets
from infra.planning.traffic import chunks_per_request
from infra.planning.workload import Targets, Workload
from infra.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
COEFFICIENTS = load_coefficients()
OVERHEAD_S = COEFFICIENTS["worker.ttft"].value
PUBLISHED = {
    # Parameters in the index of the safetensors files, or on the model's card.
    "feedloom-tiny": 4_262_144,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b-v0.3": 7_248_023_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-8b": 8_190_735_360,
}
MEASURED_TOKENS_PER_S = {1: 255, 16: 2_432, 64: 3_830, 256: 4_916}
"""benchmarks/bench_overhead.py, 2026-11-25: the bare engine with the embedded model, by load."""
WITHIN = 1.25
"""As docs/scaling.md states. Two of the four points were used to find the three numbers."""
CHUNKS_PER_TOKEN = {1: 0.104, 16: 0.136, 64: 0.0963, 256: 0.208}
"""The platform's chunks in the same run."""


def engine_of(gpu: str, model: str, degree: int = 1) -> Engine:
    shape = load_model(model)
    kind = accelerator(COEFFICIENTS, gpu, shape)
    small = gpu == "cpu"
    return Engine(
        accelerator=kind,
        degree=degree,
        model=shape,
        memory_share=1.0 if small else 0.9,
        cache_limit=0.5 * 1024**3 if small else float("inf"),
    )


def load(prompt: float = 512, output: float = 256, **more: float) -> Workload:
    return Workload(requests_per_s=1, prompt_tokens=prompt, output_tokens=output, **more)


@pytest.mark.parametrize("name", presets())
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert load_model(name).parameters == PUBLISHED[name]


def test_a_config_of_ones_own_is_read(tmp_path: Path) -> None:
    preset = load_model("qwen3-8b")
    config = {
        "model_type": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "torch_dtype": "bfloat16",
    }
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    found = load_model(str(folder))
    assert found.name == "mine"
    assert (found.parameters, found.cache_bytes) == (preset.parameters, preset.cache_bytes)
    assert found.cache_bytes == 2 * 36 * 8 * 128 * 2
    smaller = load_model(str(folder), weights="fp8")
    assert smaller.cache_bytes == found.cache_bytes
    assert 0.5 < smaller.weight_bytes / found.weight_bytes < 0.6

    config["num_experts"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="experts would be planned wrongly"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[]", "no JSON object"),
        ("{", "cannot be read as JSON"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2'"),
        ('{"model_type": "llama"}', "num_attention_heads must be"),
        (
            '{"model_type": "llama", "num_attention_heads": 8, "hidden_size": true}',
            "hidden_size must be",
        ),
    ],
)
def test_a_config_that_is_none_is_refused(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        load_model(str(path))


def test_an_unknown_model_or_gpu_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no model 'gpt-5'"):
        load_model("gpt-5")
    with pytest.raises(ConfigurationError, match="no GPU 'h300': give one of a100"):
        accelerator(COEFFICIENTS, "h300", load_model("qwen3-8b"))


# Measurements.


@pytest.mark.parametrize(("sequences", "measured"), MEASURED_TOKENS_PER_S.items())
def test_the_cpus_rate_is_the_measured_one(sequences: int, measured: float) -> None:
    workload = load(prompt=21, output=128)
    found = pace(engine_of("cpu", "feedloom-tiny"), workload, sequences, OVERHEAD_S)
    planned = found.requests_per_s * workload.output_tokens
    assert measured / WITHIN <= planned <= measured * WITHIN


@pytest.mark.parametrize(("sequences", "measured"), CHUNKS_PER_TOKEN.items())
def test_chunks_are_as_many_as_were_measured(sequences: int, measured: float) -> None:
    workload = load(prompt=21, output=128)
    found = pace(engine_of("cpu", "feedloom-tiny"), workload, sequences, OVERHEAD_S)
    planned = chunks_per_request(found, workload, WorkerSettings()) / workload.output_tokens
    assert measured / WITHIN <= planned <= measured * WITHIN


def test_what_a_worker_is_planned_with_is_below_what_it_was_measured_to_do() -> None:
    """The platform's own rate at 256, with everything on two cores."""
    workload = load(prompt=21, output=128)
    targets = Targets(itl_s=0.1)
    found = capacity(engine_of("cpu", "feedloom-tiny"), workload, targets, OVERHEAD_S)
    worker = with_platform(COEFFICIENTS, found, workload, targets)
    measured = 4_309
    assert found.full.sequences == 256
    assert 0.8 * measured < worker.most * 128 < 1.25 * measured
    assert worker.most * targets.headroom * 128 < measured


@pytest.mark.parametrize(
    ("bandwidth", "measured_s"), [(1.555e12, 1 / 75), (3.35e12, 6.48e-3)], ids=["a100-40g", "h100"]
)
def test_a_single_stream_is_as_fast_as_published_runs(bandwidth: float, measured_s: float) -> None:
    """Llama 3.1 8B, vLLM; sources in coefficients.toml under engine.bandwidth_share."""
    coefficients = COEFFICIENTS.replaced({"gpu.h100.bandwidth": bandwidth})
    model = load_model("llama-3.1-8b")
    engine = Engine(
        accelerator=accelerator(coefficients, "h100", model),
        degree=1,
        model=model,
        memory_share=0.9,
    )
    planned = engine.step_s(1, 1024)
    assert measured_s < planned < 1.15 * measured_s


# A simulation of its own: steps one after the other, with prompts between them.


def simulate(
    engine: Engine, workload: Workload, slots: float, rate: float, requests: int
) -> tuple[int, float]:
    """Requests waiting at the end of so many arrivals, and the mean time a token."""
    chance = random.Random(7)
    now, sent, tokens, spent = 0.0, 0, 0, 0.0
    due = chance.expovariate(rate)
    waiting: deque[int] = deque()
    running: list[int] = []
    while sent < requests:
        while due <= now and sent < requests:
            waiting.append(max(1, round(chance.uniform(0.5, 1.5) * workload.output_tokens)))
            due += chance.expovariate(rate)
            sent += 1
        admitted = min(len(waiting), max(0, int(slots) - len(running)))
        running += [waiting.popleft() for _ in range(admitted)]
        if not running:
            now = due
            continue
        context = workload.prompt_tokens + workload.output_tokens / 2
        took = engine.step_s(len(running), context) + admitted * engine.prefill_s(workload)
        now += took
        tokens += len(running)
        spent += took * len(running)
        running = [left - 1 for left in running if left > 1]
    return len(waiting), spent / tokens


@pytest.mark.parametrize(
    ("gpu", "model", "prompt", "output", "cached"),
    [
        ("cpu", "feedloom-tiny", 21, 128, 0.0),
        ("h200", "llama-3.1-8b", 512, 256, 0.0),
        ("h200", "llama-3.1-8b", 4096, 64, 0.5),
        ("h100", "llama-3.1-70b", 1024, 300, 0.0),
        ("l40s", "qwen2.5-7b", 200, 500, 0.0),
        ("b200", "llama-3.1-405b", 800, 200, 0.0),
    ],
)
def test_a_simulated_engine_keeps_up_with_what_is_planned(
    gpu: str, model: str, prompt: float, output: float, cached: float
) -> None:
    workload = load(prompt, output, cached_share=cached)
    targets = Targets()
    shape = load_model(model, weights="fp8" if "405" in model else None)
    kind = accelerator(COEFFICIENTS, gpu, shape)
    found = choose(COEFFICIENTS, kind, shape, workload, targets)
    slots = found.full.sequences
    for share in (targets.headroom, targets.loss_headroom):
        rate = found.full.requests_per_s * share
        queue, itl_s = simulate(found.engine, workload, slots, rate, requests=1_500)
        assert queue <= slots
        assert itl_s <= targets.itl_s
    # And beyond it does not: the plan is not idle capacity either.
    queue, _ = simulate(found.engine, workload, slots, 1.6 * found.full.requests_per_s, 1_500)
    assert queue > 50


# Common sense.

SHAPES = st.sampled_from(["llama-3.2-1b", "llama-3.1-8b", "qwen2.5-7b", "llama-3.1-70b"])
GPUS = st.sampled_from(["a100", "h100", "h200", "b200"])
EASY = Targets(itl_s=0.2, ttft_s=20.0)


def planned(gpu: str, model: ModelShape, workload: Workload, degree: int = 4) -> Capacity:
    kind = accelerator(COEFFICIENTS, gpu, model)
    return choose(COEFFICIENTS, kind, model, workload, EASY, degree=degree)


@given(
    gpu=GPUS,
    model=SHAPES,
    prompt=st.floats(1, 8_000),
    output=st.floats(1, 4_000),
    longer=st.floats(1, 4),
)
def test_longer_answers_and_prompts_never_raise_the_rate(
    gpu: str, model: str, prompt: float, output: float, longer: float
) -> None:
    shape = load_model(model)
    base = planned(gpu, shape, load(prompt, output)).full.requests_per_s
    nearly = base * (1 + 1e-6)
    assert planned(gpu, shape, load(prompt, output * longer)).full.requests_per_s <= nearly
    assert planned(gpu, shape, load(prompt * longer, output)).full.requests_per_s <= nearly


@given(
    gpu=GPUS,
    model=SHAPES,
    prompt=st.floats(1, 4_000),
    output=st.floats(2, 2_000),
    share=st.floats(0.05, 1.0),
)
def test_littles_law_holds_within_the_targets(
    gpu: str, model: str, prompt: float, output: float, share: float
) -> None:
    workload = load(prompt, output)
    found = planned(gpu, load_model(model), workload)
    rate = share * found.full.requests_per_s
    there = at_rate(found, workload, rate, OVERHEAD_S)
    assert there.requests_per_s == pytest.approx(rate, rel=1e-3)
    assert there.itl_s <= EASY.itl_s * 1.001
    assert there.ttft_s <= EASY.ttft_s * 1.001
    busy_s = output * there.itl_s + found.engine.prefill_s(workload)
    assert there.sequences <= rate * busy_s * 1.001
    if there.sequences >= 1:
        assert there.sequences == pytest.approx(rate * busy_s, rel=1e-3)
    assert there.sequences <= min(found.cached, EASY.max_sequences) * 1.001
    assert there.duration_s == pytest.approx(there.ttft_s + (output - 1) * there.itl_s)


def test_the_best_degree_is_one_that_fits() -> None:
    large = load_model("llama-3.1-70b")
    found = choose(COEFFICIENTS, accelerator(COEFFICIENTS, "h100", large), large, load(), Targets())
    assert found.engine.degree in (4, 8)
    assert found.engine.cache_bytes > 0
    small = load_model("llama-3.1-8b")
    found = choose(COEFFICIENTS, accelerator(COEFFICIENTS, "h100", small), small, load(), Targets())
    assert found.engine.degree == 1


@pytest.mark.parametrize(
    ("gpu", "model", "workload", "targets", "complaint"),
    [
        ("h100", "llama-3.1-405b", load(), Targets(), "takes 812 GB and the cache .* 8 x h100"),
        ("l40s", "llama-3.1-70b", load(), Targets(itl_s=0.01), "raise --itl-ms"),
        ("a100", "llama-3.1-70b", load(prompt=60_000, output=4_000), Targets(), "raise --ttft-ms"),
        ("h200", "mistral-7b-v0.3", load(prompt=40_000), Targets(), "do not fit the context"),
        ("cpu", "llama-3.1-8b", load(), Targets(), "hold up to 150M"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    gpu: str, model: str, workload: Workload, targets: Targets, complaint: str
) -> None:
    shape = load_model(model)
    kind = accelerator(COEFFICIENTS, gpu, shape)
    with pytest.raises(ConfigurationError, match=complaint):
        choose(COEFFICIENTS, kind, shape, workload, targets)


def test_a_degree_that_the_heads_do_not_share_is_refused() -> None:
    model = load_model("qwen2.5-7b")
    kind = accelerator(COEFFICIENTS, "h100", model)
    with pytest.raises(ConfigurationError, match="can be spread over 1, 2, 4"):
        choose(COEFFICIENTS, kind, model, load(), Targets(), degree=8)
