"""Does the loop learn? Win rate against the first version, and what is forgotten, by round.

A model of the embedded one's size is pre-trained on the text of this machine less the documents
about mathematics (`learning_data`), and put through rounds of the trainer as it is shipped, on a
bus in memory. In each round people ask about mathematics: openings of documents that no earlier
round had are put to the version that serves, each several times. The documents' true continuations
stand in for what people know: of two answers the one nearer to the truth (mean of unigram and
bigram F1) is preferred, and the worst answer to each opening is edited into the truth. The trainer
curates, trains, measures, gates and publishes; what passes serves in the next round, and what does
not stays behind.

Measured of each version that serves, on openings of other documents about mathematics, the same for
every version: the share of openings to which its answers are nearer to the truth, on average over
twelve samples, than those of version 1, as the people judge it; a tie counts half, 0.5 is chance.
And bits per byte of the held-out Pile text, and of the openings' true continuations. Nothing
measured is trained on.

The control is version 1 trained for as many steps at the same rate on Pile text alone, measured in
the same way: version 1 has seen its text about once, and gains by any training. What the rounds
gain beyond that they have learnt from feedback.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import msgspec

from benchmarks.harness import Report, Target, command, table
from benchmarks.learning_data import Subject, Truth, bits_per_byte, hurried, prepare, rows_of
from benchmarks.learning_plot import svg
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.feedback import FeedbackExample, PreferencePair
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.client import read_registry
from infra.registry.store import ArtifactStore
from infra.settings import Settings, TrainerSettings
from infra.testing import InMemoryBus
from producers.demo.scoring import score, win_rate

MODEL = "default"
ROUNDS, QUICK_ROUNDS = 5, 1
OPENINGS, QUICK_OPENINGS = 100, 8
"""A round's."""
SAMPLES, QUICK_SAMPLES = 8, 2
"""Answers to an opening, of which the best is paired with the worst, and so on inwards."""
MEASURED, QUICK_MEASURED = 300, 8
MEASURED_SAMPLES, QUICK_MEASURED_SAMPLES = 12, 2
CONTEXT = 256
BATCH = 128
PEOPLE = 50
BLOCKS = 128

Scores = list[float]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything."""

    rounds: int
    openings: int
    samples: int
    measured: int
    measured_samples: int


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a version did: log-probability of each true continuation, nats; mean score of answers."""

    logps: Scores
    scores: Scores
    bits_per_byte: float

    def figures(self, first: Standing, truths: Sequence[Truth]) -> Figures:
        """Beside the first version."""
        rate, count = win_rate(self.scores, first.scores), len(truths)
        length = sum(len(truth.encode()) for _, truth in truths)
        return {
            "win_rate": rate,
            "win_rate_error": math.sqrt(rate * (1 - rate) / count),
            "score": sum(self.scores) / count,
            "bits_per_byte": self.bits_per_byte,
            "truth_bits_per_byte": -sum(self.logps) / math.log(2) / length,
        }


def measure(report: Report, plot: Path | None = None) -> None:
    """See the module."""
    scale = (
        Scale(rounds=QUICK_ROUNDS, openings=QUICK_OPENINGS, samples=QUICK_SAMPLES,
              measured=QUICK_MEASURED, measured_samples=QUICK_MEASURED_SAMPLES)
        if report.quick
        else Scale(rounds=ROUNDS, openings=OPENINGS, samples=SAMPLES, measured=MEASURED,
                   measured_samples=MEASURED_SAMPLES)
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="feedloom-learning-") as folder:
        home = Path(folder)
        settings = Settings(home=home, trainer=trainer_settings())
        if report.quick:
            settings = hurried(settings)
        report.say("text of this machine")
        subject = prepare(settings, lambda done, total: None)
        experiment = Experiment(settings, subject, scale, report)
        rounds = list(experiment.run())
        control = list(experiment.control([one["steps"] for one in rounds[1:]]))
    report.figures |= {"rounds": rounds, "control": control}
    last, first = rounds[-1], rounds[0]
    report.ratio("win rate after the last round", last["win_rate"], Target(">=", 0.65))
    report.ratio(
        "rounds in which the win rate rose",
        sum(b["win_rate"] > a["win_rate"] for a, b in pairwise(rounds)),
        Target(">=", scale.rounds),
    )
    report.ratio(
        "held-out bits per byte, last / first version",
        last["bits_per_byte"] / first["bits_per_byte"],
        Target("<=", 1.01),
    )
    report.ratio("win rate after as many steps on Pile text alone", control[-1]["win_rate"])
    report.ratio(
        "bits per byte of the truth, after the rounds / on Pile text alone",
        last["truth_bits_per_byte"] / control[-1]["truth_bits_per_byte"],
    )
    show(rounds, control)
    if plot is not None:
        plot.write_text(svg(rounds, control), "utf-8")


class Experiment:
    """The rounds of one model, and what as many steps would have made of it without them."""

    def __init__(self, settings: Settings, subject: Subject, scale: Scale, report: Report) -> None:
        needed = scale.rounds * scale.openings
        if len(subject.taught) < needed:
            raise ValueError(f"{len(subject.taught)} openings to teach with, {needed} are needed")
        self._settings = settings
        self._taught = subject.taught
        self._measured = subject.measured[: scale.measured]
        self._scale = scale
        self._report = report
        self._bus = InMemoryBus()
        self._store = ArtifactStore(settings.artifacts)
        self._first: Standing | None = None

    def run(self) -> Iterator[Figures]:
        """What is measured of version 1, and of what serves after each round."""
        from trainer.bootstrap import bootstrap, register

        self._report.say(f"pre-training, {self._settings.bootstrap.seconds:g} s")
        built = bootstrap(self._settings, lambda what, done, total: None)
        register(self._settings, self._bus, built)
        yield {"version": "1"} | self._figures(self._folder())
        for number in range(self._scale.rounds):
            learnt = self._learn(number)
            found = learnt | self._figures(self._folder())
            self._say(f"round {number + 1}", found)
            yield found

    def control(self, steps: Sequence[int]) -> Iterator[Figures]:
        """The same of the first version trained on replayed Pile text alone."""
        from trainer.model import load_model, save_model
        from trainer.tokenizer import load_tokenizer, text_blocks
        from trainer.training import TrainingPlan, packed, train

        config = msgspec.convert(self._settings.trainer.config, TrainerConfig)
        first = self._settings.home / "models" / MODEL / "1"
        model, tokenizer = load_model(first), load_tokenizer(first)
        texts = [row.text for row in rows_of(self._settings, "train")]
        blocks = list(text_blocks(tokenizer, texts, CONTEXT))
        folder = self._settings.home / "control"
        yield {"version": "1"} | self._figures(first)
        for number, count in enumerate(steps):
            train(
                model,
                packed(blocks, config.per_device_train_batch_size),
                TrainingPlan(
                    learning_rate=config.learning_rate,
                    seconds=math.inf,
                    seed=number,
                    steps=count,
                    warmup=config.warmup_steps,
                    weight_decay=config.weight_decay,
                    max_grad_norm=config.max_grad_norm,
                ),
            )
            save_model(model, tokenizer, folder)
            found = {"version": f"control {number + 1}", "steps": count} | self._figures(folder)
            self._say(f"control {number + 1}", found)
            yield found

    def _learn(self, number: int) -> Figures:
        """One round of feedback and training."""
        from trainer.service import TrainerService

        begin = time.monotonic()
        self._teach(number, self._stable())
        told = time.monotonic()
        TrainerService(self._settings, self._bus, stop=threading.Event()).run(once=True, now=True)
        newest = read_registry(self._bus).versions(MODEL)[-1]
        return {
            "version": self._stable().version,
            "rejected": newest.rejected,
            "steps": newest.lineage.steps,
            "objective": newest.lineage.objective,
            "replay_fraction": newest.lineage.replay_fraction,
            "completions": newest.metrics["completions"],
            "preferences": newest.metrics["preferences"],
            "feedback_s": told - begin,
            "training_s": time.monotonic() - told,
        }

    def _stable(self) -> ModelVersionPublished:
        version = read_registry(self._bus).stable(MODEL)
        assert version is not None
        return version

    def _folder(self) -> Path:
        """Of the version that serves."""
        return Path(self._store.resolve(self._stable()))

    def _figures(self, folder: Path) -> Figures:
        """Of the version there. The first that is asked about is what others are held against."""
        from trainer.alignment import answer_logps, answer_of
        from trainer.judging import generate
        from trainer.model import load_model
        from trainer.tokenizer import encode_all, load_tokenizer, padding_of

        model, tokenizer = load_model(folder), load_tokenizer(folder)
        prompts = [prompt for prompt, _ in self._measured]
        truths = [truth for _, truth in self._measured]
        answers = [
            answer_of(prompt, truth, CONTEXT, end=tokenizer.eos_token_id)
            for prompt, truth in zip(
                encode_all(tokenizer, prompts), encode_all(tokenizer, truths), strict=True
            )
        ]
        samples = [
            generate(model, tokenizer, prompts, size=CONTEXT, seed=seed, batch_size=BATCH)
            for seed in range(self._scale.measured_samples)
        ]
        now = Standing(
            logps=answer_logps(model, answers, padding=padding_of(tokenizer)),
            scores=[
                sum(score(sample[index], truth) for sample in samples) / len(samples)
                for index, truth in enumerate(truths)
            ],
            bits_per_byte=bits_per_byte(
                model,
                tokenizer,
                rows_of(self._settings, "heldout"),
                size=CONTEXT,
                limit=BLOCKS,
            ),
        )
        if self._first is None:
            self._first = now
        return now.figures(self._first, self._measured)

    def _say(self, what: str, found: Figures) -> None:
        self._report.say(
            f"{what}: win rate {found['win_rate']:.3f}, "
            f"{found['truth_bits_per_byte']:.4f} bits per byte of the truth, "
            f"{found['bits_per_byte']:.4f} of the Pile"
            + (", rejected" if found.get("rejected") else "")
        )

    def _teach(self, number: int, version: ModelVersionPublished) -> None:
        """This round's openings, answered and judged, onto the topic that the trainer reads."""
        from infra.contracts import catalogue, codec
        from trainer.judging import generate
        from trainer.model import load_model
        from trainer.tokenizer import load_tokenizer

        folder = self._folder()
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        each = self._scale.openings
        mine = self._taught[number * each : (number + 1) * each]
        prompts = [prompt for prompt, _ in mine]
        answers = [
            generate(
                model,
                tokenizer,
                prompts,
                size=CONTEXT,
                seed=1000 * (number + 1) + sample,
                batch_size=BATCH,
            )
            for sample in range(self._scale.samples)
        ]
        publisher = self._bus.publisher()
        for index, truth in enumerate(mine):
            said = feedback(
                truth,
                [sample[index] for sample in answers],
                version=version.version,
                name=f"{number}-{index}",
                person=f"person {index % PEOPLE}",
            )
            for example in said:
                publisher.publish(
                    catalogue.EXAMPLES.name,
                    key=example.request_id.encode(),
                    value=codec.encode(example),
                )
        publisher.close()


def trainer_settings() -> TrainerSettings:
    """The trainer's own defaults but for what the experiment is about."""
    return TrainerSettings.model_validate(
        {
            "lora_rank": 0,
            "learning_rate": 1e-3,
            "replay_fraction": 0.75,
            "dpo_weight": 1.0,
            "kto_weight": 0.0,
            "warmup_steps": 5,
        }
    )


def feedback(
    truth: Truth, answers: Sequence[str], *, version: str, name: str, person: str
) -> Iterator[FeedbackExample]:
    """What somebody who knows the truth says of these answers, taken two by two."""
    prompt, continuation = truth
    ranked = sorted(answers, key=lambda answer: score(answer, continuation))
    for pair in range(len(ranked) // 2):
        worse, better = ranked[pair], ranked[-1 - pair]
        if score(better, continuation) <= score(worse, continuation):
            continue
        yield FeedbackExample(
            request_id=f"{name}-{pair}",
            prompt=prompt,
            output=worse,
            model=MODEL,
            model_versions=(f"{MODEL}@{version}",),
            feedback_ids=(f"{name}-{pair}",),
            updated_at_ms=time.time_ns() // 1_000_000,
            edited_text=continuation if pair == 0 else None,
            pairs=(PreferencePair(preferred=better, rejected=worse),),
            principals=(person,),
        )


def show(rounds: Sequence[Figures], control: Sequence[Figures]) -> None:
    """A line a round."""
    rows = [
        [
            str(number),
            one["version"],
            f"{one['win_rate']:.3f} ± {one['win_rate_error']:.3f}",
            f"{one['truth_bits_per_byte']:.4f}",
            f"{one['bits_per_byte']:.4f}",
            str(one.get("steps", "-")),
            "rejected" if one.get("rejected") else "",
        ]
        for part in (rounds, control)
        for number, one in enumerate(part)
    ]
    columns = ("round", "serves", "win rate", "bits/byte of the truth", "of the Pile", "steps", "")
    table("By round", dict.fromkeys(columns, "right"), rows)


main = command(
    measure,
    name="learning",
    description=__doc__,
    options=[
        click.Option(
            ["--plot"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the plot here, as SVG.",
        )
    ],
)

if __name__ == "__main__":
    main()
