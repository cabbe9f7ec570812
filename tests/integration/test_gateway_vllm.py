"""OpenAI's own client on the real engine: what it asks is what vLLM does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import openai
import pytest

from .conftest import Gateways, Served

pytestmark = [pytest.mark.kafka, pytest.mark.vllm]

MESSAGES = [
    {"role": "system", "content": "the quick brown fox"},
    {"role": "user", "content": "jumps over the lazy dog"},
]
TURN = {"model": "default", "messages": MESSAGES}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    gateways = Gateways(served.kafka, served.home)
    try:
        url, _ = gateways.start()
        key = gateways.key("acme", "caller", "feedback")
        with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as made:
            yield made
    finally:
        gateways.close()


def test_the_official_client_works_unmodified(client: openai.OpenAI) -> None:
    chat = client.chat.completions
    whole = chat.create(**TURN, max_tokens=24, seed=11)  # type: ignore[call-overload]
    assert whole.usage.completion_tokens <= 24
    assert whole.usage.prompt_tokens > 10
    assert re.fullmatch(r"default@\d", whole.system_fingerprint)

    events = list(
        chat.create(  # type: ignore[call-overload]
            **TURN, max_tokens=24, seed=11, stream=True, stream_options={"include_usage": True}
        )
    )
    streamed = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert streamed == whole.choices[0].message.content, "one seed gave two answers"
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens

    several = chat.create(**TURN, max_tokens=12, n=3, seed=5, temperature=1.0)  # type: ignore[call-overload]
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) > 1
    by_index = {0: "", 1: "", 2: ""}
    for event in chat.create(  # type: ignore[call-overload]
        **TURN, max_tokens=12, n=3, seed=5, temperature=1.0, stream=True
    ):
        for choice in event.choices:
            by_index[choice.index] += choice.delta.content or ""
    assert list(by_index.values()) == texts

    stop = whole.choices[0].message.content[4:6]
    stopped = chat.create(**TURN, max_tokens=24, seed=11, stop=[stop])  # type: ignore[call-overload]
    assert stop not in stopped.choices[0].message.content
    assert stopped.choices[0].finish_reason == "stop"

    likely = chat.create(  # type: ignore[call-overload]
        **TURN, max_tokens=6, temperature=0, logprobs=True, top_logprobs=4
    )
    tokens = likely.choices[0].logprobs.content
    assert len(tokens) == 6
    for token in tokens:
        best = max(other.logprob for other in token.top_logprobs)
        assert math.isclose(token.logprob, best, abs_tol=1e-3), "greedy takes the likeliest"

    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    shaped = chat.create(  # type: ignore[call-overload]
        **TURN,
        max_tokens=64,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )
    assert set(json.loads(shaped.choices[0].message.content)) == {"ok"}

    text = client.completions.create(model="default", prompt="the quick", max_tokens=5, logprobs=2)
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.tokens or []) == 5
    with pytest.raises(openai.BadRequestError, match="context"):
        client.completions.create(model="default", prompt="word " * 5000, max_tokens=5)
    with pytest.raises(openai.BadRequestError) as caught:
        chat.create(model="default", messages=[{"role": "nobody", "content": "x"}])  # type: ignore[list-item,misc]
    assert caught.value.param == "messages"
