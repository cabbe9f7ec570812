"""One round of learning: feedback and replay in, a measured version with its gate's verdict out.

Knows neither topics nor the registry: the service gives it the parent's folder and takes what came
of it.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.model import GateDecision
from infra.settings import TrainerSettings
from trainer.adapters import merged, with_adapter
from trainer.alignment import Material, Pair, Weights, rated_of, with_references
from trainer.curation import Curated, CurationRules, curate
from trainer.evaluation import held_out_blocks
from trainer.exams import Exam, Measurement, measured, metrics_of
from trainer.gate import Thresholds, decide
from trainer.judging import pairs_of, safety_list
from trainer.mixing import task
from trainer.model import load_model
from trainer.packing import Block, completion, fit
from trainer.pile import PileRow
from trainer.preparation.steps import scrubbed
from trainer.report import Sample
from trainer.tokenizer import encode_all, load_tokenizer, padding_of, text_blocks
from trainer.training import Progress, TrainingPlan, TrainingStopped, train

log = logging.getLogger(__name__)

HELDOUT_BLOCKS = 96
REPLAY_DOCUMENTS = 4000
MEASURED_PROMPTS = 128
MINIMUM_PAIRS = 8
"""Fewer pairs, or fewer ratings of either kind, are too few to learn a direction from."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a round has to work with. ``replay`` and ``heldout`` are Pile rows."""

    parent: Path
    feedback: Sequence[FeedbackExample]
    measuring: Sequence[FeedbackExample]
    replay: Sequence[PileRow]
    heldout: Sequence[PileRow]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A version before it is published."""

    model: Any
    tokenizer: Any
    objective: str
    steps: int
    metrics: dict[str, float]
    gate: GateDecision
    before: Measurement
    after: Measurement
    samples: Sequence[Sample] = ()
    safety_samples: Sequence[Sample] = ()


def curated_feedback(
    inputs: Inputs, config: TrainerConfig, settings: TrainerSettings, *, now_ms: int
) -> Curated:
    """What of the feedback is worth training on."""
    rules = CurationRules(
        max_share=config.max_principal_share,
        max_tenant_share=config.max_tenant_share,
        max_age_s=settings.max_feedback_age_s,
        scrub=scrubbed,
    )
    return curate(
        inputs.feedback,
        rules,
        now_ms=now_ms,
        heldout=frozenset(row.text for row in inputs.heldout),
    )


def run_round(
    inputs: Inputs,
    curated: Curated,
    config: TrainerConfig,
    settings: TrainerSettings,
    *,
    progress: Callable[[Progress], None],
    stop: threading.Event,
) -> Trained | None:
    """Train a child of the parent and measure both. ``None``: there was nothing to train on.

    Raises TrainingStopped, TrainingDiverged, and ConfigurationError for a wrong safety list.
    """
    torch.manual_seed(settings.seed)
    model, tokenizer = load_model(inputs.parent), load_tokenizer(inputs.parent)
    size = min(settings.block_size, model.config.max_position_embeddings)
    material = _material(tokenizer, curated, inputs, config, size=size, seed=settings.seed)
    if not material.objectives:
        return None
    exam = _exam(tokenizer, inputs, config, settings, size=size)
    before = exam.take(model)
    material = with_references(
        model,
        material,
        padding=padding_of(tokenizer),
        batch_size=config.per_device_eval_batch_size,
    )
    work = task(
        material,
        Weights(
            ptx=config.ptx_weight,
            dpo=config.dpo_weight,
            kto=config.kto_weight,
            beta=config.beta,
        ),
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        padding=padding_of(tokenizer),
        seed=settings.seed,
    )
    learner = with_adapter(model, config.lora_rank)
    log.info("fine-tuning by %s: %d steps", "+".join(material.objectives), work.steps)
    outcome = train(
        learner,
        work,
        _plan(config, settings, steps=work.steps),
        progress=progress,
        stop=stop,
    )
    model = merged(learner)
    after = exam.take(model)
    if stop.is_set():
        raise TrainingStopped
    found = measured(before, after, exam)
    return Trained(
        model=model,
        tokenizer=tokenizer,
        objective="+".join(material.objectives),
        steps=outcome.steps,
        metrics=metrics_of(before, after, found)
        | {
            "train_loss": outcome.loss,
            "train_seconds": outcome.seconds,
            "train_tokens": float(outcome.tokens),
            "completions": float(len(curated.completions)),
            "preferences": float(len(material.pairs)),
            "ratings": float(len(material.rated)),
            "replay_share": material.replay_share,
        },
        gate=decide(
            found,
            Thresholds(
                max_forgetting=config.max_forgetting,
                min_preference_accuracy=config.min_preference_accuracy,
                min_win_rate=config.min_win_rate,
                max_violations=config.max_violations,
                seed=settings.seed,
            ),
        ),
        before=before,
        after=after,
        samples=exam.samples(before, after),
        safety_samples=exam.safety_samples(before, after),
    )


def _plan(config: TrainerConfig, settings: TrainerSettings, *, steps: int) -> TrainingPlan:
    fp16 = config.fp16 and torch.cuda.is_available()
    if config.fp16 and not fp16:
        log.warning("trainer.fp16 needs a GPU, and there is none")
    return TrainingPlan(
        learning_rate=config.learning_rate,
        seconds=config.max_train_seconds or math.inf,
        seed=settings.seed,
        steps=steps,
        warmup=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16 and not fp16,
        fp16=fp16,
        threads=settings.threads,
        logging_steps=1,
    )


def _material(
    tokenizer: Any,
    curated: Curated,
    inputs: Inputs,
    config: TrainerConfig,
    *,
    size: int,
    seed: int,
) -> Material:
    """Tokenised, each pass of the feedback shuffled anew by the task; replay makes up its share."""
    end = tokenizer.eos_token_id
    passes = config.num_train_epochs
    feedback: list[Block] = []
    if config.sft:
        prompts = encode_all(tokenizer, [one.prompt for one in curated.completions])
        targets = encode_all(tokenizer, [one.target for one in curated.completions])
        segments = [completion(p, t) for p, t in zip(prompts, targets, strict=True)]
        feedback = fit(segments, size, padding=padding_of(tokenizer)) * passes
    pairs: list[Pair] = []
    if config.dpo_weight and len(curated.preferences) >= MINIMUM_PAIRS:
        pairs = pairs_of(tokenizer, curated.preferences, size) * passes
    ratings = []
    few = min(
        sum(one.desirable for one in curated.ratings),
        sum(not one.desirable for one in curated.ratings),
    )
    if config.kto_weight and few >= MINIMUM_PAIRS:
        prompts = encode_all(tokenizer, [one.prompt for one in curated.ratings])
        outputs = encode_all(tokenizer, [one.output for one in curated.ratings])
        kinds = [one.desirable for one in curated.ratings]
        ratings = rated_of(list(zip(prompts, outputs, kinds, strict=True)), size, end=end) * passes
    share = config.replay_fraction
    # Pairs and ratings are held to the parent by their own losses.
    tokens = len(feedback) * size or sum(len(pair.preferred.tokens) for pair in pairs)
    tokens = tokens or sum(len(one.answer.tokens) for one in ratings)
    texts = [row.text for row in inputs.replay]
    random.Random(seed).shuffle(texts)  # nosec B311 # the same order again
    replay = text_blocks(tokenizer, texts, size)
    return Material(
        feedback=feedback,
        replay=list(islice(replay, round(tokens / size * share / (1 - share)))),
        pairs=pairs,
        rated=ratings,
    )


def _exam(
    tokenizer: Any, inputs: Inputs, config: TrainerConfig, settings: TrainerSettings, *, size: int
) -> Exam:
    # Who floods the feedback must not set the exam either.
    rules = CurationRules(
        max_share=config.max_principal_share,
        max_tenant_share=config.max_tenant_share,
        limit=MEASURED_PROMPTS,
        scrub=scrubbed,
    )
    measuring = curate(inputs.measuring, rules)
    return Exam(
        tokenizer=tokenizer,
        size=size,
        seed=settings.seed,
        batch_size=config.per_device_eval_batch_size,
        blocks=held_out_blocks(inputs.heldout, tokenizer, size, limit=HELDOUT_BLOCKS),
        pairs=pairs_of(tokenizer, measuring.preferences, size),
        references=measuring.completions,
        safety=safety_list(settings.safety_list),
    )
