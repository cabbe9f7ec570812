"""One of the ranks that ``test_trainer_distributed`` starts: several runs, since imports take long.

After them rank 1 fails, and rank 0 waits for it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from torch.distributed.elastic.multiprocessing.errors import record

from trainer.distributed import joined
from trainer.pretraining import pretrain
from trainer.run import Run

BROKEN_OFF = 5
CHECKPOINT = "checkpoint.json"


class BrokenOff(Exception):
    """Stands for whatever ends a run in its middle."""


def _break_off(what: str, done: float, total: float) -> None:
    if what.startswith("training") and done >= BROKEN_OFF:
        raise BrokenOff


def _in_two_parts(run: Run) -> None:
    try:
        pretrain(run, _break_off)
    except BrokenOff:
        (checkpoint,) = (run.out / "checkpoints").glob("checkpoint-4")
        (run.out / CHECKPOINT).write_text(json.dumps(sorted(os.listdir(checkpoint))))
    pretrain(run)


@record
def main(runs: list[Run]) -> None:
    with joined() as ranks:
        for run in runs:
            (_in_two_parts if run.out.name.startswith("broken") else pretrain)(run)
        if ranks.rank == 1:
            raise RuntimeError("on purpose")
        ranks.wait()


def _path(kind: Any, value: str) -> Any:
    return Path(value)


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=list[Run], dec_hook=_path))
