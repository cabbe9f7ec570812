"""Pretraining in two processes is that in one; and no process is left, however it ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from safetensors.torch import load_file

from infra.contracts.errors import ConfigurationError
from infra.local.supervisor import feedloom_command
from tests.conftest import ROOT
from tests.integration.pretraining_ranks import CHECKPOINT
from trainer.distributed import RankFailed, launch
from trainer.pile import PileMeta, PileRow, write_shards
from trainer.pretraining import pretrain
from trainer.rank import pretrain_in
from trainer.recipe import Recipe, changed
from trainer.run import Run, load_scores

pytestmark = [pytest.mark.slow]

RECIPE = Recipe(
    max_steps=8,
    warmup_steps=1,
    learning_rate=1e-2,
    logging_steps=1,
    save_steps=4,
    per_device_train_batch_size=2,
)
ALONE = changed(RECIPE, {"per_device_train_batch_size": 4})
SHARDED = changed(RECIPE, {"fsdp": True})
TOLERANCE = 5e-6
"""Of losses near 5. The same sums in another order: a float32 holds 5 to 5e-7, and a step adds up
124 labels, in two parts or in one. One label more or less in a mean shifts it by 1e-3 or more."""
DEADLINE_S = 120


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of very different lengths, so that batches differ in their counted labels."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(1)

    def rows(count: int) -> list[PileRow]:
        said = ["one two three.", "four five six."]
        return [
            PileRow(
                text=" ".join(draw.choice(said) for _ in range(draw.randrange(1, 9))),
                meta=PileMeta(pile_set_name=draw.choice(["Github", "ArXiv"])),
            )
            for _ in range(count)
        ]

    write_shards(folder / "train", rows(30))
    write_shards(folder / "heldout", rows(20))
    return folder


def run_of(data: Path, out: Path, recipe: Recipe, arch: str = "llama") -> Run:
    return Run(
        arch=arch,
        data=data,
        out=out,
        recipe=recipe,
        vocabulary=300,
        context=32,
        width=16,
        layers=1,
        heads=2,
    )


def losses(run: Run) -> list[float]:
    """Of every step and of the evaluation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.out / "logs"))
    events.Reload()
    steps = {scalar.step: scalar.value for scalar in events.Scalars("train/loss")}
    assert sorted(steps) == list(range(1, 9))
    return [*(steps[step] for step in range(1, 9)), load_scores(run.out).eval_loss]


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Those of two ranks, which fail once all have ended well."""
    out = tmp_path_factory.mktemp("runs")
    halved = changed(RECIPE, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2})
    checkpointed = changed(SHARDED, {"fsdp_config": {"activation_checkpointing": True}})
    recipes = {
        "two": RECIPE,
        "two-accumulating": halved,
        "broken-off": RECIPE,
        "broken-off-shards": SHARDED,
        "checkpointed-shards": checkpointed,
    }
    found = {name: run_of(data, out / name, recipe) for name, recipe in recipes.items()}
    found["two-rnn"] = run_of(data, out / "two-rnn", halved, "rnn")
    argument = msgspec.json.encode(list(found.values()), enc_hook=str).decode()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(RankFailed) as failure:
            launch("tests.integration.pretraining_ranks", argument, 2)
    assert "rank 1 of 2 failed: RuntimeError: on purpose" in str(failure.value), failure.value
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
    return found


def test_losses_in_two_processes_are_those_in_one(
    data: Path, tmp_path: Path, runs: dict[str, Run]
) -> None:
    alone = run_of(data, tmp_path / "one", ALONE)
    pretrain(alone)
    assert load_scores(alone.out).epoch > 1
    whole = load_file(alone.out / "model.safetensors")
    for name, run in runs.items():
        if run.arch == "llama":
            assert losses(run) == pytest.approx(losses(alone), abs=TOLERANCE), name
            weights = load_file(run.out / "model.safetensors")
            assert weights.keys() == whole.keys()
            for key, weight in weights.items():
                assert torch.allclose(weight, whole[key], atol=1e-4), (name, key)
            assert not (run.out / "checkpoints").exists()


def test_a_label_counts_alike_for_a_model_whose_loss_is_a_mean_by_batch(
    data: Path, tmp_path: Path, runs: dict[str, Run]
) -> None:
    alone = run_of(data, tmp_path / "one", ALONE, "rnn")
    pretrain(alone)
    assert losses(runs["two-rnn"]) == pytest.approx(losses(alone), abs=TOLERANCE)


def test_fsdp_shards_and_goes_on_from_its_own_checkpoint(runs: dict[str, Run]) -> None:
    plain = json.loads((runs["broken-off"].out / CHECKPOINT).read_text())
    shards = json.loads((runs["broken-off-shards"].out / CHECKPOINT).read_text())
    assert not any("fsdp" in name for name in plain)
    assert any("fsdp" in name for name in shards), shards


Start = Callable[[Path, Path], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts runs without end, and ends those that a test left.

    A suite in the background of a shell ignores Ctrl-C, and what it starts would inherit that; what
    is handled here is not ignored there.
    """
    started: list[subprocess.Popen[str]] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def one(data: Path, out: Path) -> subprocess.Popen[str]:
        started.append(endless(data, out))
        return started[-1]

    try:
        yield one
    finally:
        signal.signal(signal.SIGINT, before)
        for process in started:
            process.kill()  # its ranks are tied to its life
            process.communicate()


def endless(data: Path, out: Path) -> subprocess.Popen[str]:
    """``feedloom trainer pretrain`` without end."""
    command = ["trainer", "pretrain", "--data", str(data), "--out", str(out), "--processes", "2"]
    sizes = {"vocabulary": 300, "context": 32, "width": 16, "layers": 1, "heads": 2}
    recipe = {"max-steps": 10**6, "save-steps": 2, "per-device-train-batch-size": 2}
    for name, value in (sizes | recipe).items():
        command += [f"--{name}", str(value)]
    return subprocess.Popen(
        feedloom_command(command),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    """The first is rank 0; waits until they are there."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert parent.poll() is None, parent.communicate()[1]
        found = [
            process
            for process in psutil.Process(parent.pid).children()
            if "trainer.rank" in process.cmdline() and "infra.tether" not in process.cmdline()
        ]
        if len(found) == 2:
            return sorted(found, key=lambda process: int(process.environ()["RANK"]))
        time.sleep(0.05)
    raise AssertionError("the ranks did not start")


def test_a_rank_that_is_killed_ends_the_run_and_is_named(
    data: Path, tmp_path: Path, start: Start
) -> None:
    parent = start(data, tmp_path)
    ranks = ranks_of(parent)
    deadline = time.monotonic() + DEADLINE_S
    while not list(tmp_path.glob("checkpoints/checkpoint-*")):
        assert parent.poll() is None, parent.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.05)
    ranks[1].kill()
    _, said = parent.communicate(timeout=DEADLINE_S)
    assert parent.returncode == 1
    assert "feedloom: rank 1 of 2 was killed by SIGKILL" in said
    assert psutil.wait_procs(ranks, timeout=0)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_ranks_end_with_who_started_them(
    data: Path, tmp_path: Path, start: Start, number: int
) -> None:
    parent = start(data, tmp_path)
    ranks = ranks_of(parent)
    parent.send_signal(number)
    _, said = parent.communicate(timeout=DEADLINE_S)
    assert parent.returncode == (1 if number == signal.SIGINT else -number), said
    assert "Traceback" not in said
    assert psutil.wait_procs(ranks, timeout=DEADLINE_S)[1] == []


def test_no_process_starts_another_set(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigurationError, match="leave out --processes"):
        pretrain_in(2, run_of(data, tmp_path, RECIPE))
