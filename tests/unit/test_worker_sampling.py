"""What every engine refuses, naming the field."""

from typing import Any

import pytest

from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import SamplingParameters, StructuredOutput
from stream_workers.sampling import MAX_BEAMS, MAX_COMPLETIONS, check_sampling

CHOICE = StructuredOutput(choice=("yes", "no"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 2.0, "top_p": 0.1, "top_k": 5, "min_p": 1.0},
        {"n": MAX_COMPLETIONS},
        {"n": 2, "beam_width": 2, "temperature": 0.0},
        {"n": 1, "beam_width": MAX_BEAMS, "ignore_eos": True},
        {"min_tokens": 5, "max_tokens": 5, "stop": ("a", "b"), "include_stop": True},
        {"presence_penalty": -2.0, "frequency_penalty": 2.0, "repetition_penalty": 0.5},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"logprobs": 0},
        {"structured": CHOICE},
        {"structured": StructuredOutput(regex="a+")},
        {"structured": StructuredOutput(json_schema='{"type": "object"}'), "n": 2},
    ],
)
def test_sensible_sampling_passes(changes: dict[str, Any]) -> None:
    check_sampling(SamplingParameters(**changes))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 2**31}),
        ("temperature", {"temperature": -0.1}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": float("nan")}),
        ("top_p", {"top_p": 0.0}),
        ("top_k", {"top_k": -1}),
        ("min_p", {"min_p": 1.1}),
        ("min_p", {"min_p": -0.1}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("repetition_penalty", {"repetition_penalty": float("inf")}),
        ("presence_penalty", {"presence_penalty": 2.1}),
        ("frequency_penalty", {"frequency_penalty": -2.1}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**63}),
        ("stop", {"stop": ("a", "")}),
        ("stop_token_ids", {"stop_token_ids": (-1,)}),
        ("stop_token_ids", {"stop_token_ids": (2**40,)}),
        ("n", {"n": 0}),
        ("n", {"n": MAX_COMPLETIONS + 1}),
        ("n", {"n": 2, "temperature": 0.0}),
        ("min_tokens", {"min_tokens": -1}),
        ("min_tokens", {"min_tokens": 9, "max_tokens": 8}),
        ("logprobs", {"logprobs": -1}),
        ("logprobs", {"logprobs": 21}),
        ("beam_width", {"beam_width": 0}),
        ("beam_width", {"beam_width": MAX_BEAMS + 1}),
        ("beam_width", {"beam_width": 2, "n": 3}),
        ("structured", {"beam_width": 2, "structured": CHOICE}),
        ("logprobs", {"beam_width": 2, "logprobs": 1}),
        ("stop", {"beam_width": 2, "stop": ("a",)}),
        ("top_k", {"beam_width": 2, "top_k": 4}),
        ("presence_penalty", {"beam_width": 2, "presence_penalty": 1.0}),
        ("ignore_eos", {"structured": CHOICE, "ignore_eos": True}),
        ("min_tokens", {"structured": CHOICE, "min_tokens": 2}),
        ("structured", {"structured": StructuredOutput()}),
        ("structured", {"structured": StructuredOutput(regex="a", choice=("a",))}),
        ("structured.regex", {"structured": StructuredOutput(regex="")}),
        ("structured.regex", {"structured": StructuredOutput(regex="a\0")}),
        ("structured.choice", {"structured": StructuredOutput(choice=())}),
        ("structured.choice", {"structured": StructuredOutput(choice=("a", ""))}),
        ("structured.json_schema", {"structured": StructuredOutput(json_schema="{")}),
        ("structured.json_schema", {"structured": StructuredOutput(json_schema="[]")}),
        ("structured.json_schema", {"structured": StructuredOutput(json_schema="[" * 60_000)}),
        ("structured", {"structured": StructuredOutput(regex="a" * 70_000)}),
    ],
)
def test_a_refusal_names_the_field(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as caught:
        check_sampling(SamplingParameters(**changes))
    assert caught.value.code == "invalid_sampling"
    assert f"sampling.{field} " in caught.value.message
    assert len(caught.value.message) < 400
