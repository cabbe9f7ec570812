"""A place to learn in: a tiny model with its tokenizer, text, a registry, and feedback."""

from __future__ import annotations

import random
from pathlib import Path

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus
from infra.contracts.events.feedback import FeedbackExample, PreferencePair
from infra.contracts.events.model import Lineage
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.settings import BootstrapSettings, KafkaSettings, Settings, TrainerSettings
from trainer.model import build_model, save_model
from trainer.pile import PileMeta, PileRow, write_shards
from trainer.publishing import publish, roll_out
from trainer.tokenizer import train_tokenizer

TINY = BootstrapSettings(hidden_size=16, layers=1, heads=2, context=64, vocab_size=300)
SENTENCES = ("The module reads files.", "A class holds values.", "It returns a list of names.")


def settings_at(home: Path, kafka: KafkaSettings | None = None, **trainer: object) -> Settings:
    """Quick rounds; ``trainer`` overrides, dynamic settings included."""
    chosen = {
        "block_size": 32,
        "min_examples": 4,
        "num_train_epochs": 1,
        "warmup_steps": 1,
        "lora_rank": 0,
        "max_forgetting": 10.0,
        "threads": 1,
    } | trainer
    return Settings(
        home=home,
        kafka=kafka or KafkaSettings(),
        trainer=TrainerSettings.model_validate(chosen),
        bootstrap=TINY,
    )


def prepare(settings: Settings) -> Path:
    """Text below the home, and a model with fresh weights; returns the model's folder."""
    import torch

    shape = settings.bootstrap

    draw = random.Random(3)

    def rows(count: int) -> list[PileRow]:
        return [
            PileRow(
                text=" ".join(draw.choice(SENTENCES) for _ in range(8)),
                meta=PileMeta(pile_set_name=draw.choice(["Github", "ArXiv"])),
            )
            for _ in range(count)
        ]

    train = rows(40)
    write_shards(settings.shards / "train", train)
    write_shards(settings.shards / "heldout", rows(12))
    tokenizer = train_tokenizer(
        [row.text for row in train], vocab_size=shape.vocab_size, context=shape.context
    )
    torch.manual_seed(1)
    model = build_model(
        shape,
        vocab_size=len(tokenizer),
        end=tokenizer.eos_token_id,
        padding=tokenizer.pad_token_id,
    )
    folder = settings.home / "first"
    save_model(model, tokenizer, folder)
    return folder


def register(settings: Settings, bus: Bus, folder: Path, *, model: str) -> None:
    """The folder as the model's version 1, stable."""
    state, publisher = RegistryState(), bus.publisher()
    first = publish(
        folder,
        model=model,
        lineage=Lineage(),
        metrics={},
        store=ArtifactStore(settings.artifacts),
        state=state,
        publisher=publisher,
    )
    roll_out(first, state=state, publisher=publisher, reason="test")
    publisher.close()


def feedback(
    count: int, *, model: str, start: int = 0, edit: str | None = None
) -> list[FeedbackExample]:
    """Every example rated, edited and with a pair; each from somebody else.

    ``edit``: what all say, instead of sentences like those of the text.
    """
    return [
        FeedbackExample(
            request_id=f"{model}-{number}",
            prompt=f"Module {number}",
            output="does nothing of any use",
            model=model,
            model_versions=(f"{model}@1",),
            feedback_ids=(f"f{number}",),
            updated_at_ms=number,
            downs=1,
            edited_text=f" {edit or SENTENCES[number % 3]} That is number {number}.",
            pairs=(PreferencePair(preferred=f"good {number}", rejected=f"bad {number}"),),
            principals=(f"person {number}",),
        )
        for number in range(start, start + count)
    ]


def send(bus: Bus, examples: list[FeedbackExample]) -> None:
    """To the topic that the trainer reads."""
    publisher = bus.publisher()
    for example in examples:
        publisher.publish(
            catalogue.EXAMPLES.name, key=example.request_id.encode(), value=codec.encode(example)
        ).result(30)
    publisher.close()
