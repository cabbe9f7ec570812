"""What a request can ask of an engine beyond one plain completion."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import ChatMessage, SamplingParameters, StructuredOutput
from stream_workers.engine import Engine
from stream_workers.prompt_tokens import PromptTokens

from .answers import GREEDY, collect, completion, text, tokens
from .conftest import WORDS, Weights

if TYPE_CHECKING:
    from stream_workers.engine_vllm import VllmEngine

pytestmark = pytest.mark.asyncio(loop_scope="session")

DIVERSE = msgspec.structs.replace(GREEDY, max_tokens=40, repetition_penalty=1.3)
CHAT = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="What does the fox do?"),
)


def changed(**changes: object) -> SamplingParameters:
    return msgspec.structs.replace(DIVERSE, **changes)


async def test_every_completion_has_its_index_and_its_end(engine: Engine) -> None:
    sampling = changed(n=3, temperature=1.0, seed=11)
    outputs = await collect(engine, sampling)
    assert {output.index for output in outputs} == {0, 1, 2}
    answers = [completion(outputs, index) for index in range(3)]
    for answer in answers:
        assert [one.finish_reason for one in answer] == [None] * (len(answer) - 1) + ["length"]
        assert len(tokens(answer)) == 40
    assert len({text(answer) for answer in answers}) == 3
    again = await collect(engine, sampling)
    assert [tokens(completion(again, index)) for index in range(3)] == [
        tokens(answer) for answer in answers
    ]


async def test_completions_end_each_for_itself(engine: Engine) -> None:
    sampling = changed(n=4, temperature=1.0, seed=3)
    free = await collect(engine, sampling)
    stop = text(completion(free, 2))[10:13]
    outputs = await collect(engine, msgspec.structs.replace(sampling, stop=(stop,)))
    reasons = [completion(outputs, index)[-1].finish_reason for index in range(4)]
    assert reasons[2] == "stop"
    for index in range(4):
        whole = text(completion(free, index))
        expected = whole[: whole.index(stop)] if stop in whole else whole
        assert text(completion(outputs, index)) == expected


async def test_a_stop_string_is_cut_off_or_kept(engine: Engine) -> None:
    whole = text(await collect(engine, DIVERSE))
    stop = whole[20:24]
    for include, end in ((False, whole.index(stop)), (True, whole.index(stop) + len(stop))):
        outputs = await collect(engine, changed(stop=(stop,), include_stop=include))
        assert text(outputs) == whole[:end]
        assert outputs[-1].finish_reason == "stop"


async def test_a_stop_token_ends_the_answer(engine: Engine) -> None:
    whole = await collect(engine, DIVERSE)
    stop = tokens(whole)[9]
    outputs = await collect(engine, changed(stop_token_ids=(stop,)))
    assert tokens(outputs) == tokens(whole)[: tokens(whole).index(stop) + 1]
    assert outputs[-1].finish_reason == "stop"
    assert text(whole).startswith(text(outputs))


async def test_logprobs_come_with_their_tokens(engine: Engine) -> None:
    outputs = await collect(engine, changed(logprobs=3))
    for output in outputs:
        assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    for entry in (entry for output in outputs for entry in output.logprobs):
        assert entry.logprob <= 0
        assert len(entry.top) == 3
        assert [one.logprob for one in entry.top] == sorted(
            (one.logprob for one in entry.top), reverse=True
        )
    assert tokens(outputs) == tokens(await collect(engine, DIVERSE))


async def test_logprobs_may_be_of_the_tokens_alone(engine: Engine) -> None:
    outputs = await collect(engine, changed(logprobs=0))
    assert all(entry.top == () for output in outputs for entry in output.logprobs)
    assert sum(len(output.logprobs) for output in outputs) == 40


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_the_likeliest_token_is_the_greedy_one(vllm_engine: VllmEngine) -> None:
    outputs = await collect(vllm_engine, msgspec.structs.replace(GREEDY, logprobs=2))
    entries = [entry for output in outputs for entry in output.logprobs]
    assert all(entry.top[0].token_id == entry.token_id for entry in entries)
    assert all(entry.top[0].logprob == entry.logprob for entry in entries)
    shown = text(outputs).replace("\ufffd", "")
    assert "".join(entry.token for entry in entries) == shown


async def test_penalties_and_min_p_are_taken(engine: Engine) -> None:
    outputs = await collect(
        engine, changed(presence_penalty=1.5, frequency_penalty=-0.5, min_p=0.01, temperature=0.9)
    )
    assert len(tokens(outputs)) == 40


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_strong_penalty_changes_greedy_tokens(vllm_engine: VllmEngine) -> None:
    plain = tokens(await collect(vllm_engine, GREEDY))
    for field in ("presence_penalty", "frequency_penalty"):
        penalized = msgspec.structs.replace(GREEDY, **{field: 2.0})
        assert tokens(await collect(vllm_engine, penalized)) != plain


async def test_beams_come_whole_and_best_first(engine: Engine) -> None:
    sampling = SamplingParameters(max_tokens=6, beam_width=4, n=3, ignore_eos=True)
    outputs = await collect(engine, sampling)
    assert [output.index for output in outputs] == [0, 1, 2]
    assert {output.finish_reason for output in outputs} == {"length"}
    assert [len(output.token_ids) for output in outputs] == [6, 6, 6]
    assert len({output.token_ids for output in outputs}) == 3
    assert all(output.text for output in outputs)
    assert engine.load().running + engine.load().waiting == 0


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_one_beam_is_greedy_and_more_are_likelier(vllm_engine: VllmEngine) -> None:
    greedy = await collect(vllm_engine, msgspec.structs.replace(GREEDY, logprobs=0))
    sampling = SamplingParameters(max_tokens=12, beam_width=1, ignore_eos=True)
    (one,) = await collect(vllm_engine, sampling)
    assert list(one.token_ids) == tokens(greedy)
    assert one.text == text(greedy)
    wide = msgspec.structs.replace(sampling, beam_width=8)
    (best,) = await collect(vllm_engine, wide)
    assert await logprob(vllm_engine, best.token_ids) >= await logprob(vllm_engine, one.token_ids)


async def logprob(engine: VllmEngine, answer: tuple[int, ...]) -> float:
    """The answer's sum, by asking for its tokens one at a time."""
    total = 0.0
    sampling = msgspec.structs.replace(GREEDY, max_tokens=1, logprobs=20)
    for at, token in enumerate(answer):
        before = engine._tokens.of(WORDS) + list(answer[:at])
        params = engine._sampling_params(sampling, len(before))
        async with engine._outputs(f"score-{at}", before, params, "default@1") as outputs:
            async for output in outputs:
                total += output.outputs[0].logprobs[0][token].logprob
    return total


async def test_a_choice_is_one_of_them(engine: Engine) -> None:
    choice = ("the quick fox", "a lazy dog", "東京")
    seen = set()
    for seed in range(6):
        sampling = SamplingParameters(
            temperature=1.0, seed=seed, structured=StructuredOutput(choice=choice)
        )
        outputs = await collect(engine, sampling)
        assert outputs[-1].finish_reason == "stop"
        seen.add(text(outputs))
    assert seen <= set(choice)
    assert len(seen) > 1


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_regex_is_matched(vllm_engine: VllmEngine) -> None:
    pattern = r"[a-c]{3}-\d{2}(x|y)"
    for seed in range(4):
        sampling = SamplingParameters(
            temperature=1.0, seed=seed, structured=StructuredOutput(regex=pattern)
        )
        outputs = await collect(vllm_engine, sampling)
        assert re.fullmatch(pattern, text(outputs))
        assert outputs[-1].finish_reason == "stop"


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_schema_is_obeyed(vllm_engine: VllmEngine) -> None:
    import jsonschema

    schema = {
        "type": "object",
        "properties": {
            "size": {"enum": ["small", "large"]},
            "legs": {"type": "integer", "minimum": 2, "maximum": 8},
        },
        "required": ["size", "legs"],
        "additionalProperties": False,
    }
    structured = StructuredOutput(json_schema=json.dumps(schema))
    for seed in range(4):
        sampling = SamplingParameters(
            max_tokens=150, temperature=1.0, seed=seed, structured=structured
        )
        outputs = await collect(vllm_engine, sampling)
        assert outputs[-1].finish_reason == "stop"
        jsonschema.validate(json.loads(text(outputs)), schema)


@pytest.mark.parametrize(
    "structured",
    [
        StructuredOutput(json_schema='{"type": "nothing"}'),
        StructuredOutput(json_schema='{"type": "string", "pattern": "("}'),
        StructuredOutput(json_schema='{"type": "object", "properties": 5}'),
        StructuredOutput(json_schema='{"$ref": "#/definitions/missing"}'),
        StructuredOutput(regex="(unclosed"),
        StructuredOutput(regex="[z-a]"),
        StructuredOutput(regex=r"(?<name>a)\k<name>"),
    ],
)
async def test_a_bad_grammar_is_refused_and_hurts_nobody(
    engine: Engine, structured: StructuredOutput
) -> None:
    sampling = SamplingParameters(structured=structured)
    with pytest.raises(RequestRefused) as caught:
        engine.check(WORDS, sampling)
    assert caught.value.code == "invalid_sampling"
    assert len(caught.value.message) > 20
    with pytest.raises(RequestRefused):
        await collect(engine, sampling)
    assert len(tokens(await collect(engine, GREEDY))) == 12


async def test_messages_are_answered(engine: Engine) -> None:
    outputs = await collect(engine, GREEDY, CHAT)
    assert len(tokens(outputs)) == 12
    assert outputs[0].prompt_tokens == engine.check(CHAT, GREEDY)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_messages_go_through_the_template(vllm_engine: VllmEngine) -> None:
    written = "system: Be brief.\nuser: What does the fox do?\nassistant:"
    assert tokens(await collect(vllm_engine, GREEDY, CHAT)) == tokens(
        await collect(vllm_engine, GREEDY, written)
    )


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_what_the_template_refuses_is_refused(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRefused, match="nobody may speak") as caught:
        vllm_engine.check((ChatMessage(role="nobody", content="hm"),), GREEDY)
    assert caught.value.code == "invalid_messages"


def without_template(weights: Weights) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(weights.second)


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_tokenizer_without_template_refuses_messages(weights: Weights) -> None:
    with pytest.raises(RequestRefused) as caught:
        PromptTokens(without_template(weights), context=256).of(CHAT)
    assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParameters(n=2, temperature=0.0),
        SamplingParameters(beam_width=2, stop=("x",)),
        SamplingParameters(min_tokens=5, max_tokens=4),
        SamplingParameters(seed=2**70),
    ],
)
async def test_senseless_sampling_is_refused(engine: Engine, sampling: SamplingParameters) -> None:
    with pytest.raises(RequestRefused) as caught:
        engine.check(WORDS, sampling)
    assert caught.value.code == "invalid_sampling"


@pytest.mark.vllm
@pytest.mark.filterwarnings("default")
async def test_a_stop_token_beyond_the_vocabulary_is_refused(vllm_engine: VllmEngine) -> None:
    with pytest.raises(RequestRefused, match="stop_token_ids"):
        vllm_engine.check(WORDS, SamplingParameters(stop_token_ids=(100_000,)))
