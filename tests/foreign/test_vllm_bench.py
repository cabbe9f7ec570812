"""`vllm bench serve`, vLLM's own load generator, against the gateway with a real engine behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Weights
from tests.integration.conftest import Gateways, Served

from .conftest import Gateway

pytestmark = [pytest.mark.kafka, pytest.mark.vllm, pytest.mark.slow]

# The command `vllm` asks for the metadata of a package that the CPU build calls otherwise.
BENCH = (
    "import argparse; from vllm.benchmarks import serve; parser = argparse.ArgumentParser(); "
    "serve.add_cli_args(parser); serve.main(parser.parse_args())"
)
REQUESTS = 48
TOKENS = 24


@pytest.fixture(scope="module")
def engine_gateway(served: Served) -> Iterator[Gateway]:
    gateways = Gateways(served.kafka, served.home)
    try:
        url, _ = gateways.start()
        yield Gateway(url=url, key=gateways.key("acme", "caller"))
    finally:
        gateways.close()


@pytest.mark.parametrize(
    ("backend", "path"),
    [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")],
)
def test_its_load_has_no_failure(
    engine_gateway: Gateway, weights: Weights, tmp_path: Path, backend: str, path: str
) -> None:
    results = tmp_path / "results.json"
    key = f"Authorization=Bearer {engine_gateway.key}"
    done = subprocess.run(
        [
            *(sys.executable, "-c", BENCH, "--backend", backend),
            *("--base-url", engine_gateway.url, "--endpoint", path, "--model", "default"),
            *("--tokenizer", str(weights.first), "--dataset-name", "random"),
            *("--random-input-len", "16", "--random-output-len", str(TOKENS)),
            *("--num-prompts", str(REQUESTS), "--max-concurrency", "8", "--ignore-eos"),
            # It takes an event only if that begins with its data.
            *("--header", key, "Feedloom-Event-Ids=off"),
            *("--save-result", "--result-filename", str(results)),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())
    assert (found["completed"], found["failed"]) == (REQUESTS, 0)
    assert found["total_output_tokens"] == REQUESTS * TOKENS
