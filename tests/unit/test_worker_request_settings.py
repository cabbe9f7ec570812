"""What settings make of a request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts import codec
from infra.contracts.config_sections import SamplingConfig, TenantConfig
from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import GenerationRequest, SamplingParameters
from stream_workers.request_settings import settled

OURS = SamplingConfig(max_tokens=40, temperature=0.1, top_p=0.5, top_k=3, repetition_penalty=1.2)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 500),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(0, 50),
        "repetition_penalty": st.floats(0.5, 2),
        "seed": st.integers(0, 9),
    },
)


def settle(sampling: dict[str, Any] | None, **tenant: Any) -> SamplingParameters:
    document: dict[str, Any] = {
        "type": "GenerationRequest",
        "schema_version": "1.0",
        "request_id": "r",
        "submit_id": "s",
        "prompt": "p",
        "created_at_ms": 0,
        "tenant": "acme",
    }
    if sampling is not None:
        document["sampling"] = sampling
    value = json.dumps(document).encode()
    request = codec.decode(value, GenerationRequest)
    return settled(request, value, OURS, TenantConfig(**tenant)).sampling


@given(FIELDS)
def test_what_a_request_says_stands_and_the_rest_is_the_platforms(said: dict[str, Any]) -> None:
    found = msgspec.to_builtins(settle(said))
    defaults = msgspec.to_builtins(SamplingParameters()) | msgspec.to_builtins(OURS)
    assert found == defaults | said


def test_saying_nothing_and_saying_the_built_in_default_differ() -> None:
    assert settle(None) == SamplingParameters(**msgspec.structs.asdict(OURS))
    assert settle({"temperature": 0.7}).temperature == 0.7


def test_a_tenant_asks_for_so_many_tokens_at_most() -> None:
    assert settle({"max_tokens": 9}, max_tokens=9).max_tokens == 9
    assert settle({}, max_tokens=9).max_tokens == 9
    assert settle({}, max_tokens=900).max_tokens == 40
    with pytest.raises(RequestRefused, match="max_tokens is 10; tenant 'acme' may ask for 9"):
        settle({"max_tokens": 10}, max_tokens=9)


@pytest.mark.parametrize("defaults", [SamplingConfig(), OURS])
@pytest.mark.parametrize(("tenant", "shown"), [("acme", "acme"), (None, "default")])
def test_a_limit_holds_whatever_the_defaults_are(
    defaults: SamplingConfig, tenant: str | None, shown: str
) -> None:
    request = GenerationRequest(
        request_id="r",
        submit_id="s",
        prompt="p",
        created_at_ms=0,
        tenant=tenant,
        sampling=SamplingParameters(max_tokens=10),
    )
    value = codec.encode(request)
    with pytest.raises(RequestRefused, match=f"tenant '{shown}' may ask for 9 at most$") as refused:
        settled(request, value, defaults, TenantConfig(max_tokens=9))
    assert refused.value.code == "too_many_tokens"
    assert settled(request, value, SamplingConfig(), TenantConfig()) is request
