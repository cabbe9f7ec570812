"""vLLM's own server as a side: streaming completions over HTTP, on aiohttp."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from benchmarks.harness import Broken
from benchmarks.load import Job, Window
from benchmarks.processes import family, thaw
from benchmarks.stage import START_TIMEOUT_S, Stage
from benchmarks.turns import KV_CACHE_GB, WORKER_SETTINGS, drive, freeze_idle
from infra.cores import available, divide, share
from infra.local.supervisor import Child

_DATA = b"data: "
_END = b"[DONE]"


class _Choice(msgspec.Struct):
    text: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []


_DECODER = msgspec.json.Decoder(_Event)

VLLM_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
TUNED_ARGUMENTS = ("--distributed-executor-backend", "uni", "--block-size", "32")


def tuned_environment() -> dict[str, str]:
    """As ``stream_workers.vllm_options`` sets it."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(len(share(available()).engine)),
    }


def engine_dtype() -> str:
    """What the worker's engine computes in on this machine (``stream_workers.engine_vllm``)."""
    import torch

    return "auto" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"


class HttpSide:
    """Implements ``load.Side``. Deltas do not say how many tokens they hold."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def stream(self, job: Job) -> AsyncIterator[int]:
        """0 for each event with a choice: its share of the answer is worked out afterwards."""
        body = {
            "model": "default",
            "prompt": job.prompt,
            "max_tokens": job.max_tokens,
            "temperature": 0.7,
            "ignore_eos": True,
            "stream": True,
        }
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise Broken(f"HTTP {response.status}: {(await response.text())[:300]}")
            async for line in response.content:
                if not line.startswith(_DATA):
                    continue
                data = line[len(_DATA) :].strip()
                if data == _END:
                    return
                if _DECODER.decode(data).choices:
                    yield 0
        raise Broken("a stream ended without its end mark")


def over_http(
    base: str, load: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Window:
    """Apply a load to the server at ``base``."""

    async def run() -> Window:
        # The server closes a connection that has been idle for 5 s: use none that is about to.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            return await drive(load)(HttpSide(session, f"{base}/v1/completions"))

    return asyncio.run(run())


def free_port() -> int:
    """A port of loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def await_answer(url: str, child: Child, *, timeout_s: float) -> None:
    """Until the server that ``child`` is answers with 200. Raises Broken, ChildStopped."""
    deadline = time.monotonic() + timeout_s
    while True:
        child.check()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise Broken(f"{child.name} does not answer:\n{child.log_tail()}") from None
        time.sleep(0.5)


class VllmServe:
    """``vllm serve`` as a child; implements ``turns.Contestant``.

    ``tuned``: its engine in one process, on cores of its own, with the worker's block size.
    """

    def __init__(self, stage: Stage, model: Path, *, tuned: bool) -> None:
        port = free_port()
        self._stage = stage
        self._base = f"http://127.0.0.1:{port}"
        self.child = stage.start(
            "vllm-serve-tuned" if tuned else "vllm-serve",
            [
                # The same server. The `vllm` command asks for the metadata of a package of that
                # name, which the CPU build does not have, and ends.
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(model)),
                *("--served-model-name", "default"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--max-num-seqs", str(WORKER_SETTINGS["max_num_seqs"])),
                *("--kv-cache-memory-bytes", str(int(KV_CACHE_GB * 1024**3))),
                *("--enforce-eager", "--dtype", engine_dtype()),
                *(TUNED_ARGUMENTS if tuned else ()),
                "--disable-log-stats",
                "--disable-uvicorn-access-log",
            ],
            {
                **VLLM_ENVIRONMENT,
                **(tuned_environment() if tuned else {}),
            },
        )
        await_answer(f"{self._base}/health", self.child, timeout_s=START_TIMEOUT_S)
        if tuned:
            server, *engine = family(self.child.pid)
            divide(engine=[process.pid for process in engine], others=[server.pid])
        freeze_idle(self.child)

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        thaw(self.child.pid)
        try:
            self.child.check()
            return asdict(over_http(self._base, load))
        finally:
            freeze_idle(self.child)

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return self.child.log_tail()

    def close(self) -> None:
        """Stop the server."""
        self._stage.stop(self.child, 5.0)
