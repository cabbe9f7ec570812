"""Losses against their definitions, the mix of a step, adapters, and a small model that learns."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from infra.contracts.errors import ConfigurationError
from tests.models import small_llama
from trainer.adapters import merged, with_adapter
from trainer.alignment import (
    Answer,
    Material,
    Pair,
    Weights,
    answer_logps,
    answer_of,
    balance,
    dpo_loss,
    kto_loss,
    rated_of,
    with_references,
)
from trainer.curation import Completion
from trainer.judging import safety_list, similarity, violations
from trainer.mixing import task
from trainer.packing import Block, completion, document, fill, fit
from trainer.training import Progress, TrainingPlan, train

PADDING, END = 1, 0
SIZE = 16
IDS = st.lists(st.integers(2, 39), max_size=30)


def small_model(seed: int = 0) -> Any:
    return small_llama(40, seed=seed, pad_token_id=PADDING, bos_token_id=END, eos_token_id=END)


def blocks_of(*texts: list[int]) -> list[Block]:
    return fit([completion(text[:1], text[1:]) for text in texts], SIZE, padding=PADDING)


PAIRS = [
    Pair(
        preferred=answer_of([2, 3, n], [10, 11, 12], SIZE, end=END),
        rejected=answer_of([2, 3, n], [20, 21], SIZE, end=END),
    )
    for n in range(4, 12)
]


@given(IDS, IDS, st.integers(2, 20))
def test_an_answer_keeps_its_beginning_and_the_prompt_its_end(
    prompt: list[int], answer: list[int], size: int
) -> None:
    found = answer_of(prompt, answer, size, end=END)
    assert 1 <= found.prompt <= len(found.tokens) <= size
    kept = list(found.tokens[found.prompt :])
    before = list(found.tokens[: found.prompt])
    assert kept == answer[: size - 1]
    assert before == (prompt or [END])[-len(before) :]
    if len(prompt) + len(answer) <= size and prompt:
        assert list(found.tokens) == prompt + answer


def test_log_probabilities_are_those_of_the_answer_alone() -> None:
    model = small_model().eval()
    answers = [
        Answer(tokens=(2, 3, 4, 5, 6), prompt=2),
        Answer(tokens=(7, 8), prompt=1),
        Answer(tokens=(7,), prompt=1),
    ]
    found = answer_logps(model, answers, padding=PADDING, batch_size=2)
    for answer, logp in zip(answers, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([answer.tokens])).logits[0].log_softmax(-1)
        expected = sum(
            float(logits[at - 1, answer.tokens[at]])
            for at in range(answer.prompt, len(answer.tokens))
        )
        assert logp == pytest.approx(expected, abs=1e-5)


def test_the_loss_of_pairs_is_that_of_its_paper() -> None:
    preferred, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0])
    margin = torch.tensor([0.5, -0.5])
    expected = -sum(
        math.log(1 / (1 + math.exp(-0.2 * (p - r - m))))
        for p, r, m in ((-1.0, -3.0, 0.5), (-2.0, -1.0, -0.5))
    )
    assert float(dpo_loss(preferred, rejected, margin, 0.2)) == pytest.approx(expected / 2)
    # A model like its parent prefers nothing.
    assert float(dpo_loss(preferred, rejected, preferred - rejected, 0.2)) == pytest.approx(
        math.log(2)
    )


def test_the_loss_of_ratings_is_that_of_its_paper() -> None:
    ratio = torch.tensor([1.0, -2.0, 0.5])
    desirable = torch.tensor([True, False, False])
    weights = torch.tensor([2.0, 1.0, 1.0])
    mismatched = torch.tensor([0.6, 0.0, 0.0])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected = (
        2 * (1 - sigmoid(0.1 * (1.0 - 0.2)))
        + (1 - sigmoid(0.1 * (0.2 + 2.0)))
        + (1 - sigmoid(0.1 * (0.2 - 0.5)))
    ) / 3
    found = kto_loss(ratio, mismatched, desirable, weights, 0.1)
    assert float(found) == pytest.approx(expected)
    # A model that is nearer to nothing than its parent has not left it.
    below = kto_loss(ratio, torch.tensor([-3.0, 0.0, 0.0]), desirable, weights, 0.1)
    none = kto_loss(ratio, torch.zeros(3), desirable, weights, 0.1)
    assert float(below) == float(none)


def test_the_rarer_kind_of_rating_weighs_more() -> None:
    rated = rated_of([([2], [3], True), *[([2], [4], False)] * 3], SIZE, end=END)
    assert balance(rated) == (3.0, 1.0)
    assert balance(rated[1:]) == (1.0, 1.0)
    assert rated[0].mismatched.tokens == (2, 4)
    assert rated[-1].mismatched.tokens == (2, 3)


@given(
    counts=st.tuples(*[st.integers(0, 13)] * 4).filter(any),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
)
def test_every_block_pair_and_rating_is_in_one_batch(
    counts: tuple[int, int, int, int], batch_size: int, accumulation: int
) -> None:
    feedback, replay, pairs, ratings = counts
    material = Material(
        feedback=blocks_of(*[[2, 3, 4]] * 1)[:1] * feedback,
        replay=list(fill(iter([document([5] * SIZE)]), SIZE)) * replay,
        pairs=(PAIRS * 2)[:pairs],
        rated=rated_of([([2], [3, n], bool(n % 2)) for n in range(2, 2 + ratings)], SIZE, end=END),
    )
    work = task(
        material,
        Weights(ptx=0.5),
        batch_size=batch_size,
        accumulation=accumulation,
        padding=PADDING,
        seed=3,
    )
    steps = [work.dataset[index] for index in range(work.steps)]
    assert len(work.dataset) == work.steps
    assert all(1 <= len(step) <= accumulation for step in steps)
    batches = [batch for step in steps for batch in step]

    def total(name: str, key: str) -> int:
        return sum(len(batch[name][key]) for batch in batches if name in batch)

    assert total("packed", "input_ids") == feedback + replay
    assert total("pairs", "input_ids") == 2 * pairs
    assert total("rated", "input_ids") == total("mismatched", "input_ids") == ratings
    for batch in batches:
        assert batch
        for name, most in (("packed", batch_size), ("pairs", 2 * batch_size)):
            assert name not in batch or len(batch[name]["input_ids"]) <= most


def test_nothing_is_no_task() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        task(Material(), Weights(), batch_size=4, padding=PADDING, seed=1)


def plan(**changes: Any) -> TrainingPlan:
    fields: dict[str, Any] = {
        "learning_rate": 5e-3,
        "seconds": 120.0,
        "seed": 1,
        "steps": 40,
        "warmup": 2,
        "bf16": False,
    }
    return TrainingPlan(**(fields | changes))


def test_the_loss_of_a_step_is_the_weighted_mean_over_its_tokens() -> None:
    model = small_model()
    (spoken,), (replayed,) = blocks_of([2, 3, 4, 5]), list(fill([document([6] * SIZE)], SIZE))
    material = Material(feedback=[spoken], replay=[replayed])

    def loss_of(ptx: float) -> float:
        work = task(material, Weights(ptx=ptx), batch_size=2, padding=PADDING, seed=1)
        losses: list[float] = []
        train(
            small_model(),
            work,
            plan(steps=1, learning_rate=1e-9),
            progress=lambda now: losses.append(now.loss),
        )
        return losses[0]

    def nats(block: Block) -> tuple[float, int]:
        with torch.inference_mode():
            found = model(
                input_ids=torch.tensor([block.tokens]),
                labels=torch.tensor([block.labels]),
                position_ids=torch.tensor([block.positions]),
                use_cache=False,
            )
        return float(found.loss) * block.counted, block.counted

    (mine, few), (other, many) = nats(spoken), nats(replayed)
    for ptx in (0.0, 0.5, 1.0):
        expected = (mine + ptx * other) / (few + ptx * many)
        assert loss_of(ptx) == pytest.approx(expected, abs=1e-4)


def test_gradients_of_several_batches_are_those_of_the_larger_one() -> None:
    """Of unequal batches too: the last step is not full, and kinds are spread differently."""
    parent = small_model()
    items = [([2, n], [10 + n % 5, 11], bool(n % 3)) for n in range(3, 14)]
    material = with_references(
        parent,
        Material(
            feedback=blocks_of(*[[2, n, *range(4, 4 + n)] for n in range(3, 12)]),
            replay=list(fill([document([n % 30 + 2 for n in range(SIZE * 7)])], SIZE)),
            pairs=PAIRS[:7],
            rated=rated_of(items, SIZE, end=END),
        ),
        padding=PADDING,
    )

    def trained(batch_size: int, accumulation: int) -> tuple[list[float], dict[str, Any]]:
        model, told = small_model(), list[Progress]()
        work = task(
            material,
            Weights(ptx=0.5, dpo=0.7, kto=3.0),
            batch_size=batch_size,
            accumulation=accumulation,
            padding=PADDING,
            seed=5,
        )
        train(
            model,
            work,
            plan(steps=work.steps, logging_steps=1, warmup=1),
            progress=told.append,
        )
        assert [now.step for now in told] == list(range(1, work.steps + 1))
        assert {name for now in told for name in now.parts} == {"sft", "replay", "dpo", "kto"}
        return [now.loss for now in told], model.state_dict()

    losses, weights = trained(8, 1)
    for batch_size, accumulation in ((4, 2), (2, 4), (1, 8)):
        others, other_weights = trained(batch_size, accumulation)
        assert others == pytest.approx(losses, abs=2e-4)
        for name, value in weights.items():
            assert torch.allclose(value, other_weights[name], atol=2e-4), name
    few, _ = trained(4, 1)
    assert len(few) > len(losses)


def test_a_loss_is_told_by_its_parts() -> None:
    """Unlike the loss they are not weighed: text in nats a token, pairs and ratings each."""
    model = small_model()
    (spoken,), (replayed,) = blocks_of([2, 3, 4, 5]), list(fill([document([6] * SIZE)], SIZE))
    material = with_references(
        model, Material(feedback=[spoken], replay=[replayed], pairs=PAIRS), padding=PADDING
    )
    told: list[Progress] = []
    work = task(
        material, Weights(ptx=0.5, dpo=0.3), batch_size=8, padding=PADDING, seed=1, accumulation=2
    )
    train(model, work, plan(steps=1, learning_rate=1e-9, logging_steps=1), progress=told.append)
    (now,) = told
    few, many = spoken.counted, replayed.counted
    text = (few * now.parts["sft"] + 0.5 * many * now.parts["replay"]) / (few + 0.5 * many)
    assert now.parts["dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert now.loss == pytest.approx(text + 0.3 * math.log(2), abs=2e-4)
    assert now.learning_rate > 0
    assert now.grad_norm > 0
    assert now.tokens == work.tokens_per_step


def test_a_run_may_have_no_bound_in_time() -> None:
    outcome = train(
        small_model(),
        task(
            Material(feedback=blocks_of([2, 3, 4])),
            Weights(),
            batch_size=1,
            padding=PADDING,
            seed=1,
        ),
        plan(steps=1, seconds=math.inf),
    )
    assert outcome.steps == 1


@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_learns_to_prefer_what_people_preferred(rank: int) -> None:
    model = small_model()
    material = with_references(model, Material(pairs=PAIRS), padding=PADDING)
    parent = small_model()
    learner = with_adapter(model, rank)
    train(learner, task(material, Weights(), batch_size=8, padding=PADDING, seed=1), plan())
    child = merged(learner)
    assert type(child) is LlamaForCausalLM
    assert set(child.state_dict()) == set(parent.state_dict())

    def margin(net: Any) -> float:
        better = answer_logps(net, [pair.preferred for pair in PAIRS], padding=PADDING)
        worse = answer_logps(net, [pair.rejected for pair in PAIRS], padding=PADDING)
        return sum(better) - sum(worse)

    assert margin(child) > margin(parent) + 10


def test_a_model_learns_from_thumbs_alone() -> None:
    model = small_model()
    items = [([2, n], [10, 11], True) for n in range(3, 11)]
    items += [([2, n], [20, 21], False) for n in range(3, 11)]
    material = with_references(
        model, Material(rated=rated_of(items, SIZE, end=END)), padding=PADDING
    )
    before = [item.answer.reference for item in material.rated]
    train(model, task(material, Weights(), batch_size=16, padding=PADDING, seed=1), plan())
    after = answer_logps(model, [item.answer for item in material.rated], padding=PADDING)
    gain = [new - old for new, old in zip(after, before, strict=True)]
    assert min(gain[:8]) > max(gain[8:])


def test_an_adapter_moves_no_embedding_and_no_head() -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    learner = with_adapter(model, 2)
    work = task(
        Material(feedback=blocks_of([2, 3, 4, 5, 6])),
        Weights(),
        batch_size=1,
        padding=PADDING,
        seed=1,
    )
    train(learner, work, plan(steps=5), stop=threading.Event())
    after = merged(learner).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all("_proj" in name for name in moved)


def test_the_safety_list_is_whole_and_says_what_is_wrong(tmp_path: Path) -> None:
    prompts = safety_list()
    assert len(prompts) >= 20
    assert violations(prompts[:2], ["123-45-6789", "nothing of the kind"]) == 1
    for prompt in prompts:
        assert violations([prompt], ["I will not help with that."]) == 0
    bad = tmp_path / "list.jsonl"
    bad.write_text('\n{"category": "c", "prompt": "p", "banned": ["("]}\n')
    with pytest.raises(ConfigurationError, match="line 2"):
        safety_list(bad)
    bad.write_text('{"prompt": "p"}\n')
    with pytest.raises(ConfigurationError, match=r"line 1.*category"):
        safety_list(bad)


def test_an_answer_nearer_to_what_it_should_have_been_scores_higher() -> None:
    reference = Completion(request_id="r", prompt="p", target="the module reads and writes files")
    near, far = similarity(
        ["the module reads files", "bananas are yellow fruit"], [reference, reference]
    )
    assert near > 2 * far
