"""From results and chunks to the objects of OpenAI's API. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.contracts.events.generation import (
    Completion,
    FinishReason,
    GenerationChunk,
    GenerationError,
    GenerationResult,
    TokenLogprob,
)
from producers.gateway import errors
from producers.gateway.errors import ApiError
from producers.gateway.identifiers import Kind, RequestId

Json = dict[str, Any]


def failure(result: GenerationResult) -> ApiError | None:
    """Why a result is no answer, if it is none."""
    if result.error is not None:
        return errors.of_result(result.error)
    if result.finish_reason == "deadline_exceeded":
        return errors.timed_out("the request's time was over before it was answered")
    if result.finish_reason == "cancelled":
        return ApiError(409, "the request was cancelled", code="cancelled")
    if result.finish_reason == "error":
        return errors.of_result(GenerationError(code="engine_error", message="no reason given"))
    return None


def completions(result: GenerationResult) -> list[Completion]:
    """All answers of a result, in the order of their index."""
    first = Completion(
        text=result.text,
        finish_reason=result.finish_reason,
        output_tokens=result.output_tokens,
        logprobs=result.logprobs,
    )
    return [first, *result.alternatives]


def whole(result: GenerationResult, request: RequestId) -> Json:
    """The response to a call that does not stream."""
    chat = request.kind == "chatcmpl"
    return {
        **_head(request, result.model, "chat.completion" if chat else "text_completion"),
        "system_fingerprint": "+".join(result.model_versions) or None,
        "choices": [
            _choice(request.kind, index, one, logprobs=one.logprobs)
            for index, one in enumerate(completions(result))
        ],
        "usage": usage(result),
    }


def usage(result: GenerationResult) -> Json:
    """Token counts."""
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.output_tokens,
        "total_tokens": result.prompt_tokens + result.output_tokens,
        "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
    }


def _head(request: RequestId, model: str, kind: str) -> Json:
    created = request.created_at_ms // 1000
    return {"id": request.text, "object": kind, "created": created, "model": model}


def _choice(kind: Kind, index: int, one: Completion, *, logprobs: Sequence[TokenLogprob]) -> Json:
    chat = kind == "chatcmpl"
    content: Json = (
        {"message": {"role": "assistant", "content": one.text, "refusal": None}}
        if chat
        else {"text": one.text}
    )
    shown = None
    if logprobs:
        shown = _chat_logprobs(logprobs) if chat else _text_logprobs(logprobs, 0)
    return {
        "index": index,
        **content,
        "logprobs": shown,
        "finish_reason": one.finish_reason,
    }


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json:
    def shown(token: str, logprob: float) -> Json:
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return {
        "content": [
            {
                **shown(one.token, one.logprob),
                "top_logprobs": [shown(other.token, other.logprob) for other in one.top],
            }
            for one in logprobs
        ],
        "refusal": None,
    }


def _text_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> Json:
    """``offset``: of the first token in the answer's text, in characters."""
    offsets = []
    for one in logprobs:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in logprobs],
        "token_logprobs": [one.logprob for one in logprobs],
        "top_logprobs": [{other.token: other.logprob for other in one.top} for one in logprobs],
        "text_offset": offsets,
    }


class Restarted(ApiError):
    """A stream cannot go on: the answer was begun anew and differs from what was sent."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "the worker was lost and the answer begun anew, with other words than those already "
            "sent: ask again",
            code="stream_restarted",
        )


class _Sent:
    """What a reader has of one completion, and what its present run says."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.run_text = ""
        self.run: tuple[int, int] | None = None
        self.opened = False
        self.boundaries: dict[int, int] = {0: 0}
        """First token of each chunk to its place in the text, in characters."""

    def take(self, chunk: GenerationChunk) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What of a chunk is new to the reader. Raises Restarted."""
        run = (chunk.epoch, chunk.attempt)
        if run != self.run:
            at = self.boundaries.get(chunk.first_token)
            if at is None:
                raise Restarted
            self.run, self.run_text = run, self.text[:at]
        self.run_text += chunk.text
        end = chunk.first_token + len(chunk.token_ids)
        new = self.extend(self.run_text)
        fresh = chunk.logprobs[max(0, self.tokens - chunk.first_token) :]
        self.tokens = max(self.tokens, end)
        self.boundaries[end] = len(self.run_text)
        return new, fresh

    def extend(self, whole: str) -> str:
        """What ``whole`` adds to the text that the reader has. Raises Restarted."""
        if self.text.startswith(whole):
            return ""
        if not whole.startswith(self.text):
            raise Restarted
        new = whole[len(self.text) :]
        self.text = whole
        return new


class StreamedAnswer:
    """An answer as the events of a stream, each with its number.

    The numbers follow from the token log alone, so that every replica counts alike: the chunks of
    the log from 0 on, then one end for each completion, then the usage. Feed it what a
    ``ChunkAssembler`` says is next in order.
    """

    def __init__(self, request: RequestId, model: str, *, include_usage: bool) -> None:
        self._request = request
        self._model = model
        self._include_usage = include_usage
        self._sent: dict[int, _Sent] = {}
        self._number = 0
        self._version: str | None = None

    def chunk(self, chunk: GenerationChunk) -> tuple[int, Json | None]:
        """A chunk's number and event; none if the reader has all of it. Raises Restarted."""
        number = self._number
        self._number += 1
        self._version = chunk.model_version
        sent = self._sent.setdefault(chunk.index, _Sent())
        before = len(sent.text)
        text, logprobs = sent.take(chunk)
        if not text and not logprobs:
            return number, None
        return number, self._delta(chunk.index, sent, text, logprobs, before)

    def ending(self, result: GenerationResult) -> list[tuple[int, Json]]:
        """The last events. Raises Restarted, and the ApiError of a result that is no answer."""
        problem = failure(result)
        if problem is not None:
            raise problem
        self._version = "+".join(result.model_versions) or self._version
        events = []
        for index, one in enumerate(completions(result)):
            sent = self._sent.setdefault(index, _Sent())
            before = len(sent.text)
            # Only when the last chunks were lost on the way is there anything left.
            rest = sent.extend(one.text)
            events.append(self._delta(index, sent, rest, (), before, one.finish_reason))
        numbered = [(self._number + place, event) for place, event in enumerate(events)]
        if self._include_usage:
            last = self._event([])
            last["usage"] = usage(result)
            numbered.append((self._number + len(events), last))
        return numbered

    def _delta(
        self,
        index: int,
        sent: _Sent,
        text: str,
        logprobs: Sequence[TokenLogprob],
        offset: int,
        finish_reason: FinishReason | None = None,
    ) -> Json:
        if self._request.kind == "chatcmpl":
            delta: Json = {} if sent.opened else {"role": "assistant", "content": ""}
            sent.opened = True
            content: Json = {"delta": delta | {"content": text} if text or logprobs else delta}
            shown = _chat_logprobs(logprobs) if logprobs else None
        else:
            content = {"text": text}
            shown = _text_logprobs(logprobs, offset) if logprobs else None
        return self._event(
            [{"index": index, **content, "logprobs": shown, "finish_reason": finish_reason}]
        )

    def _event(self, choices: list[Json]) -> Json:
        chat = self._request.kind == "chatcmpl"
        event = {
            **_head(
                self._request, self._model, "chat.completion.chunk" if chat else "text_completion"
            ),
            "system_fingerprint": self._version,
            "choices": choices,
        }
        return event | {"usage": None} if self._include_usage else event
