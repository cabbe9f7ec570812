"""From a request body to what the platform is asked. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from infra.contracts.config_sections import SamplingConfig
from infra.contracts.events.generation import ChatMessage, StructuredOutput
from producers.affinity import prefix_key
from producers.gateway.bodies import ChatBody, CompletionBody, GenerationBody
from producers.gateway.errors import invalid

BYTES_PER_TOKEN = 4
"""Of a prompt, to reserve quota before a worker has counted its tokens."""
ANY_JSON_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call, in the platform's terms. ``sampling`` has the fields that the caller named."""

    model: str
    prompt: str
    messages: tuple[ChatMessage, ...]
    sampling: dict[str, Any]
    affinity_key: str | None
    user: str | None
    metadata: dict[str, str]
    stream: bool
    include_usage: bool
    background: bool
    timeout_s: float | None

    def check_length(self, most: int) -> None:
        """Raises ApiError 400: prompt, or messages together, have more than ``most`` characters."""
        found = len(self.prompt) + sum(len(one.content) for one in self.messages)
        if found > most:
            raise invalid(
                f"the prompt has {found} characters; {most} may be", code="prompt_too_long"
            )

    def tokens_at_most(self, defaults: SamplingConfig) -> int:
        """What to reserve of a quota: an estimate for the prompt, the most for the answer."""
        text = len(self.prompt.encode("utf-8", "replace"))
        text += sum(len(one.content.encode("utf-8", "replace")) for one in self.messages)
        answer = self.sampling.get("max_tokens", defaults.max_tokens)
        return -(-text // BYTES_PER_TOKEN) + int(answer) * int(self.sampling.get("n", 1))


def question(body: ChatBody | CompletionBody) -> Question:
    """What a body asks. Raises ApiError 400 where fields contradict each other."""
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options need stream: true", param="stream_options")
    if (body.n or 1) > 1 and body.temperature == 0:
        raise invalid("n above 1 needs a temperature above 0", param="n")
    messages: tuple[ChatMessage, ...] = ()
    prompt = ""
    if isinstance(body, ChatBody):
        messages = tuple(
            ChatMessage(role=one.role, content=_text(one.content)) for one in body.messages
        )
    else:
        prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    return Question(
        model=body.model,
        prompt=prompt,
        messages=messages,
        sampling=_sampling(body),
        affinity_key=_affinity(body, messages),
        user=body.user,
        metadata=dict(body.metadata or {}),
        stream=bool(body.stream),
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        background=bool(body.background),
        timeout_s=body.timeout_s,
    )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


_SAME_NAME = (
    "temperature",
    "top_p",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
)


def _sampling(body: ChatBody | CompletionBody) -> dict[str, Any]:
    given = {name: getattr(body, name) for name in _SAME_NAME if getattr(body, name) is not None}
    given |= {"max_tokens": limit} if (limit := _max_tokens(body)) is not None else {}
    if body.stop is not None:
        given["stop"] = [body.stop] if isinstance(body.stop, str) else body.stop
    if body.include_stop_str_in_output is not None:
        given["include_stop"] = body.include_stop_str_in_output
    if (logprobs := _logprobs(body)) is not None:
        given["logprobs"] = logprobs
    if (structured := _structured(body)) is not None:
        given["structured"] = msgspec.to_builtins(structured)
    return given


def _max_tokens(body: ChatBody | CompletionBody) -> int | None:
    newer = body.max_completion_tokens if isinstance(body, ChatBody) else None
    if newer is not None and body.max_tokens not in (None, newer):
        raise invalid(
            "max_tokens and max_completion_tokens differ: give one of them",
            param="max_completion_tokens",
        )
    return body.max_tokens if newer is None else newer


def _logprobs(body: ChatBody | CompletionBody) -> int | None:
    if isinstance(body, CompletionBody):
        return body.logprobs
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs need logprobs: true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _structured(body: GenerationBody) -> StructuredOutput | None:
    asked, extension = body.response_format, body.structured_outputs
    if asked is None or asked.type == "text":
        return None if extension is None else _extension(body)
    if extension is not None:
        raise invalid(
            "give either response_format or structured_outputs", param="structured_outputs"
        )
    if asked.type == "json_object":
        return StructuredOutput(json_schema=ANY_JSON_OBJECT)
    if asked.json_schema is None:
        raise invalid("response_format.json_schema is missing", param="response_format.json_schema")
    return StructuredOutput(json_schema=msgspec.json.encode(asked.json_schema.schema_).decode())


def _extension(body: GenerationBody) -> StructuredOutput:
    given = body.structured_outputs
    assert given is not None
    kinds = [given.json_, given.regex, given.choice]
    if sum(kind is not None for kind in kinds) != 1:
        raise invalid(
            "structured_outputs must have exactly one of json, regex and choice",
            param="structured_outputs",
        )
    schema = None if given.json_ is None else msgspec.json.encode(given.json_).decode()
    choice = None if given.choice is None else tuple(given.choice)
    return StructuredOutput(json_schema=schema, regex=given.regex, choice=choice)


def _affinity(body: GenerationBody, messages: tuple[ChatMessage, ...]) -> str | None:
    """Requests that begin alike should meet in one worker's prefix cache."""
    if body.prompt_cache_key is not None:
        return f"cache-{body.prompt_cache_key}"
    if messages and messages[0].role in ("system", "developer"):
        return prefix_key(messages[0].content)
    return None
