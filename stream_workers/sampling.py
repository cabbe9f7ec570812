"""What of a request's sampling parameters every engine refuses alike. Pure."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterator
from functools import lru_cache

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import SamplingParameters, StructuredOutput

MAX_COMPLETIONS = 64
MAX_BEAMS = 16
MAX_LOGPROBS = 20
MAX_CHOICES = 1000
MAX_PATTERN_CHARACTERS = 64 * 1024
"""Of a JSON schema, a regex or all choices: they are compiled in the event loop."""

_DEFAULTS = SamplingParameters()
_UNUSED_BY_BEAMS = (
    "structured",
    "logprobs",
    "stop",
    "stop_token_ids",
    "include_stop",
    "min_tokens",
    "min_p",
    "top_p",
    "top_k",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_UNUSED_BY_GRAMMARS = ("ignore_eos", "min_tokens")


@lru_cache(maxsize=1024)  # requests of one caller mostly ask for the same
def check_sampling(sampling: SamplingParameters) -> None:
    """Raise RequestRefused ``invalid_sampling``, naming the field and what it may be."""
    for name, holds, wanted in _rules(sampling):
        if not holds:
            value = reprlib.repr(getattr(sampling, name))
            raise _refusal(f"sampling.{name} must be {wanted}, not {value}")
    if sampling.beam_width is not None:
        _check_unused(sampling, _UNUSED_BY_BEAMS, "beam_width")
        if not sampling.n <= sampling.beam_width <= MAX_BEAMS:
            raise _refusal(
                f"sampling.beam_width must be at least sampling.n ({sampling.n}) and at most "
                f"{MAX_BEAMS}, not {sampling.beam_width}"
            )
    elif sampling.n > 1 and sampling.temperature == 0:
        raise _refusal(
            "sampling.n above 1 needs a temperature above 0 or a beam_width: "
            "greedy completions are all the same"
        )
    if sampling.structured is not None:
        _check_unused(sampling, _UNUSED_BY_GRAMMARS, "structured")
        _check_structured(sampling.structured)


def _rules(sampling: SamplingParameters) -> Iterator[tuple[str, bool, str]]:
    yield "max_tokens", 1 <= sampling.max_tokens < 2**31, "at least 1 and below 2**31"
    yield "temperature", 0 <= sampling.temperature <= 2, "at least 0 and at most 2"
    yield "top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"
    yield "top_k", 0 <= sampling.top_k < 2**31, "at least 0 (0: no limit) and below 2**31"
    yield "min_p", 0 <= sampling.min_p <= 1, "at least 0 and at most 1"
    yield (
        "repetition_penalty",
        math.isfinite(sampling.repetition_penalty) and sampling.repetition_penalty > 0,
        "finite and above 0",
    )
    for name in ("presence_penalty", "frequency_penalty"):
        yield name, -2 <= getattr(sampling, name) <= 2, "at least -2 and at most 2"
    # Larger ones do not fit the generator, and vLLM takes -1 for no seed.
    yield "seed", sampling.seed is None or 0 <= sampling.seed < 2**63, "at least 0 and below 2**63"
    yield "stop", all(sampling.stop), "without empty strings"
    yield (
        "stop_token_ids",
        all(0 <= token < 2**31 for token in sampling.stop_token_ids),
        "at least 0 and below 2**31 each",
    )
    yield "n", 1 <= sampling.n <= MAX_COMPLETIONS, f"at least 1 and at most {MAX_COMPLETIONS}"
    yield (
        "min_tokens",
        0 <= sampling.min_tokens <= sampling.max_tokens,
        f"at least 0 and at most max_tokens ({sampling.max_tokens})",
    )
    yield (
        "logprobs",
        sampling.logprobs is None or 0 <= sampling.logprobs <= MAX_LOGPROBS,
        f"at least 0 and at most {MAX_LOGPROBS}",
    )


def _check_unused(sampling: SamplingParameters, names: tuple[str, ...], with_: str) -> None:
    for name in names:
        if getattr(sampling, name) != getattr(_DEFAULTS, name):
            raise _refusal(f"sampling.{name} cannot be combined with sampling.{with_}")


def _check_structured(structured: StructuredOutput) -> None:
    kinds = (structured.json_schema, structured.regex, structured.choice)
    if sum(kind is not None for kind in kinds) != 1:
        raise _refusal("sampling.structured must have exactly one of json_schema, regex and choice")
    size = sum(len(text) for kind in kinds if kind is not None for text in kind)
    if size > MAX_PATTERN_CHARACTERS:
        raise _refusal(
            f"sampling.structured must have at most {MAX_PATTERN_CHARACTERS} characters, not {size}"
        )
    if structured.json_schema is not None:
        try:
            schema = json.loads(structured.json_schema)
        except (ValueError, RecursionError) as error:
            raise _refusal(f"sampling.structured.json_schema must be JSON: {error}") from error
        if not isinstance(schema, dict):
            raise _refusal("sampling.structured.json_schema must be a JSON object")
    elif structured.regex is not None:
        if not structured.regex or "\0" in structured.regex:
            raise _refusal("sampling.structured.regex must be non-empty and without NUL")
    elif structured.choice is not None and not (
        0 < len(structured.choice) <= MAX_CHOICES and all(structured.choice)
    ):
        raise _refusal(
            f"sampling.structured.choice must have 1 to {MAX_CHOICES} strings, none empty"
        )


def _refusal(message: str) -> RequestRefused:
    return RequestRefused("invalid_sampling", message)
