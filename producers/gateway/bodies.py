"""Request bodies of the OpenAI API, as far as the platform can do what they ask.

Field names and ranges are OpenAI's; ``top_k`` to ``structured_outputs`` are vLLM's extensions, and
``background`` and ``timeout_s`` are Feedloom's. A field that asks for something else is refused by
name, unless its value asks for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from producers.gateway.errors import ApiError, invalid

Text = Annotated[str, Field(max_length=400_000)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenCount = Annotated[int, Field(ge=1, lt=2**31)]


class Body(BaseModel):
    """No coercion: ``"5"`` is no number, and a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    """Fields that are not supported, and values (besides null) that ask for nothing."""


class StreamOptions(Body):
    """``include_usage``: one more event at the end, with the token counts."""

    include_usage: bool = False


class JsonSchemaFormat(Body):
    """As OpenAI's; ``strict`` makes no difference: an answer always matches."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Body):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(Body):
    """vLLM's: exactly one of them."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None


class GenerationBody(Body):
    """What both kinds of request may say."""

    model: Name
    max_tokens: TokenCount | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1, le=64)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Name | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    prompt_cache_key: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    response_format: ResponseFormat | None = None
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    stop_token_ids: (
        Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)] | None
    ) = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    background: bool | None = None
    timeout_s: float | None = Field(default=None, ge=0.1, le=86_400)


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn of the conversation."""

    role: Name
    content: Text | list[TextPart]


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "default",
                    "messages": [{"role": "user", "content": "What is a generator?"}],
                    "max_tokens": 16,
                }
            ]
        }
    )
    neutral = {
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "prompt_cache_retention": (),
        "reasoning_effort": ("none",),
        "safety_identifier": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "default", "prompt": "A generator is", "max_tokens": 16, "seed": 7}
            ]
        }
    )
    neutral = {
        "best_of": (1,),
        "echo": (False,),
        "logit_bias": ({},),
        "suffix": ("",),
    }

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=20)


class PairBody(Body):
    """Of two answers to one prompt, the better and the worse."""

    preferred: Text
    rejected: Text


class FeedbackBody(Body):
    """``POST /v1/feedback``: at least one of rating, score, edited_text, pair and comment.

    ``user``: the person behind the caller, whose share in what is learnt is bounded.
    """

    request_id: Name
    rating: Literal["up", "down"] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    edited_text: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    pair: PairBody | None = None
    comment: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    user: Annotated[str, Field(min_length=1, max_length=128)] | None = None


B = TypeVar("B", bound=Body)


def parse(kind: type[B], document: object) -> B:
    """The body; raises ApiError 400 that names the first field at fault."""
    if not isinstance(document, dict):
        raise invalid("the body must be a JSON object")
    asked = {
        name: value
        for name, value in document.items()
        if not (name in kind.neutral and (value is None or value in kind.neutral[name]))
    }
    if isinstance(messages := asked.get("messages"), list):
        # What the client library adds to a message that it got as an answer.
        asked["messages"] = [
            {name: value for name, value in one.items() if value is not None or name == "content"}
            if isinstance(one, dict)
            else one
            for one in messages
        ]
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise _refusal(kind, error) from None


def _refusal(kind: type[Body], error: ValidationError) -> ApiError:
    # An unknown field says more than what else is wrong.
    found = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    first = found[0]
    place = [str(part) for part in first["loc"] if not _names_a_branch(part)]
    param = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = " with this value" if param in kind.neutral else ""
        return invalid(
            f"unsupported parameter{known}: {param}", param=param, code="unsupported_parameter"
        )
    message = first["msg"][:1].lower() + first["msg"][1:]
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return invalid(f"{param}: {message}", param=param, code=code)


def _names_a_branch(part: int | str) -> bool:
    """Whether a part of an error's place is pydantic's name for one type of a union."""
    return isinstance(part, str) and ("[" in part or part in ("str", "dict", "TextPart"))
