"""One run in several processes: joining the others, and starting them all on one machine.

The processes are torchrun's: its agent starts and watches them here, and ``torchrun`` or
``accelerate launch`` may start them as well. Knows nothing of what they train.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from infra.contracts.errors import ConfigurationError, FatalError
from infra.tether import tethered

STEP_TIMEOUT = timedelta(minutes=30)
"""Longest that a rank waits for the others within a step."""
PREPARATION_TIMEOUT = timedelta(days=2)
"""Longest that ranks wait for what one does alone: tokens of all text, evaluation. A rank that
ends is noticed at once, whatever this is."""
SHUTDOWN_TIMEOUT_S = 10
AGENT_LOGS = ("multiprocessing.api", "agent.server.api", "agent.server.local_elastic_agent")
"""Say of a failure what RankFailed says."""
OUTPUT = "output.log"
FORESEEN = 3
"""Exit status of a rank whose error needs no traceback."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""That the agent passes on to the ranks. Not Ctrl-C, of which each would write a traceback."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""In what a rank says when another has gone: never the first cause."""


class RankFailed(FatalError):
    """A rank ended before its work was done. The message says which, and of what."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of one run, and which of them this is."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Prepares, evaluates and writes for all."""
        return self.rank == 0

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            distributed.barrier(group=self.group)


def started_by_launcher() -> bool:
    """Whether torchrun, or who sets the environment as it does, started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


@contextmanager
def joined() -> Iterator[Ranks]:
    """This process among those that its launcher started; alone without one.

    Raises ConfigurationError when there are more ranks than GPUs.
    """
    if not started_by_launcher():
        yield Ranks()
        return
    begun = not distributed.is_initialized()
    if begun:
        if torch.cuda.is_available():
            torch.cuda.set_device(_gpu(int(os.environ.get("LOCAL_RANK", "0"))))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=STEP_TIMEOUT)
    yield Ranks(
        rank=distributed.get_rank(),
        size=distributed.get_world_size(),
        group=distributed.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT),
    )
    # Not after an error: NCCL would wait here for ranks that are waiting for this one.
    if begun:
        distributed.destroy_process_group()


def _gpu(local_rank: int) -> int:
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ConfigurationError(f"there are {count} GPUs; start as many processes at most")
    return local_rank


def set_output_aside() -> None:
    """For the launcher to quote, should this rank be killed.

    The agent can do it as well, and leaves the files open in its own process.
    """
    log = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).with_name(OUTPUT)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)


def launch(module: str, argument: str, processes: int) -> None:
    """Run ``python -m MODULE ARGUMENT`` in ``processes`` ranks. Returns once all ended well.

    However it ends, none is left: the agent ends the others of a rank that fails, and all on a
    signal; the kernel ends them when this process is killed. To be called in the main thread.

    Raises:
        ConfigurationError: there are fewer GPUs.
        RankFailed: a rank failed or was killed.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM, SIGHUP, SIGQUIT.
    """
    if torch.cuda.is_available():
        _gpu(processes - 1)
    for name in AGENT_LOGS:
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory(prefix="feedloom-ranks-") as logs,
        _handlers_restored(),
    ):
        command = tethered([sys.executable, "-m", module, argument])
        try:
            elastic_launch(_config(Path(logs), processes), command[0])(*command[1:])
        except ChildFailedError as error:
            raise RankFailed(_described(error, Path(logs), processes)) from None
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None


def _config(logs: Path, processes: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in SIGNALS),
        shutdown_timeout=SHUTDOWN_TIMEOUT_S,
        logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
    )


@contextmanager
def _handlers_restored() -> Iterator[None]:
    """The agent sets signal handlers and leaves them there."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _described(error: ChildFailedError, logs: Path, processes: int) -> str:
    rank, failure = min(error.failures.items(), key=lambda one: _lateness(one[1]))
    message, trace = _recorded(failure)
    if failure.exitcode < 0:
        reason = f"was killed by {failure.signal_name()}"
        if failure.exitcode == -signal.SIGKILL:
            reason += ", as the kernel does when memory runs out"
        trace = next((log.read_text() for log in logs.glob(f"*/attempt_0/{rank}/{OUTPUT}")), "")
    else:
        reason = f"failed: {message or f'exit status {failure.exitcode}'}"
    lines = [] if failure.exitcode == FORESEEN else trace.splitlines()[-8:]
    return "\n".join([f"rank {rank} of {processes} {reason}", *lines])


def _lateness(failure: ProcessFailure) -> tuple[int, int]:
    """The cause before its consequences.

    Those are ranks that missed another, then ranks that the agent ended.
    """
    if failure.exitcode < 0:
        return (2 if failure.exitcode == -signal.SIGTERM else 0), failure.timestamp
    message, _trace = _recorded(failure)
    return int(any(words in message for words in LOST)), failure.timestamp


def _recorded(failure: ProcessFailure) -> tuple[str, str]:
    """What a rank recorded of its error, and the traceback."""
    found: Any = failure.error_file_data.get("message")
    if not isinstance(found, dict):
        return "", ""
    return str(found.get("message", "")), str(found.get("extraInfo", {}).get("py_callstack", ""))
