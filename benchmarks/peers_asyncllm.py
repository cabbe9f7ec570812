"""AsyncLLM with its caller in the same process, and nothing in between: a side of bench_peers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any

import click
import uvloop

from benchmarks.load import Job, closed_loop
from benchmarks.peers_engine import build, stream
from benchmarks.rpc import keep_stdout, serve


class Bare:
    """Implements ``load.Side``."""

    def __init__(self, model: str) -> None:
        self._engine = build(model)
        self._count = 0

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """Tokens of each delta."""
        self._count += 1
        deltas = stream(self._engine, f"r{self._count}", job.prompt, job.max_tokens)
        async for _, tokens, _ in deltas:
            yield tokens


async def _run(model: str) -> None:
    side = Bare(model)

    async def handle(command: Mapping[str, Any]) -> Any:
        return asdict(await closed_loop(side, **command))

    await serve(handle)


@click.command()
@click.argument("model")
def main(model: str) -> None:
    """Answer load commands until the input ends."""
    keep_stdout()
    uvloop.run(_run(model))


if __name__ == "__main__":
    main()
