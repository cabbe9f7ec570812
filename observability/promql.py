"""PromQL built from the metric catalogue, so that no query names what nobody records. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from observability.instruments import CATALOGUE, Metric
from observability.prometheus_names import Foreign, label_name, prometheus_name

INTERVAL = "$__rate_interval"
"""Grafana's window: as wide as the resolution needs, and four scrapes at least."""
TARGET_LABELS = ("job", "instance")
"""``service.name`` and ``service.instance.id``, on every series."""

Part = Literal["", "bucket", "count", "sum"]
Aggregate = Literal["sum", "min", "max", "avg", "count"]

_OR, _AND, _COMPARED, _ADDED, _MULTIPLIED = range(5)
"""Binding of PromQL's operators, the weakest first."""


class UnknownSeriesError(ValueError):
    """A query asks for a metric or a label that nobody records: the program is wrong."""


def metric(name: str) -> Metric:
    """Of the catalogue. Raises UnknownSeriesError."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownSeriesError(f"the catalogue has no metric {name!r}") from None


@dataclass(frozen=True)
class Match:
    """A condition on a label."""

    operator: Literal["=", "!=", "=~", "!~"]
    value: str


def equal(value: str) -> Match:
    """The label is this."""
    return Match("=", value)


def present() -> Match:
    """The label is there: of ``error.type``, what failed."""
    return Match("!=", "")


def like(pattern: str) -> Match:
    """The whole label matches an RE2 pattern."""
    return Match("=~", pattern)


def unlike(pattern: str) -> Match:
    """The whole label does not match; one that is not there is an empty one."""
    return Match("!~", pattern)


def chosen(variable: str) -> Match:
    """What a dashboard's variable is set to."""
    return Match("=~", f"${variable}")


@dataclass(frozen=True, kw_only=True)
class Selector:
    """Series of one metric."""

    source: Metric | Foreign
    matches: tuple[tuple[str, Match], ...] = ()

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the series may be told apart by."""
        own = self.source.labels if isinstance(self.source, Foreign) else self.source.attributes
        return (*own, *TARGET_LABELS)

    @property
    def labels(self) -> frozenset[str]:
        """Those that the series may have."""
        return frozenset(label_name(one) for one in self.attributes)

    def where(self, conditions: Mapping[str, Match]) -> Selector:
        """Fewer of them. Raises UnknownSeriesError for a label that they never have."""
        return Selector(
            source=self.source,
            matches=(*self.matches, *((self.known(one), by) for one, by in conditions.items())),
        )

    def known(self, attribute: str) -> str:
        """The attribute's label. Raises UnknownSeriesError."""
        label = label_name(attribute)
        if label not in self.labels:
            raise UnknownSeriesError(f"{prometheus_name(self.source)} has no label {label!r}")
        return label

    def known_all(self, attributes: Iterable[str]) -> frozenset[str]:
        """Their labels. Raises UnknownSeriesError."""
        return frozenset(self.known(one) for one in attributes)

    def text(self, part: Part = "", *, also: Iterable[tuple[str, Match]] = ()) -> str:
        """As PromQL. ``part``: which of a histogram's series."""
        if (self.source.kind == "histogram") != bool(part):
            raise UnknownSeriesError(f"{self.source.name} has no series {part!r}")
        name = prometheus_name(self.source) + (f"_{part}" if part else "")
        conditions = ",".join(
            f'{label}{match.operator}"{match.value}"' for label, match in (*self.matches, *also)
        )
        return f"{name}{{{conditions}}}" if conditions else name


def select(
    source: str | Metric | Foreign, conditions: Mapping[str, Match] | None = None
) -> Selector:
    """Series of a metric, by its name in the catalogue. Raises UnknownSeriesError."""
    found = metric(source) if isinstance(source, str) else source
    return Selector(source=found).where(conditions or {})


@dataclass(frozen=True, kw_only=True)
class Query:
    """An instant vector: its text, the labels that it may have, and the unit of its values."""

    text: str
    labels: frozenset[str]
    unit: str
    buckets: bool = False
    """Whether buckets of a histogram are read, whose exemplars Prometheus then has."""
    binding: int = 9
    """How strongly the outermost operator binds; without one, strongest."""

    def inside(self, binding: int) -> str:
        """The text as an operand of an operator that binds so."""
        return self.text if self.binding >= binding else f"({self.text})"


def rate(series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL) -> Query:
    """Increase a second of a counter, or of what a histogram counted."""
    text, unit = _counted(series)
    return _aggregated("sum", series, f"rate({text}[{window}])", by, f"{unit}/s")


def increase(series: Selector, *, by: Iterable[str] = (), window: str) -> Query:
    """Of a counter, or of what a histogram counted, in the window; see ``grown``."""
    text, unit = _counted(series)
    return _aggregated("sum", series, f"increase({text}[{window}])", by, unit)


def rate_of_sum(series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL) -> Query:
    """Increase a second of what a histogram added up: tokens a second of tokens a request."""
    text = f"rate({series.text('sum')}[{window}])"
    return _aggregated("sum", series, text, by, f"{series.source.unit}/s")


def mean(series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL) -> Query:
    """Of a histogram's observations."""
    by = tuple(by)
    share = ratio(rate_of_sum(series, by=by, window=window), rate(series, by=by, window=window))
    return replace(share, unit=series.source.unit)


def quantile(
    share: float, series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL
) -> Query:
    """Of a histogram's observations, as well as its buckets tell."""
    labels = series.known_all(by)
    rates = f"rate({series.text('bucket')}[{window}])"
    grouped = ", ".join(("le", *sorted(labels)))
    return Query(
        text=f"histogram_quantile({share:g}, sum by ({grouped}) ({rates}))",
        labels=labels,
        unit=series.source.unit,
        buckets=True,
    )


def share_where(
    series: Selector,
    conditions: Mapping[str, Match],
    *,
    by: Iterable[str] = (),
    window: str = INTERVAL,
) -> Query:
    """Share of what a counter or a histogram counted that meets the conditions; 0 where none does.

    Raises UnknownSeriesError.
    """
    by = tuple(by)
    every = rate(series, by=by, window=window)
    these = rate(series.where(conditions), by=by, window=window)
    return ratio(or_zero(these, every), every)


def share_above(
    bound: float, series: Selector, *, by: Iterable[str] = (), window: str = INTERVAL
) -> Query:
    """Share of a histogram's observations above one of its bounds. Raises UnknownSeriesError.

    Prometheus 3 stores ``le="1.0"`` where it scrapes ``le="1"``, so both are taken.
    """
    source = series.source
    if not isinstance(source, Metric) or bound not in source.buckets:
        raise UnknownSeriesError(f"{source.name} has no bucket that ends at {bound:g}")
    by = tuple(by)
    le = f"{bound:g}(\\\\.0)?" if float(bound).is_integer() else f"{bound:g}".replace(".", "\\\\.")
    bucket = series.text("bucket", also=[("le", like(le))])
    within = _aggregated("sum", series, f"rate({bucket}[{window}])", by, "1")
    share = ratio(within, rate(series, by=by, window=window))
    return replace(share, text=f"1 - {share.text}", binding=_ADDED)


def level(
    series: Selector,
    *,
    by: Iterable[str] = (),
    how: Aggregate = "sum",
    over: Literal["min", "max", "last"] | None = None,
    window: str = "",
    ago: str = "",
) -> Query:
    """Of a gauge now, ``ago``, or the least, greatest or last ``over`` a ``window``."""
    if series.source.kind not in ("gauge", "up_down_counter"):
        raise UnknownSeriesError(f"{series.source.name} is no gauge")
    text = series.text()
    if over is not None:
        text = f"{text}[{window}]"
    if ago:
        text = f"{text} offset {ago}"
    if over is not None:
        text = f"{over}_over_time({text})"
    return _aggregated(how, series, text, by, "" if how == "count" else series.source.unit)


def grown(series: Selector, *, by: Iterable[str] = (), window: str) -> Query:
    """By how much a counter grew in the window, where it did.

    A counter begins with its first event, at 1: ``increase`` sees no growth there, so a counter
    that was not there before the window counts whole.
    """
    by = tuple(by)
    more = increase(series, by=by, window=window)
    text, _ = _counted(series)
    born = _aggregated("sum", series, f"{text} unless {text} offset {window}", by, more.unit)
    return either(where_value(more, ">", 0), where_value(born, ">", 0))


def ratio(part: Query, whole: Query) -> Query:
    """A share of what both measure. Nothing where ``whole`` is nothing."""
    _same_labels(part, whole)
    return _binary(_MULTIPLIED, part, "/", whole.inside(_MULTIPLIED + 1), unit="1")


def divided(query: Query, by: float) -> Query:
    """By a number without a unit."""
    return _binary(_MULTIPLIED, query, "/", f"{by:g}")


def minus(left: Query, right: Query) -> Query:
    """The difference, of one unit."""
    _same_labels(left, right)
    if left.unit != right.unit:
        raise UnknownSeriesError(f"{left.unit} less {right.unit}: {left.text}")
    return _binary(_ADDED, left, "-", right.inside(_ADDED + 1))


def where_value(query: Query, operator: Literal[">", ">=", "<", "==", "!="], bound: float) -> Query:
    """What of it compares so."""
    return _binary(_COMPARED, query, operator, f"{bound:g}")


def where_above(
    query: Query,
    other: Query,
    *,
    times: float = 1,
    plus: float = 0,
    on: Iterable[str] | None = None,
) -> Query:
    """What of it is above another's value, times and plus something.

    By all labels; or ``on`` some, of which ``other`` has one value each.
    """
    bound = other.inside(_ADDED)
    if times != 1:
        bound = f"{times:g} * {other.inside(_MULTIPLIED)}"
    if plus:
        bound = f"{plus:g} + {bound}"
    operator = ">"
    if on is None:
        _same_labels(query, other)
    else:
        operator = f"> on ({_matching(on, query, other)}) group_left ()"
    return _binary(_COMPARED, query, operator, bound)


def or_zero(query: Query, among: Query) -> Query:
    """``query``, or 0 for what only ``among`` has: no failures rather than no data."""
    _same_labels(query, among)
    return _binary(_OR, query, "or", f"0 * {among.inside(_MULTIPLIED + 1)}")


def either(query: Query, other: Query) -> Query:
    """``query``, and of ``other`` what it lacks."""
    _same_labels(query, other)
    return _binary(_OR, query, "\nor\n", other.inside(_OR))


def both(query: Query, other: Query, *, on: Iterable[str] | None = None) -> Query:
    """Of ``query`` what ``other`` has as well: by all labels, or ``on`` some."""
    return _joined("and", query, other, on)


def unless(query: Query, other: Query, *, on: Iterable[str] | None = None) -> Query:
    """Of ``query`` what ``other`` lacks: by all labels, or ``on`` some."""
    return _joined("unless", query, other, on)


def missing(series: Selector) -> Query:
    """1 while no such series is there."""
    return Query(text=f"absent({series.text()})", labels=frozenset(), unit="1")


def _joined(operator: str, query: Query, other: Query, on: Iterable[str] | None) -> Query:
    if on is None:
        _same_labels(query, other)
    matching = "" if on is None else f" on ({_matching(on, query, other)})"
    return _binary(_AND, query, f"\n{operator}{matching}\n", other.inside(_AND + 1))


def _binary(binding: int, left: Query, operator: str, right: str, *, unit: str = "") -> Query:
    between = operator if "\n" in operator else f" {operator} "
    return Query(
        text=f"{left.inside(binding)}{between}{right}",
        labels=left.labels,
        unit=unit or left.unit,
        binding=binding,
    )


def _counted(series: Selector) -> tuple[str, str]:
    if series.source.kind == "histogram":
        return series.text("count"), "{observation}"
    if series.source.kind == "counter":
        return series.text(), series.source.unit
    raise UnknownSeriesError(f"{series.source.name} is no counter")


def _matching(on: Iterable[str], query: Query, other: Query) -> str:
    labels = sorted(label_name(one) for one in on)
    if not query.labels.issuperset(labels) or not other.labels.issuperset(labels):
        raise UnknownSeriesError(f"nothing to join on {labels}: {query.text}; {other.text}")
    return ", ".join(labels)


def _same_labels(left: Query, right: Query) -> None:
    if left.labels != right.labels:
        raise UnknownSeriesError(f"labels differ: {left.text}; {right.text}")


def _aggregated(how: Aggregate, series: Selector, text: str, by: Iterable[str], unit: str) -> Query:
    labels = series.known_all(by)
    grouping = f" by ({', '.join(sorted(labels))}) " if labels else ""
    return Query(text=f"{how}{grouping}({text})", labels=labels, unit=unit)
