"""The poisoning drill: ten thousand hostile items by one principal, and what they move.

From what the gateway publishes through the join to the trainer as it runs, on a tiny model: what
honest people say, the same with the flood, and with the flood and no cap.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.feedback import FeedbackExample, FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from infra.contracts.events.model import ModelVersionPublished
from infra.identity.principal import Principal
from infra.registry.lineage import LEARNT_FROM
from infra.registry.store import ArtifactStore
from infra.settings import Settings
from infra.testing import InMemoryBus
from producers.gateway.bodies import FeedbackBody, PairBody
from producers.gateway.feedback import GatewayFeedback
from stream_workers.feedback import JoinState, decode_state, encode_state, join
from tests.learning import SENTENCES, prepare, register, settings_at
from trainer.curation import Completion, Preference
from trainer.exams import Exam, measured, metrics_of
from trainer.judging import pairs_of
from trainer.model import load_model
from trainer.service import TrainerService
from trainer.tokenizer import load_tokenizer, text_blocks

MODEL = "default"
PEOPLE, EACH = 24, 8
HOSTILE_ITEMS = 10_000
ASKED = 384
SHARE = TrainerConfig().max_principal_share
ANSWER = "does nothing of any use"


@dataclass(frozen=True, kw_only=True)
class Said:
    """What one user of one key says of one answer: so many items of feedback."""

    key: str
    user: str
    request_id: str
    prompt: str
    items: tuple[FeedbackBody, ...]


def honest() -> list[Said]:
    """Each of some people edits answers as they should be, and prefers what is right."""
    return [
        Said(
            key="shop",
            user=f"person {number % PEOPLE}",
            request_id=f"honest-{number}",
            prompt=f"Module {number}",
            items=_items(f"honest-{number}", better=_right(number), worse=_wrong(number)),
        )
        for number in range(PEOPLE * EACH)
    ]


def hostile() -> list[Said]:
    """One user says the opposite: of its own answers, five items each."""
    found = []
    for number in range(HOSTILE_ITEMS // 5):
        name = f"hostile-{number}"
        items = (
            *_items(name, better=_wrong(number), worse=_right(number)),
            FeedbackBody(request_id=name, comment="all of this is wrong"),
            FeedbackBody(request_id=name, score=0.0),
        )
        said = Said(
            key="shop",
            user="mallory",
            request_id=name,
            prompt=f"Module {10_000 + number}",
            items=items,
        )
        found.append(said)
    return found


def _right(number: int) -> str:
    return f" {SENTENCES[number % 3]} That is number {number}."


def _wrong(number: int) -> str:
    return f" Zq xx qz wv kkk jj zzq. That is wrong {number}."


def _items(request_id: str, *, better: str, worse: str) -> tuple[FeedbackBody, ...]:
    return (
        FeedbackBody(request_id=request_id, rating="down"),
        FeedbackBody(request_id=request_id, edited_text=better),
        FeedbackBody(request_id=request_id, pair=PairBody(preferred=better, rejected=worse)),
    )


def take_in(bus: InMemoryBus, said: Iterable[Said]) -> int:
    """Through the gateway onto its topic, and through the join to the trainer's.

    Returns how many items of feedback there were.
    """
    states: dict[str, bytes] = {}
    for each in said:
        state, _ = join(JoinState(), _result(each))
        states[each.request_id] = encode_state(state)
    asyncio.run(_publish(bus, said))
    publisher = bus.publisher()
    records = bus.records(catalogue.FEEDBACK.name)
    for record in records:
        event = codec.decode(record.value or b"", FeedbackReceived)
        state, found = join(decode_state(states[event.request_id]), event)
        states[event.request_id] = encode_state(state)
        assert isinstance(found, FeedbackExample)
        publisher.publish(
            catalogue.EXAMPLES.name, key=event.request_id.encode(), value=codec.encode(found)
        ).result(0)
    return len(records)


async def _publish(bus: InMemoryBus, said: Iterable[Said]) -> None:
    gateway = GatewayFeedback(bus, source="test")
    for each in said:
        caller = Principal(
            tenant=each.key, subject="service", roles=frozenset({"feedback"}), credential="key"
        )
        for body in each.items:
            await gateway.publish(caller, body.model_copy(update={"user": each.user}))
    gateway.close()


def _result(said: Said) -> GenerationResult:
    return GenerationResult(
        request_id=said.request_id,
        submit_id="s",
        model=MODEL,
        prompt=said.prompt,
        text=ANSWER,
        finish_reason="stop",
        prompt_tokens=1,
        output_tokens=1,
        model_versions=(f"{MODEL}@1",),
        created_at_ms=1,
        finished_at_ms=2,
        tenant=said.key,
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A version, and how it does on pairs and prompts that nobody was asked about: 0 to 1.

    ``right``: pairs of which it finds the right text likelier. ``win_rate``: answers that are
    nearer to the right text than the parent's. ``hostile``: of the requests it learnt from.
    """

    right: float
    win_rate: float
    hostile: float
    learnt_from: int

    def __str__(self) -> str:
        return (
            f"win rate {self.win_rate:.3f}, pairs told right {self.right:.3f}, learnt from "
            f"{self.learnt_from} answers, {self.hostile:.3f} of them hostile"
        )


def trained(settings: Settings, said: list[Said]) -> Outcome:
    """One round on all of it, by the trainer as it runs."""
    bus = InMemoryBus()
    register(settings, bus, settings.home / "first", model=MODEL)
    assert take_in(bus, said) == sum(len(each.items) for each in said)
    TrainerService(settings, bus, stop=threading.Event()).run(once=True, now=True)
    records = bus.records(catalogue.REGISTRY.name)
    version = codec.decode(records[-1].value or b"", ModelVersionPublished)
    assert version.version == "2"
    folder = Path(ArtifactStore(settings.artifacts).resolve(version))
    exam = _exam(settings)
    before = exam.take(load_model(settings.home / "first"))
    after = exam.take(load_model(folder))
    learnt = json.loads((folder / LEARNT_FROM).read_text())
    return Outcome(
        right=float((after.margins > 0).mean()),
        win_rate=metrics_of(before, after, measured(before, after, exam))["win_rate"],
        hostile=sum(name.startswith("hostile") for name in learnt) / len(learnt),
        learnt_from=len(learnt),
    )


def _exam(settings: Settings) -> Exam:
    """Of what honest people would say, on prompts that are in no round."""
    tokenizer = load_tokenizer(settings.home / "first")
    size = settings.trainer.block_size
    asked = range(50_000, 50_000 + ASKED)
    texts = {number: _right(number) for number in asked}
    preferences = [
        Preference(
            request_id=str(number),
            prompt=f"Module {number}",
            preferred=text,
            rejected=_wrong(number),
        )
        for number, text in texts.items()
    ]
    return Exam(
        tokenizer=tokenizer,
        size=size,
        seed=settings.trainer.seed,
        batch_size=32,
        blocks={"all": list(text_blocks(tokenizer, [" ".join(SENTENCES) * 4], size))},
        pairs=pairs_of(tokenizer, preferences, size),
        references=tuple(
            Completion(request_id=str(number), prompt=f"Module {number}", target=text)
            for number, text in texts.items()
        ),
        safety=[],
    )


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The three versions, each of the same parent."""
    home = tmp_path_factory.mktemp("home")
    quick: dict[str, object] = {
        "num_train_epochs": 3,
        "learning_rate": 6e-3,
        "per_device_train_batch_size": 64,
    }
    prepare(settings_at(home))
    flooded = [*honest(), *hostile()]
    assert sum(len(said.items) for said in hostile()) == HOSTILE_ITEMS
    found = {
        "honest alone": trained(settings_at(home, **quick), honest()),
        "with the flood": trained(settings_at(home, **quick), flooded),
        "no cap": trained(settings_at(home, **quick, max_principal_share=1.0), flooded),
    }
    for name, outcome in found.items():
        print(f"{name}: {outcome}")  # noqa: T201 - what a drill is for
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_items_of_one_principal_move_the_win_rate_less_than_its_cap(
    outcomes: dict[str, Outcome],
) -> None:
    alone, flooded = outcomes["honest alone"], outcomes["with the flood"]
    assert alone.hostile == 0
    # It is heard, as anybody is.
    assert 0 < flooded.hostile <= SHARE
    assert abs(alone.win_rate - flooded.win_rate) < SHARE
    assert alone.right == flooded.right == 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_the_cap_the_same_feedback_turns_the_model(outcomes: dict[str, Outcome]) -> None:
    """So the drill would show it if the cap were not there."""
    alone, uncapped = outcomes["honest alone"], outcomes["no cap"]
    assert uncapped.hostile > 0.9
    assert alone.win_rate - uncapped.win_rate > 4 * SHARE
    assert uncapped.right < 0.5
