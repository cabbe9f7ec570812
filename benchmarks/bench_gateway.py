"""The platform's HTTP interface beside `vllm serve`, under the same client load.

Measured as in `bench_http_peer`, with the same sides of `vllm serve`; the platform's side is a
gateway process, which takes an API key, in front of Kafka and a worker. All sides get the same
calls over HTTP from the same client, aiohttp with server-sent events decoded by msgspec. While one
side is loaded the others' processes are stopped. Every answer must be whole.

Then a load generator that is not ours, `vllm bench serve`, sends 500 chat requests, 64 at a time,
to the gateway; none may fail. It reads an event only if that begins with its data, so it asks the
gateway to leave the events' ids out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.bench_http_peer import compare
from benchmarks.gateway_side import Gateway
from benchmarks.harness import Broken, Report, Target, command
from benchmarks.models import embedded_model
from benchmarks.processes import thaw
from benchmarks.stage import Stage

FOREIGN_REQUESTS = 500
FOREIGN_CONCURRENCY = 64
FOREIGN_LIMIT_S = 600
FOREIGN = (
    "import argparse; from vllm.benchmarks import serve; parser = argparse.ArgumentParser(); "
    "serve.add_cli_args(parser); serve.main(parser.parse_args())"
)
"""`vllm bench serve`. The `vllm` command itself asks for the metadata of a package of that name,
which the CPU build does not have, and ends."""


def measure(report: Report) -> None:
    """See the module."""
    model = embedded_model()
    with Stage() as stage:
        place = stage.deployment("gateway")
        place.publish_model(model)
        report.say("starting the gateway, its worker and the servers")
        gateway = Gateway(place)
        gateway.freeze()
        compare(report, stage, model, "gateway", gateway)
        report.say(f"vllm bench serve: {FOREIGN_REQUESTS} requests")
        failed = foreign(gateway, model, stage.home / "foreign.json")
        report.ratio(
            f"vllm bench serve: failed of {FOREIGN_REQUESTS}", float(failed), Target("<=", 0.0)
        )


def foreign(gateway: Gateway, model: Path, results: Path) -> int:
    """How many requests of vLLM's own load generator failed."""
    for child in (gateway.worker, gateway.child):
        thaw(child.pid)
    gateway.await_ready()
    done = subprocess.run(
        [
            *(sys.executable, "-c", FOREIGN, "--backend", "openai-chat"),
            *("--base-url", gateway.url, "--endpoint", "/v1/chat/completions"),
            *("--model", "default", "--tokenizer", str(model)),
            *("--dataset-name", "random", "--random-input-len", "24"),
            *("--random-output-len", "48", "--num-prompts", str(FOREIGN_REQUESTS)),
            *("--max-concurrency", str(FOREIGN_CONCURRENCY)),
            *("--header", f"Authorization=Bearer {gateway.key}", "Feedloom-Event-Ids=off"),
            *("--save-result", "--result-filename", str(results)),
        ],
        capture_output=True,
        text=True,
        timeout=FOREIGN_LIMIT_S,
        check=False,
    )
    if done.returncode != 0 or not results.is_file():
        raise Broken(f"vllm bench serve ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(results.read_text())
    return FOREIGN_REQUESTS - int(found["completed"])


main = command(measure, name="bench_gateway", description=__doc__)

if __name__ == "__main__":
    main()
