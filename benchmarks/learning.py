"""Does the loop learn? Win rate against the first version, and what is forgotten, by round.

The embedded model goes through rounds of the trainer as it is shipped, on a bus in memory. In each,
openings of held-back documents that no earlier round had are put to the version that serves; each
is answered several times. The documents' true continuations stand in for people: of two answers to
an opening the one nearer to the truth (mean of unigram and bigram F1) is preferred, and the worst
answer to each is edited into the truth. The trainer curates, trains, measures, gates and
publishes; what passes serves in the next round, and what does not stays behind.

Measured after each round, on openings of other documents, the same for every version: the share on
which it scores higher than version 1, a tie counting half (two samples each; 0.5 is chance), and
bits per byte of the held-out Pile text. Nothing measured is trained on.
"""

from __future__ import annotations

import hashlib
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

from benchmarks.harness import Report, Target, command, project_home, table
from benchmarks.learning_plot import svg
from benchmarks.models import embedded_model
from infra.contracts.events import FeedbackExample, ModelVersionPublished, PreferencePair
from infra.registry.client import read_registry
from infra.registry.store import ArtifactStore
from infra.settings import Settings, TrainerSettings
from infra.testing import InMemoryBus
from producers.demo.scoring import score, win_rate
from trainer.openings import Opening

MODEL = "default"
ROUNDS, QUICK_ROUNDS = 5, 1
OPENINGS, QUICK_OPENINGS = 120, 8
"""A round's."""
SAMPLES, QUICK_SAMPLES = 4, 2
"""Answers to an opening, of which the best is paired with the worst, and so on inwards."""
MEASURED, QUICK_MEASURED = 256, 8
SEEDS = (1, 2)
CONTEXT = 256
BATCH = 128
PEOPLE = 50

BLOCKS = 128

Truth = tuple[str, str]
"""A prompt and what truly follows."""
Scores = list[float]
Figures = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything."""

    rounds: int
    openings: int
    samples: int
    measured: int


def measure(report: Report, plot: Path | None = None) -> None:
    """See the module."""
    embedded_model()
    scale = (
        Scale(rounds=QUICK_ROUNDS, openings=QUICK_OPENINGS, samples=QUICK_SAMPLES,
              measured=QUICK_MEASURED)
        if report.quick
        else Scale(rounds=ROUNDS, openings=OPENINGS, samples=SAMPLES, measured=MEASURED)
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="feedloom-learning-") as folder:
        rounds = list(Experiment(Path(folder), scale, report).run())
    report.figures["rounds"] = rounds
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
    show(rounds)
    if plot is not None:
        plot.write_text(svg(rounds), "utf-8")


class Experiment:
    """The rounds, in a home of their own that borrows the text of the project's."""

    def __init__(self, home: Path, scale: Scale, report: Report) -> None:
        (home / "pile").symlink_to(project_home() / "pile")
        self._settings = Settings(home=home, trainer=trainer_settings())
        self._scale = scale
        self._report = report
        self._bus = InMemoryBus()
        self._store = ArtifactStore(self._settings.artifacts)
        self._teaching, self._measured = truths(scale)

    def run(self) -> Iterator[Figures]:
        """What is measured of version 1, and after each round."""
        from trainer.bootstrap import bootstrap, register

        built = bootstrap(Settings(home=project_home()), lambda what, done, total: None)
        register(self._settings, self._bus, built)
        first = self._figures(self._stable(), None)
        reference = first.pop("scores")
        yield first
        for number in range(self._scale.rounds):
            learnt = self._learn(number)
            found = self._figures(self._stable(), reference) | learnt
            del found["scores"]
            self._report.say(
                f"round {number + 1}: win rate {found['win_rate']:.3f}, "
                f"{found['bits_per_byte']:.4f} bits per byte"
                + (", rejected" if found["rejected"] else "")
            )
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

    def _load(self) -> tuple[Any, Any]:
        """Model and tokenizer of the version that serves."""
        from trainer.model import load_model
        from trainer.tokenizer import load_tokenizer

        folder = Path(self._store.resolve(self._stable()))
        return load_model(folder), load_tokenizer(folder)

    def _answers(self, prompts: Sequence[str], seed: int) -> list[str]:
        from trainer.judging import generate

        model, tokenizer = self._load()
        return generate(model, tokenizer, prompts, size=CONTEXT, seed=seed, batch_size=BATCH)

    def _scores(self) -> Scores:
        prompts = [prompt for prompt, _ in self._measured]
        return [
            score(answer, truth)
            for seed in SEEDS
            for answer, (_, truth) in zip(self._answers(prompts, seed), self._measured, strict=True)
        ]

    def _teach(self, number: int, version: ModelVersionPublished) -> None:
        """This round's openings, answered and judged, onto the topic that the trainer reads."""
        from infra.contracts import catalogue, codec

        each = self._scale.openings
        mine = self._teaching[number * each : (number + 1) * each]
        prompts = [prompt for prompt, _ in mine]
        answers = [
            self._answers(prompts, 1000 * (number + 1) + sample)
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

    def _bits_per_byte(self) -> float:
        from trainer.evaluation import evaluate, held_out_blocks, joined
        from trainer.pile import read_shards, shard_paths

        rows = list(read_shards(shard_paths(self._settings.shards / "heldout")))
        model, tokenizer = self._load()
        sets = held_out_blocks(rows, tokenizer, CONTEXT, limit=BLOCKS)
        return joined(
            [evaluate(model, tokenizer, blocks) for blocks in sets.values()]
        ).bits_per_byte

    def _figures(self, version: ModelVersionPublished, reference: Scores | None) -> Figures:
        """Of the version that serves now. Without a reference it is its own."""
        scores = self._scores()
        rate = win_rate(scores, reference or scores)
        return {
            "version": version.version,
            "scores": scores,
            "score": sum(scores) / len(scores),
            "win_rate": rate,
            "win_rate_error": math.sqrt(rate * (1 - rate) / len(scores)),
            "bits_per_byte": self._bits_per_byte(),
        }


def trainer_settings() -> TrainerSettings:
    """The trainer's own defaults but for what the experiment is about."""
    return TrainerSettings.model_validate(
        {
            "lora_rank": 0,
            "learning_rate": 3e-4,
            "replay_fraction": 0.9,
            "dpo_weight": 1.0,
            "kto_weight": 0.0,
            "num_train_epochs": 1,
            "warmup_steps": 5,
        }
    )


def truths(scale: Scale) -> tuple[list[Truth], list[Truth]]:
    """To teach with, and to measure with: openings of different documents."""
    from trainer.openings import openings_of
    from trainer.pile import read_shards, shard_paths

    lines = (project_home() / "demo" / "prompts.jsonl").read_bytes().splitlines()
    known = [msgspec.json.decode(line, type=Opening) for line in lines]
    measured = [(one.prompt, one.continuation) for one in known if one.split == "heldout"]
    kept = {" ".join(prompt.split()) for prompt, _ in measured}
    found: dict[str, str] = {}
    for row in read_shards(shard_paths(project_home() / "pile" / "demo")):
        flat = " ".join(row.text.split())
        if any(prompt in flat for prompt in kept):
            continue
        paragraphs = row.text.split("\n\n")
        for start in range(0, len(paragraphs), 4):
            found |= dict(openings_of("\n\n".join(paragraphs[start : start + 8])))
    teaching = sorted(found.items(), key=lambda one: hash_of(one[0]))
    needed = scale.rounds * scale.openings
    if len(teaching) < needed:
        raise ValueError(f"{len(teaching)} openings to teach with, {needed} are needed")
    return teaching[:needed], measured[: scale.measured]


def hash_of(text: str) -> str:
    """An order that depends on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()


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


def show(rounds: Sequence[Figures]) -> None:
    """A line a round."""
    rows = [
        [
            str(number),
            one["version"],
            f"{one['win_rate']:.3f} ± {one['win_rate_error']:.3f}",
            f"{one['bits_per_byte']:.4f}",
            str(one.get("steps", "-")),
            "rejected" if one.get("rejected") else "",
        ]
        for number, one in enumerate(rounds)
    ]
    columns = ("round", "serves", "win rate", "bits per byte", "steps", "")
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
