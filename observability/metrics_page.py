"""The metric catalogue as a page for people (``docs/metrics.md``)."""

from __future__ import annotations

import sys
from itertools import groupby

from observability.instruments import CATALOGUE, SERIES_LIMIT, Metric
from observability.prometheus_names import prometheus_name

_TITLES = {
    "gen_ai": "Generation",
    "messaging": "Kafka",
    "http": "Gateway",
    "feedloom.gateway": "Gateway",
    "feedloom.worker": "Workers",
    "feedloom.dead_letters": "Workers",
    "feedloom.engine": "Engine",
    "feedloom.trainer": "Training",
    "feedloom.pile": "Training",
    "feedloom.rollout": "Rollouts",
    "feedloom.config": "Configuration",
}

_BEGIN = f"""\
# Metrics

Every metric of the platform. `python -m observability.instruments` prints this page.

Nothing is collected unless it is asked for. `OTEL_EXPORTER_OTLP_ENDPOINT` sends metrics, with spans
and logs, to a collector. `FEEDLOOM_TELEMETRY__PROMETHEUS_PORT` has each process serve `/metrics` on
a port of 127.0.0.1 (0: any free one, which its log names), and
`FEEDLOOM_TELEMETRY__PROMETHEUS_HOST` on another address. `OTEL_METRICS_EXPORTER=prometheus` does so
on port 9464, or where `OTEL_EXPORTER_PROMETHEUS_HOST` and `_PORT` say. Both can be on at once.

An attribute that is not listed is dropped. A metric has {SERIES_LIMIT:,} series in a process at
most; what comes beyond them is counted together, under `otel.metric.overflow`. Tenants and versions
after the first hundred are called `other`.

The second line of a name is what Prometheus calls it, whether it fetches `/metrics` or is sent
OTLP; there, attributes have `_` for `.`, and a histogram has `_bucket`, `_sum` and `_count`. Where
spans are recorded, histograms that are sent by OTLP carry exemplars: the trace of a request in each
bucket. The published exporter behind `/metrics` leaves exemplars out.

With the `metrics` extra, which workers, trainers and gateways have, `process.cpu.*`,
`process.memory.*`, `process.thread.count` and `process.open_file_descriptor.count` come too.
"""


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_BEGIN]
    for title, found in groupby(CATALOGUE.values(), _title):
        rows = [_row(metric) for metric in found]
        head = "| metric | kind, unit | attributes | |\n|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{head}{''.join(rows)}")
    return "\n".join(parts)


def main() -> None:
    """Print it."""
    sys.stdout.write(page())


def _title(metric: Metric) -> str:
    first, _, rest = metric.name.partition(".")
    return _TITLES.get(first) or _TITLES[f"{first}.{rest.partition('.')[0]}"]


def _row(metric: Metric) -> str:
    names = f"`{metric.name}`<br>`{prometheus_name(metric)}`"
    kind = f"{metric.kind.replace('_', '-')}, `{metric.unit}`"
    attributes = "<br>".join(f"`{key}`" for key in metric.attributes)
    return f"| {names} | {kind} | {attributes} | {metric.description} |\n"
