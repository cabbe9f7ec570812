"""A pretraining run in several processes of this machine: who starts them, and what each does.

``python -m trainer.rank ORDER`` is one of them.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import msgspec
from rich.progress import BarColumn, TimeElapsedColumn, TimeRemainingColumn

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.cores import available
from infra.settings import load_settings
from observability.setup import configure_telemetry
from trainer.progress import bar
from trainer.run import Run, Scores, load_scores


@dataclass(frozen=True, kw_only=True)
class _Order:
    """``quiet``: no progress bar."""

    run: Run
    quiet: bool


def pretrain_in(processes: int, run: Run, *, quiet: bool = False) -> Scores:
    """``pretraining.pretrain`` in so many processes of this machine. ``quiet``: no progress bar.

    Raises:
        ConfigurationError: this is such a process already, or there are fewer GPUs.
        RankFailed: whatever ``pretrain`` raises in one of them; none of them is left.
    """
    from trainer.distributed import launch, started_by_launcher

    if started_by_launcher():
        raise ConfigurationError("torchrun has started the processes: leave out --processes")
    order = msgspec.json.encode(_Order(run=run, quiet=quiet), enc_hook=str).decode()
    launch("trainer.rank", order, processes)
    return load_scores(run.out)


def main(argument: str) -> int:
    """This rank's share. An error is left in the file that the launcher named."""
    share = len(available()) // int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))  # torch looks when imported
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from trainer.distributed import FORESEEN, set_output_aside
    from trainer.pretraining import pretrain

    order = msgspec.json.decode(argument, type=_Order, dec_hook=lambda kind, value: kind(value))
    errors = get_error_handler()
    errors.initialize()
    if os.environ["RANK"] != "0":
        set_output_aside()
    columns = (BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with (
            configure_telemetry("feedloom-trainer", load_settings().telemetry),
            bar(*columns, quiet=order.quiet or os.environ["RANK"] != "0") as say,
        ):
            pretrain(order.run, say)
    except FeedloomError as error:
        errors.record_exception(error)
        return FORESEEN
    except Exception as error:
        errors.record_exception(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
