"""Past requests put to a version: which are taken, what is compared, and what the report says."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

import infra.kafka.bus
from infra.cli import cli
from infra.contracts.catalogue import EXAMPLES, REQUESTS, REQUESTS_BATCH, RESULTS
from infra.contracts.codec import encode
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.feedback import FeedbackExample
from infra.contracts.events.generation import (
    ChatMessage,
    FinishReason,
    GenerationError,
    GenerationRequest,
    GenerationResult,
    SamplingParameters,
)
from infra.contracts.events.model import (
    GateDecision,
    RolloutChanged,
)
from infra.registry.client import publish_rollout, read_registry
from infra.registry.store import ArtifactStore
from infra.testing import InMemoryBus, InMemoryPublisher
from stream_workers.engine import EngineDead, EngineOutput
from stream_workers.engine_memory import MemoryEngine
from stream_workers.replay import Target, answers_of, target_of
from stream_workers.replay_figures import figures_of, lead_of, pair_of, repetition
from stream_workers.replay_past import Answer, Case, Past, read_past
from stream_workers.replay_report import REPORT, Replay, most_different, summary, write
from tests.gates import decision, publish_files

GREEDY = SamplingParameters(temperature=0, max_tokens=8)


class ReadOnlyBus(InMemoryBus):
    """Refuses publishers and groups."""

    def reader(self, topics: Any, **options: Any) -> Any:
        assert options.get("group") is None
        return super().reader(topics, **options)

    def publisher(self, *, client_id: str = "feedloom") -> InMemoryPublisher:
        if self.sealed:
            raise AssertionError("a replay publishes nothing")
        return super().publisher(client_id=client_id)

    sealed = False


class Topics:
    """A past, written down by hand."""

    def __init__(self) -> None:
        self.bus = ReadOnlyBus()

    def ask(
        self,
        request_id: str,
        *,
        prompt: str = "one two three",
        model: str = "default",
        sampling: SamplingParameters = GREEDY,
        submit_id: str = "s",
        batch: bool = False,
        created_at_ms: int = 0,
        messages: tuple[ChatMessage, ...] = (),
    ) -> GenerationRequest:
        request = GenerationRequest(
            request_id=request_id,
            submit_id=submit_id,
            prompt=prompt,
            messages=messages,
            model=model,
            sampling=sampling,
            created_at_ms=created_at_ms,
        )
        topic = REQUESTS_BATCH if batch else REQUESTS
        self._write(topic.name, request_id, encode(request))
        return request

    def answer(
        self,
        request: GenerationRequest,
        text: str = "an answer",
        *,
        finish: FinishReason = "stop",
        error: GenerationError | None = None,
        **changes: Any,
    ) -> GenerationResult:
        result = GenerationResult(
            request_id=request.request_id,
            submit_id=request.submit_id,
            model=request.model,
            prompt=request.prompt,
            text=text,
            finish_reason=finish,
            prompt_tokens=3,
            output_tokens=len(text.split()),
            model_versions=("default@1",),
            created_at_ms=0,
            finished_at_ms=1,
            error=error,
        )
        result = msgspec.structs.replace(result, **changes)
        self._write(RESULTS.name, request.request_id, encode(result))
        return result

    def say(self, result: GenerationResult, **said: Any) -> None:
        values: dict[str, Any] = {
            "request_id": result.request_id,
            "prompt": result.prompt,
            "output": result.text,
            "model": result.model,
            "model_versions": result.model_versions,
            "feedback_ids": ("f",),
            "updated_at_ms": 2,
        }
        example = FeedbackExample(**(values | said))
        self._write(EXAMPLES.name, result.request_id, encode(example))

    def forget(self, request_id: str) -> None:
        self._write(EXAMPLES.name, request_id, None)

    def _write(self, topic: str, key: str, value: bytes | None) -> None:
        self.bus.publisher().publish(topic, key=key.encode(), value=value).result(0)


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.request.request_id for case in cases]


def test_a_request_is_joined_with_the_answer_to_that_very_submit() -> None:
    topics = Topics()
    first = topics.ask("a", submit_id="1")
    topics.ask("a", submit_id="2", prompt="asked again")
    topics.answer(first, "the first answer")
    past = read_past(topics.bus, model="default", since_ms=0, limit=10)
    (case,) = past.cases
    assert (case.request, case.recorded.text) == (first, "the first answer")
    assert (past.requests, past.fit) == (2, 1)
    assert past.skipped == {"no answer on the topic": 1}


def test_what_cannot_be_compared_is_counted_by_its_reason() -> None:
    topics = Topics()
    topics.answer(topics.ask("fine"))
    topics.answer(topics.ask("cut off"), finish="length")
    topics.answer(topics.ask("elsewhere", model="other"))
    topics.answer(topics.ask("stopped"), finish="cancelled")
    topics.answer(topics.ask("late"), finish="deadline_exceeded")
    broken = GenerationError(code="prompt_too_long", message="600 tokens")
    topics.answer(topics.ask("refused"), finish="error", error=broken)
    topics.ask("waiting")
    topics._write(REQUESTS.name, "nonsense", b"{")
    past = read_past(topics.bus, model="default", since_ms=0, limit=10)
    assert sorted(ids(past.cases)) == ["cut off", "fine"]
    assert past.requests == 8
    assert past.looked_at == 6
    assert past.skipped == {
        "asked for another model": 1,
        "cancelled": 1,
        "deadline exceeded": 1,
        "failed: prompt_too_long": 1,
        "no answer on the topic": 1,
        "unreadable": 1,
    }


def test_batch_requests_are_read_on_demand_and_nothing_before_the_moment() -> None:
    topics = Topics()
    topics.answer(topics.ask("batch", batch=True))
    topics.answer(topics.ask("interactive"))
    now_ms = time.time_ns() // 1_000_000

    def found(since_ms: int, *, batch: bool) -> list[str]:
        past = read_past(topics.bus, model="default", since_ms=since_ms, limit=10, batch=batch)
        return sorted(ids(past.cases))

    assert found(0, batch=False) == ["interactive"]
    assert found(0, batch=True) == ["batch", "interactive"]
    assert found(now_ms + 3_600_000, batch=True) == []


@pytest.mark.parametrize("seed", range(3))
def test_of_many_one_of_each_part_is_taken_whatever_the_order_of_reading(seed: int) -> None:
    names = [f"r{number:03}" for number in range(100)]
    random.Random(seed).shuffle(names)
    topics = Topics()
    for name in names:
        topics.answer(topics.ask(name, created_at_ms=int(name[1:])))
    past = read_past(topics.bus, model="default", since_ms=0, limit=10)
    assert past.looked_at == 100
    assert past.fit == 100
    numbers = [int(name[1:]) for name in ids(past.cases)]
    assert [number // 10 for number in numbers] == list(range(10))
    # Two callers that take turns are both heard.
    assert {number % 2 for number in numbers} == {0, 1}
    assert numbers[:3] == [4, 10, 25]


@pytest.mark.parametrize(("max_bytes", "held"), [(10**6, range(50, 51)), (8_000, range(10, 40))])
def test_of_very_many_a_part_is_looked_at_whatever_the_order_of_reading(
    max_bytes: int, held: range
) -> None:
    def read(names: list[int]) -> Past:
        topics = Topics()
        for name in names:
            request = topics.ask(f"r{name:03}", created_at_ms=name, prompt="word " * (name % 7 + 1))
            topics.answer(request)
        return read_past(topics.bus, model="default", since_ms=0, limit=5, max_bytes=max_bytes)

    names = list(range(200))
    first = read(names)
    assert first.requests == 200
    assert first.looked_at == first.fit
    assert first.fit in held
    assert len(first.cases) == 5
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert read(names) == first


def test_feedback_on_another_answer_and_forgotten_feedback_do_not_count() -> None:
    topics = Topics()
    results = {name: topics.answer(topics.ask(name), f"text of {name}") for name in "abc"}
    topics.say(results["a"], ups=1)
    topics.say(results["b"], ups=1, output="what an earlier submit answered")
    topics.say(results["c"], edited_text="better")
    topics.forget("c")
    past = read_past(topics.bus, model="default", since_ms=0, limit=10)
    assert {
        case.request.request_id: case.feedback.ups
        for case in past.cases
        if case.feedback is not None
    } == {"a": 1}


@pytest.mark.parametrize(
    ("sampling", "resumed", "repeatable"),
    [
        (SamplingParameters(temperature=0), 0, True),
        (SamplingParameters(temperature=0), 5, True),
        (SamplingParameters(beam_width=2), 0, True),
        (SamplingParameters(temperature=1, seed=7), 0, True),
        (SamplingParameters(temperature=1, seed=7), 5, False),
        (SamplingParameters(temperature=1), 0, False),
    ],
)
def test_only_greedy_and_seeded_answers_can_be_had_again(
    sampling: SamplingParameters, resumed: int, repeatable: bool
) -> None:
    topics = Topics()
    topics.answer(topics.ask("a", sampling=sampling), resumed_tokens=resumed)
    (case,) = read_past(topics.bus, model="default", since_ms=0, limit=1).cases
    assert case.repeatable is repeatable


def cases_of(*recorded: str, edited: dict[int, str] | None = None, **changes: Any) -> list[Case]:
    topics = Topics()
    for number, text in enumerate(recorded):
        request = topics.ask(f"r{number}", created_at_ms=number, **changes)
        result = topics.answer(request, text)
        if edited and number in edited:
            topics.say(result, edited_text=edited[number], downs=1)
    return list(read_past(topics.bus, model="default", since_ms=0, limit=100).cases)


def answer(text: str, *, finish: str = "stop", **values: Any) -> Answer:
    return Answer(text=text, finish_reason=finish, tokens=len(text.split()), **values)


def pairs_of(cases: list[Case], *texts: str) -> list[Any]:
    return [
        pair_of(case, case.recorded, answer(text)) for case, text in zip(cases, texts, strict=True)
    ]


def test_the_figures_say_what_is_the_same_and_how_the_rest_differs() -> None:
    cases = cases_of("a b c d", "abcd efgh", "one two")
    figures = figures_of(pairs_of(cases, "a b c d", "abcd xxxx", "one two three four"))
    assert (figures.repeatable, figures.same) == (3, 1)
    assert figures.lead == pytest.approx((1 + 5 / 9 + 7 / 18) / 3)
    assert figures.changed == pytest.approx((0 + 4 / 9 + 11 / 18) / 3)
    assert figures.length_ratio == pytest.approx(10 / 8)
    assert figures.distances is None
    assert figures.marks == ()


def test_answers_that_differ_by_chance_do_not_count_as_changed() -> None:
    cases = cases_of("a b", sampling=SamplingParameters(temperature=1))
    figures = figures_of(pairs_of(cases, "c d"))
    assert (figures.repeatable, figures.same, figures.lead) == (0, 0, None)
    assert figures.length_ratio == 1


def test_nearer_to_what_people_wrote() -> None:
    edits = {0: "good text", 1: "good text", 2: "good text", 3: "good text"}
    cases = cases_of("bad text", "good word", "goat text", "bad", "good", edited=edits)
    pairs = pairs_of(cases[:3], "good text", "bad", "goat text")
    pairs.append(pair_of(cases[3], cases[3].recorded, Answer(error="engine_error: no")))
    pairs += pairs_of(cases[4:], "good")
    assert [pair.nearness for pair in pairs] == ["nearer", "farther", "as near", "farther", None]
    figures = figures_of(pairs)
    assert (figures.nearer, figures.as_near, figures.farther) == (1, 1, 2)
    assert (figures.edited, figures.disliked, figures.liked) == (4, 4, 0)


def test_what_deserves_a_look_is_marked() -> None:
    cases = cases_of(*["one two three four five"] * 10)
    said_again = " ".join(["round and round it goes"] * 5)
    answers = [
        Answer(error="prompt_too_long: 600 tokens"),
        answer(" "),
        *[answer(said_again, finish="length") for _ in range(8)],
    ]
    pairs = [pair_of(case, case.recorded, one) for case, one in zip(cases, answers, strict=True)]
    assert figures_of(pairs).marks == (
        "1 requests failed",
        "11.1% of the answers are empty (0.0%)",
        "answers are 4.44 times as long",
        "89 points more of the answers are cut off at their limit",
        "77 points more of the runs of 4 words are said again",
    )
    short = [pair_of(case, case.recorded, answer("one two three")) for case in cases]
    assert figures_of(short).marks == ("answers are 0.60 times as long",)


def test_repetition_is_the_share_of_runs_said_before() -> None:
    assert repetition("a b c") is None
    assert repetition("a b c d e") == 0
    assert repetition("a a a a a a") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [("", "", 1), ("abc", "", 0), ("abc", "abd", 2 / 3), ("a", "a", 1)],
)
def test_the_lead_is_what_two_texts_begin_with_alike(before: str, after: str, share: float) -> None:
    assert lead_of(before, after) == pytest.approx(share)


def ask(engine: MemoryEngine, cases: list[Case], **options: Any) -> tuple[list[Answer], list[str]]:
    said: list[str] = []
    wanted = options.pop("target", Target(name="default@2", weights="default@2", path="/"))
    answers = asyncio.run(
        answers_of(wanted, cases, build=lambda _: engine, say=said.append, **options)
    )
    return answers, said


def test_the_same_version_gives_the_recorded_answer_again() -> None:
    first, _ = ask(MemoryEngine(version="default@2"), cases_of("x", prompt="some words to draw"))
    again, said = ask(MemoryEngine(version="default@2"), cases_of("x", prompt="some words to draw"))
    assert first[0].text == again[0].text
    assert first[0].versions == ("default@2",)
    assert (first[0].finish_reason, first[0].tokens) == ("length", 8)
    assert first[0].ttft_ms is not None
    assert first[0].itl_ms is not None
    assert said == ["loading default@2", "default@2: 1 of 1 answered"]


def test_conversations_and_several_completions_are_asked_as_they_were() -> None:
    messages = (ChatMessage(role="user", content="draw from these"),)
    several = SamplingParameters(temperature=1, seed=3, n=2, max_tokens=4)
    cases = cases_of("x", prompt="", messages=messages, sampling=several)
    ((one,), _) = ask(MemoryEngine(version="default@2"), cases)
    assert one.error is None
    assert one.tokens == 4
    assert set(one.text.split()) <= {"draw", "from", "these"}


def test_a_failure_is_an_answer_and_the_others_go_on() -> None:
    cases = [*cases_of("x", prompt="one two"), *cases_of("y", prompt="word " * 40)]
    engine = MemoryEngine(version="default@2", max_model_len=32, fail_next=1)
    (failed, refused), said = ask(engine, cases, concurrency=1)
    assert failed.error == "engine_error: scripted failure"
    assert refused.error is not None
    assert refused.error.startswith("prompt_too_long: the prompt has 40 tokens")
    assert said[-1] == "default@2: 2 of 2 answered, 2 failed"


def test_a_dead_engine_ends_the_replay_and_is_closed() -> None:
    class Dying(MemoryEngine):
        closed = False

        async def close(self) -> None:
            self.closed = True

    engine = Dying(version="default@2")
    engine.dead = True
    with pytest.raises(EngineDead):
        ask(engine, cases_of("x", "y", "z"))
    assert engine.closed


def test_no_more_than_so_many_are_asked_at_once() -> None:
    most = 0

    class Counting(MemoryEngine):
        def _output(self, *arguments: Any) -> EngineOutput:
            nonlocal most
            most = max(most, self.load().running)
            return super()._output(*arguments)

    answers, said = ask(Counting(version="default@2"), cases_of(*["x"] * 40), concurrency=6)
    assert most == 6
    assert len(answers) == 40
    assert len(said) == 11


def test_an_adapter_answers_beside_its_base(tmp_path: Path) -> None:
    lora = Target(name="default@3", weights="default@1", path=str(tmp_path), adapter=str(tmp_path))
    engine = MemoryEngine(version="default@1")
    (one,), _ = ask(engine, cases_of("x"), target=lora)
    assert one.versions == ("default@3",)


class Place:
    """A registry and its files."""

    def __init__(self, topics: Topics, folder: Path) -> None:
        self.topics = topics
        self.store = ArtifactStore(folder / "artifacts")
        self._folder = folder

    def publish(
        self,
        name: str,
        *,
        gate: GateDecision | None = None,
        base: str | None = None,
        stable: bool = False,
    ) -> None:
        source = self._folder / f"source-{name}"
        source.mkdir()
        (source / "config.json").write_text(json.dumps({"name": name}))
        publish_files(
            self.topics.bus,
            self.store,
            source,
            model="default",
            version=name,
            gate=gate,
            base=base,
        )
        if stable:
            change = RolloutChanged(model="default", revision=1, stable=name, changed_at_ms=0)
            publish_rollout(self.topics.bus.publisher(), change)


def test_a_version_is_found_with_its_base_and_what_stands_against_it(tmp_path: Path) -> None:
    place = Place(Topics(), tmp_path)
    place.publish("1")
    place.publish("2", gate=decision(passed=False, reason="it swore"))
    place.publish("3", base="1")
    place.publish("4", base="9")
    state = read_registry(place.topics.bus)

    def found(version: str) -> Target:
        return target_of(state, place.store, "default", version)

    assert found("1").refused is None
    assert found("2").refused == "its gate rejected it: it swore"
    lora = found("3")
    assert (lora.name, lora.weights, lora.path) == ("default@3", "default@1", found("1").path)
    assert lora.adapter is not None
    assert Path(lora.adapter, "config.json").read_text() == '{"name": "3"}'
    with pytest.raises(ConfigurationError, match="no version default@9; versions: 1, 2, 3, 4"):
        found("4")


def replayed(cases: list[Case], *texts: str, **changes: Any) -> Replay:
    topics = Topics()
    pairs = pairs_of(cases, *texts)
    values: dict[str, Any] = {
        "candidate": "default@2",
        "against": "the recorded answers",
        "fresh": False,
        "engine": "memory",
        "since_ms": 0,
        "began_ms": 0,
        "seconds": 1.0,
        "past": read_past(topics.bus, model="default", since_ms=0, limit=1),
        "pairs": pairs,
        "figures": figures_of(pairs),
    }
    return Replay(**(values | changes))


def test_the_page_escapes_what_people_and_models_write(tmp_path: Path) -> None:
    evil = "<script>alert('&')</script>"
    cases = cases_of(evil, prompt=evil, edited={0: evil})
    found = replayed(cases, evil + " more", refused=evil, candidate=f"default@{evil}")
    write(tmp_path, found)
    page = (tmp_path / REPORT).read_text("utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;&amp;&#x27;)&lt;/script&gt;") >= 5
    assert "http" not in page.replace("http-equiv", "")


def test_an_answer_that_says_nothing_can_be_seen(tmp_path: Path) -> None:
    write(tmp_path, replayed(cases_of("something"), " \n"))
    assert "<em>nothing</em>" in (tmp_path / REPORT).read_text("utf-8")


def test_the_most_different_come_first() -> None:
    chance = cases_of("q", sampling=SamplingParameters(temperature=1))
    cases = [*cases_of("a b", "a b", "a b", "a b"), *chance]
    pairs = pairs_of(cases, "a b", "a c", "", "x y z", "entirely different")
    texts = [pair.candidate.text for pair in most_different(pairs, 4)]
    assert texts == ["", "x y z", "a c", "entirely different"]


def test_the_command_compares_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics()
    place = Place(topics, tmp_path)
    place.publish("1", stable=True)
    place.publish("2", gate=decision(passed=False, reason="it swore"))
    for number in range(12):
        request = topics.ask(f"r{number}", prompt=f"words of prompt {number} to draw from")
        result = topics.answer(request, f"the recorded answer {number}")
        if number < 3:
            topics.say(result, edited_text=f"words of prompt {number}", ups=1)
    topics.answer(topics.ask("stopped"), finish="cancelled")
    before = {name: len(topics.bus.records(name)) for name in topics.bus.logs}
    topics.bus.sealed = True
    monkeypatch.setattr(infra.kafka.bus, "connect", lambda _: topics.bus)
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))

    def run(*options: str) -> Any:
        outcome = CliRunner().invoke(
            cli, ["models", "replay", "--engine", "memory", "--since", "1h", *options]
        )
        assert outcome.exit_code == 0, outcome.output
        return outcome

    outcome = run("--version", "default@2")
    assert "default@2: 12 of 12 answered" in outcome.stderr
    assert "default@2 against the recorded answers" in outcome.stdout
    assert "1 cancelled" in outcome.stdout
    assert "nearer to what people wrote  3 of 3" in outcome.stdout
    assert "default@2 may not serve: its gate rejected it: it swore" in outcome.stdout
    (folder,) = (tmp_path / "replays").iterdir()
    assert folder.name.startswith("default-2-")
    lines = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    first = next(line for line in lines if line["request_id"] == "r0")
    assert first["recorded"]["text"] == "the recorded answer 0"
    assert first["candidate"]["versions"] == ["default@2"]
    assert first["edited_text"] == "words of prompt 0"

    place_of = tmp_path / "there"
    outcome = run("--version", "1", "--against", "stable", "--limit", "4", "--out", str(place_of))
    assert "default@1 against default@1" in outcome.stdout
    assert "4 of 4 greedy or seeded (100%)" in outcome.stdout
    assert (place_of / REPORT).is_file()

    outcome = CliRunner().invoke(
        cli, ["models", "replay", "--engine", "memory", "--version", "1", "--model", "other"]
    )
    assert isinstance(outcome.exception, ConfigurationError)
    assert {name: len(topics.bus.records(name)) for name in topics.bus.logs} == before
    assert topics.bus.committed == {}


def test_nothing_to_compare_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topics = Topics()
    Place(topics, tmp_path).publish("1", stable=True)
    topics.answer(topics.ask("stopped"), finish="cancelled")
    monkeypatch.setattr(infra.kafka.bus, "connect", lambda _: topics.bus)
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))
    outcome = CliRunner().invoke(cli, ["models", "replay", "--version", "1", "--engine", "memory"])
    assert isinstance(outcome.exception, ConfigurationError)
    assert "none of 1 requests can be compared (1 cancelled)" in str(outcome.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--since", "soon"), "'soon' is not such as 90s, 30m, 24h or 7d"),
        (("--model", "other", "--version", "default@1"), "--version is of default, --model says"),
        (("--limit", "0"), "0 is not in the range"),
    ],
)
def test_mistakes_in_the_options_are_named(options: tuple[str, ...], message: str) -> None:
    outcome = CliRunner().invoke(cli, ["models", "replay", "--version", "1", *options])
    assert outcome.exit_code == 2
    assert message in outcome.output


def test_figures_are_the_same_in_words_and_on_the_page(tmp_path: Path) -> None:
    found = replayed(cases_of("a b", "c d"), "a b", "c d e")
    write(tmp_path, found)
    page = (tmp_path / REPORT).read_text("utf-8")
    text = summary(found)
    for said in ("1 of 2 greedy or seeded (50%)", "1.25 times as many tokens"):
        assert said in text
        assert said in page
