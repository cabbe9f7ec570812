"""What dynamic settings make of a request: defaults for what it leaves out, and limits. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from infra.contracts.config_sections import SamplingConfig, TenantConfig
from infra.contracts.errors import RequestRefused
from infra.contracts.events.generation import GenerationRequest

_BUILT_IN = SamplingConfig()
_FIELDS = tuple(field.name for field in msgspec.structs.fields(SamplingConfig))


class _Given(msgspec.Struct):
    """Of a request, which sampling fields it names."""

    sampling: dict[str, msgspec.Raw] = {}


def settled(
    request: GenerationRequest, value: bytes, defaults: SamplingConfig, tenant: TenantConfig
) -> GenerationRequest:
    """The request, read from ``value``, with defaults where it says nothing.

    A default is never above the tenant's limit. Raises RequestRefused ``too_many_tokens`` when the
    request itself asks for more than its tenant may have.
    """
    limit = tenant.max_tokens
    if defaults == _BUILT_IN and limit is None:
        return request
    given = msgspec.json.decode(value, type=_Given).sampling
    changes: dict[str, Any] = {
        name: getattr(defaults, name) for name in _FIELDS if name not in given
    }
    if limit is not None:
        if "max_tokens" in changes:
            changes["max_tokens"] = min(changes["max_tokens"], limit)
        elif request.sampling.max_tokens > limit:
            raise RequestRefused(
                "too_many_tokens",
                f"sampling.max_tokens is {request.sampling.max_tokens}; tenant "
                f"{request.tenant or 'default'!r} may ask for {limit} at most",
            )
    return msgspec.structs.replace(
        request, sampling=msgspec.structs.replace(request.sampling, **changes)
    )
