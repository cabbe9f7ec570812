"""What callers are promised, and how fast the budget for breaking it goes.

Burn rates and their windows are those of the Google SRE workbook, chapter 5, table 5-8, over 30
days. A share over each window is recorded, so that alerts and dashboards read one series a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from observability.instruments import ERROR_TYPE, REQUEST_MODEL
from observability.prometheus_names import Foreign
from observability.promql import (
    INTERVAL,
    Match,
    Query,
    Selector,
    both,
    divided,
    either,
    increase,
    level,
    select,
    share_above,
    share_where,
    unlike,
    where_value,
)

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
PAGE = ((14.4, "1h", "5m"), (6.0, "6h", "30m"))
TICKET = ((3.0, "1d", "2h"), (1.0, "3d", "6h"))
"""Burn rate, long window, short window. The short one ends the alert soon after the trouble."""
LEAST_REQUESTS = 20
"""Requests in the long window below which one failure would say too much."""

FIRST_TOKEN_S = 1.0
"""A bound of the histogram's buckets."""
CALLERS_FAULTS = "|".join(
    (
        "",
        "invalid_.*",
        "unknown_model",
        "empty_prompt",
        "prompt_too_long",
        "too_many_tokens",
        "no_chat_template",
    )
)
"""``error.type`` of a request that was refused as it should be; the empty one is no error."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``budget``: share of requests that may break it in 30 days."""

    name: str
    budget: float


ERRORS = Objective(name="errors", budget=0.001)
FIRST_TOKEN = Objective(name="slow_first_tokens", budget=0.01)

_REQUESTS = select("gen_ai.server.request.duration")
_BY = (REQUEST_MODEL,)


def failed_share(series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL) -> Query:
    """Share of requests that the platform failed."""
    return share_where(series, {ERROR_TYPE: unlike(CALLERS_FAULTS)}, by=by, window=window)


def recorded(objective: Objective, window: str) -> Foreign:
    """The series of the share that broke the objective, by model."""
    return Foreign(
        name=f"feedloom:{objective.name}:ratio_rate{window}", kind="gauge", unit="1", labels=_BY
    )


def recordings() -> dict[str, Query]:
    """What is to be recorded, by name."""
    first_token = select("gen_ai.server.time_to_first_token")
    found = {}
    for window in WINDOWS:
        found[recorded(ERRORS, window).name] = failed_share(_REQUESTS, by=_BY, window=window)
        found[recorded(FIRST_TOKEN, window).name] = share_above(
            FIRST_TOKEN_S, first_token, by=_BY, window=window
        )
    return found


def burn(objective: Objective, window: str, conditions: Mapping[str, Match] | None = None) -> Query:
    """How many times as fast as allowed the budget goes, by model."""
    share = level(select(recorded(objective, window), conditions), by=_BY, how="max")
    return divided(share, objective.budget)


def burning(objective: Objective, rates: Iterable[tuple[float, str, str]]) -> Query:
    """Burn rates over a long window, of models where the short window agrees."""
    return reduce(either, (_burning(objective, *one) for one in rates))


def _burning(objective: Objective, factor: float, long: str, short: str) -> Query:
    agreed = both(
        where_value(burn(objective, long), ">", factor),
        where_value(burn(objective, short), ">", factor),
    )
    enough = where_value(increase(_REQUESTS, by=_BY, window=long), ">=", LEAST_REQUESTS)
    return both(agreed, enough)
