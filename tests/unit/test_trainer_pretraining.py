"""Families, their objectives, the recipe, and a tiny run of each through the same command."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from trainer.architectures import ARCHITECTURES, Shape, architecture
from trainer.baselines import LstmLanguageModel, NgramModel
from trainer.commands import trainer
from trainer.evaluation import evaluate, perplexity
from trainer.neural import WholeSteps, check_recipe, training_arguments
from trainer.objectives import (
    MaskedCollator,
    PiecesCollator,
    SpanCorruptionCollator,
    noise_mask,
    pieces,
    stacked,
)
from trainer.packing import IGNORED, Block, document, fill
from trainer.pile import PileMeta, PileRow, write_shards
from trainer.pretrain_command import ARCHITECTURES as OFFERED
from trainer.pretraining import pretrain
from trainer.recipe import Recipe, changed, read_recipe
from trainer.run import Run
from trainer.training import TrainingDiverged

SHAPE = Shape(vocabulary=60, end=0, padding=1, context=32, width=16, layers=2, heads=2)
CAUSAL = [name for name, one in ARCHITECTURES.items() if one.objective == "causal"]
TINY = Recipe(
    max_steps=6, per_device_train_batch_size=4, warmup_steps=1, learning_rate=1e-2, save_steps=2
)


def blocks_of(*lengths: int, size: int = 32) -> list[Block]:
    draw = random.Random(sum(lengths))
    return list(fill((document([draw.randrange(2, 60) for _ in range(n)]) for n in lengths), size))


# Objectives.


@pytest.mark.parametrize("name", CAUSAL)
def test_what_shares_a_row_is_not_seen_by_its_neighbours(name: str) -> None:
    torch.manual_seed(0)
    model = architecture(name).build(SHAPE).eval()
    blocks = blocks_of(10, 15, 30, 9)
    assert sum(len(pieces(block)) for block in blocks) == 5
    with torch.inference_mode():
        packed = model(**stacked(blocks), use_cache=False).loss
        apart = model(**PiecesCollator(SHAPE.padding)(blocks)).loss
    assert float(packed) == pytest.approx(float(apart), abs=1e-5)


@given(length=st.integers(2, 300), limit=st.integers(1, 100), seed=st.integers(0, 2**16))
def test_spans_are_taken_out_as_many_as_there_are_names_for(
    length: int, limit: int, seed: int
) -> None:
    torch.manual_seed(seed)
    mask = noise_mask(length, limit=limit)
    assert len(mask) == length
    assert not mask[0]
    assert mask[-1]
    assert 0 < sum(mask) < length
    assert abs(sum(mask) - 0.15 * length) <= 1
    spans = sum(taken and not before for before, taken in itertools.pairwise(mask))
    assert 1 <= spans <= limit


@given(seed=st.integers(0, 2**16), length=st.integers(2, 64))
def test_a_corrupted_text_and_what_is_told_make_the_text(seed: int, length: int) -> None:
    torch.manual_seed(seed)
    (block,) = blocks_of(length, size=length)
    sentinels = list(range(60, 160))
    batch = SpanCorruptionCollator(sentinels=sentinels, end=0, padding=1)([block])
    seen, told = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    assert seen.pop() == told.pop() == 0
    spans: dict[int, list[int]] = {}
    for token in told:
        if token in sentinels:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    text = [one for token in seen for one in spans.get(token, [token])]
    assert text == list(block.tokens)
    assert list(spans) == sentinels[: len(spans)]


def test_a_mask_hides_a_sixth_of_the_tokens_and_asks_for_those_alone() -> None:
    torch.manual_seed(3)
    blocks = blocks_of(*[64] * 40, size=64)
    batch = MaskedCollator(mask=60, padding=1, vocabulary=60)(blocks)
    told = batch["labels"] != IGNORED
    original = torch.tensor([block.tokens for block in blocks])
    assert torch.equal(batch["labels"][told], original[told])
    assert torch.equal(batch["input_ids"][~told], original[~told])
    share = told.float().mean()
    assert 0.13 < share < 0.17
    assert 0.75 < (batch["input_ids"][told] == 60).float().mean() < 0.85
    (short,) = blocks_of(2, size=2)
    assert (MaskedCollator(mask=60, padding=1, vocabulary=60)([short])["labels"] >= 0).any()


def test_evaluation_keeps_apart_what_shares_a_row_of_a_model_as_it_is_loaded() -> None:
    torch.manual_seed(0)
    model = architecture("llama").build(SHAPE)
    assert model.config.use_cache

    class Letters:
        @staticmethod
        def decode(tokens: list[int], *, skip_special_tokens: bool) -> str:
            return "a" * len(tokens)

    blocks = blocks_of(10, 15, 30, 9)
    score = evaluate(model, Letters(), blocks)
    with torch.inference_mode():
        apart = model(**PiecesCollator(SHAPE.padding)(blocks)).loss
    assert score.loss == pytest.approx(float(apart), abs=1e-5)


# The classical baselines.


@given(
    texts=st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6),
    context=st.lists(st.integers(0, 4), max_size=4),
    order=st.integers(1, 4),
)
def test_an_ngram_model_gives_a_whole_distribution(
    texts: list[list[int]], context: list[int], order: int
) -> None:
    model = NgramModel(order=order, vocabulary=5)
    model.learn(texts)
    assert sum(model.probability(context, token) for token in range(5)) == pytest.approx(1.0)


def test_an_ngram_model_learns_what_follows_and_is_the_same_after_a_file(tmp_path: Path) -> None:
    model = NgramModel(order=3, vocabulary=50)
    model.learn([[1, 2, 3, 1, 2, 3, 1, 2, 3]] * 5)
    assert model.probability([1, 2], 3) > 0.8
    assert model.nats([1, 2, 3, 1]) < 3 * math.log(50)
    model.save(tmp_path)
    again = NgramModel.load(tmp_path)
    for context in ([1, 2], [2, 1], [], [7, 7]):
        for token in range(50):
            assert again.probability(context, token) == model.probability(context, token)
    with pytest.raises(ValueError, match="at least one token"):
        NgramModel(order=0, vocabulary=5)


def test_padding_says_nothing_to_the_recurrent_model() -> None:
    torch.manual_seed(0)
    model = LstmLanguageModel(vocabulary=60, width=16, layers=2)
    together = PiecesCollator(1)(blocks_of(5, 27))
    rows = [piece[None] for block in blocks_of(5, 27) for piece in pieces(block)]
    with torch.inference_mode():
        loss = model(**together)["loss"]
        alone = [(float(model(row, labels=row)["loss"]), row.shape[1] - 1) for row in rows]
    mean = sum(one * count for one, count in alone) / sum(count for _, count in alone)
    assert float(loss) == pytest.approx(mean, abs=1e-5)


# The recipe.


def test_a_file_sets_names_and_the_command_line_comes_before_it(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("num_train_epochs: 3\nwarmup_steps: 7\nbf16: true\nlogging_dir: runs\n")
    recipe = read_recipe(path)
    assert (recipe.num_train_epochs, recipe.warmup_steps, recipe.bf16) == (3.0, 7, True)
    assert changed(recipe, {"warmup_steps": 9}).warmup_steps == 9
    assert changed(recipe, {}) == recipe
    (tmp_path / "empty.yaml").write_text("")
    assert read_recipe(tmp_path / "empty.yaml") == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("warm_up: 3", "unknown field `warm_up`"),
        ("save_total_limit: 0", "save_total_limit"),
        ("fp16: perhaps", "fp16"),
        ("lr_scheduler_type: steps", "lr_scheduler_type"),
        ("- 3", "Expected `object`"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_recipe(path)


def test_perplexity_is_finite_whatever_the_loss() -> None:
    assert perplexity(math.log(40)) == pytest.approx(40)
    assert math.isfinite(perplexity(1e6))


# Whole runs.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of two sets that a model of any size learns at once."""
    folder = tmp_path_factory.mktemp("data")
    draw = random.Random(1)

    def rows(count: int) -> list[PileRow]:
        return [
            PileRow(
                text=" ".join(draw.choice(["one two three.", "four five six."]) for _ in range(12)),
                meta=PileMeta(pile_set_name=draw.choice(["Github", "ArXiv"])),
            )
            for _ in range(count)
        ]

    write_shards(folder / "train", rows(120))
    write_shards(folder / "heldout", rows(20))
    return folder


def run_of(data: Path, out: Path, arch: str, recipe: Recipe = TINY) -> Run:
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


@pytest.mark.parametrize("arch", OFFERED)
def test_every_family_trains_and_is_scored_through_the_same_command(
    data: Path, tmp_path: Path, arch: str
) -> None:
    arguments = ["pretrain", "--arch", arch, "--data", str(data), "--out", str(tmp_path)]
    arguments += [
        "--vocabulary",
        "300",
        "--context",
        "32",
        "--width",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
    ]
    arguments += ["--max-steps", "6", "--per-device-train-batch-size", "4", "--warmup-steps", "1"]
    arguments += ["--learning-rate", "0.01", "--weight-decay", "0.1", "--save-total-limit", "1"]
    result = CliRunner().invoke(trainer, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "pretraining.json").read_text())
    assert math.isfinite(scores["eval_loss"])
    assert scores["eval_perplexity"] == pytest.approx(math.exp(scores["eval_loss"]))
    assert scores["eval_tokens"] > 0
    if arch in CAUSAL:
        assert json.loads((tmp_path / "config.json").read_text())["use_cache"]
    assert scores["peak_memory_mb"] > 0
    if arch in ("t5", "bert", "roberta"):
        assert scores["bits_per_byte"] == {}
    else:
        assert set(scores["bits_per_byte"]) == {"Github", "ArXiv"}
        assert scores["eval_loss"] < math.log(300)  # better than no idea
    if arch != "ngram":
        assert scores["global_step"] == 6
        assert (tmp_path / "model.safetensors").is_file()
        assert list((tmp_path / "logs").iterdir())
    assert not (tmp_path / "checkpoints").exists()
    assert "eval_perplexity" in result.output
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Held-out perplexity" in page
    assert ("Learning rate" in page) == (arch != "ngram")


def test_a_run_measures_its_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, list[tuple[float, dict[str, str]]]] = {"steps": [], "tokens": [], "loss": []}

    def note(name: str) -> Any:
        def take(value: float, attributes: dict[str, str]) -> None:
            counted[name].append((value, attributes))

        return SimpleNamespace(add=take, set=take)

    for instrument, name in (
        ("TRAINING_STEPS", "steps"),
        ("TRAINED_TOKENS", "tokens"),
        ("STEP_LOSS", "loss"),
    ):
        monkeypatch.setattr(f"trainer.neural.{instrument}", note(name))
    pretrain(run_of(data, tmp_path, "gpt2", changed(TINY, {"logging_steps": 2})))
    assert sum(value for value, _ in counted["steps"]) == 6
    assert sum(value for value, _ in counted["tokens"]) == 6 * 4 * 32
    assert counted["steps"][0][1] == {"feedloom.architecture": "gpt2"}
    assert all(math.isfinite(value) for value, _ in counted["loss"])


def test_a_run_that_was_broken_off_goes_on_from_its_checkpoint_to_the_same_weights(
    data: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    pretrain(run_of(data, tmp_path / "whole", "llama"))

    class Killed(Exception):
        pass

    def kill(what: str, done: float, total: float) -> None:
        if what.startswith("training") and done >= 5:
            raise Killed

    recipe = changed(TINY, {"logging_steps": 1})
    with pytest.raises(Killed):
        pretrain(run_of(data, tmp_path / "broken", "llama", recipe), kill)
    assert (tmp_path / "broken" / "checkpoints" / "checkpoint-4").is_dir()
    scores = pretrain(run_of(data, tmp_path / "broken", "llama", recipe))
    assert scores.global_step == 6
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    broken = load_file(tmp_path / "broken" / "model.safetensors")
    assert all(torch.allclose(whole[name], broken[name], atol=1e-6) for name in whole)


def test_gathered_gradients_are_those_of_a_larger_batch(data: Path, tmp_path: Path) -> None:
    """Losses of 5 to 5e-6: the same float32 sums in another order."""
    from safetensors.torch import load_file

    changes: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 8, "gradient_checkpointing": True},
    ]
    scores, weights = [], []
    for number, change in enumerate(changes):
        out = tmp_path / str(number)
        recipe = changed(TINY, {"max_steps": 3, **change})
        scores.append(pretrain(run_of(data, out, "llama", recipe)))
        weights.append(load_file(out / "model.safetensors"))
    for other, score in zip(weights[1:], scores[1:], strict=True):
        assert score.train_loss == pytest.approx(scores[0].train_loss, abs=5e-6)
        assert score.eval_loss == pytest.approx(scores[0].eval_loss, abs=5e-6)
        assert all(torch.allclose(weights[0][name], other[name], atol=2e-4) for name in weights[0])


@pytest.mark.parametrize("arch", ["bert", "t5", "rnn"])
def test_gathered_losses_are_averaged_for_every_family(
    data: Path, tmp_path: Path, arch: str
) -> None:
    """transformers adds them up for a model that takes ``num_items_in_batch`` and passes over it:
    four times ln 300, about 23.
    """
    recipe = changed(
        TINY,
        {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    )
    scores = pretrain(run_of(data, tmp_path, arch, recipe))
    assert scores.train_loss is not None
    assert 4 < scores.train_loss < 9


def test_a_step_holds_the_same_blocks_however_it_is_divided() -> None:
    state = SimpleNamespace(epoch=0)
    steps = WholeSteps(22, step=4, seed=3, state=state)
    first = list(steps)
    assert len(first) == len(steps) == 20
    assert len(set(first)) == 20
    state.epoch = 1.4
    assert list(steps) != first
    assert sorted(WholeSteps(3, step=4, seed=3, state=state)) == [0, 1, 2]


def test_how_to_shard_reaches_transformers(tmp_path: Path) -> None:
    recipe = Recipe(fsdp=True, fsdp_config={"reshard_after_forward": False})
    arguments = training_arguments(recipe, tmp_path)
    assert arguments.fsdp_plugin_args["fsdp_version"] == 2
    assert arguments.fsdp_plugin_args["reshard_after_forward"] is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsdp": True}, "give --processes, or use torchrun"),
        ({"fsdp": True, "deepspeed": {"zero_optimization": {"stage": 2}}}, "set one of them"),
        ({"fsdp_config": {"version": 2}}, "fsdp is not set"),
        ({"fsdp": True, "fsdp_config": "/nowhere.json"}, "/nowhere.json is no JSON file"),
    ],
)
def test_sharding_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_recipe(changed(Recipe(), changes))


def test_deepspeed_is_asked_for_by_name_and_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = changed(Recipe(), {"deepspeed": {"zero_optimization": {"stage": 3}}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="`pip install deepspeed`"):
        check_recipe(recipe)


def test_a_loss_that_is_no_number_ends_the_run(data: Path, tmp_path: Path) -> None:
    recipe = changed(TINY, {"learning_rate": 1e30, "max_grad_norm": 1e30, "logging_steps": 1})
    with pytest.raises(TrainingDiverged, match="the loss at step"):
        pretrain(run_of(data, tmp_path, "gpt2", recipe))


def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError, match="there are gpt2, gptj"):
        pretrain(run_of(data, out, "mamba"))
    with pytest.raises(ConfigurationError, match="holds no text in train/ and heldout/"):
        pretrain(run_of(tmp_path, out, "llama"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigurationError, match="fp16 needs a GPU"):
            pretrain(run_of(data, out, "llama", changed(TINY, {"fp16": True})))
    assert not out.exists()
    assert set(OFFERED) == {*ARCHITECTURES, "ngram"}
