"""Dashboards: names as Prometheus has them, queries that parse and ask for what is recorded."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path

import promql_parser
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry, generate_latest

from observability import collector, dashboards, generated
from observability.alerts.objectives import ERRORS, FIRST_TOKEN, WINDOWS, recorded, recordings
from observability.alerts.rules import ALERTS
from observability.dashboards import DASHBOARDS
from observability.dashboards.panels import Panel, Scope, Target, Variable, as_grafana, grafana_unit
from observability.instruments import CATALOGUE, ERROR_TYPE, MODEL, REQUEST_MODEL
from observability.prometheus_names import Foreign, label_name, prometheus_name, series_names
from observability.promql import (
    Query,
    Selector,
    UnknownSeriesError,
    both,
    either,
    equal,
    grown,
    level,
    mean,
    minus,
    present,
    quantile,
    rate,
    ratio,
    select,
    share_above,
    unless,
    where_above,
    where_value,
)

FOREIGN = [
    collector.UP,
    collector.QUEUE_SIZE,
    collector.QUEUE_CAPACITY,
    collector.TRACES_SAMPLED,
    collector.TRACES_EVICTED,
    *collector.ACCEPTED.values(),
    *collector.REFUSED.values(),
    *collector.SEND_FAILED.values(),
    *(recorded(objective, window) for objective in (ERRORS, FIRST_TOKEN) for window in WINDOWS),
]
KNOWN: dict[str, frozenset[str]] = {
    name: Selector(source=source).labels | ({"le"} if name.endswith("_bucket") else set())
    for source in (*CATALOGUE.values(), *FOREIGN)
    for name in series_names(source)
}


# Names


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        # As otelcol-contrib's prometheus exporter serves them, translation_strategy
        # UnderscoreEscapingWithSuffixes; seen at 0.165.
        ("feedloom.engine.alive", "feedloom_engine_alive_ratio"),
        ("feedloom.trainer.learning_rate", "feedloom_trainer_learning_rate_ratio"),
        ("feedloom.trainer.throughput", "feedloom_trainer_throughput_per_second"),
        ("feedloom.trainer.step.loss", "feedloom_trainer_step_loss"),
        ("feedloom.trainer.rounds.open", "feedloom_trainer_rounds_open"),
        ("feedloom.trainer.rounds", "feedloom_trainer_rounds_total"),
        ("feedloom.worker.partition.stalled", "feedloom_worker_partition_stalled_seconds"),
        ("feedloom.worker.commit.size", "feedloom_worker_commit_size"),
        ("messaging.client.sent.messages", "messaging_client_sent_messages_total"),
        ("gen_ai.client.token.usage", "gen_ai_client_token_usage"),
        ("http.server.request.duration", "http_server_request_duration_seconds"),
    ],
)
def test_a_metric_has_the_name_of_the_otlp_translation(name: str, stored: str) -> None:
    assert prometheus_name(CATALOGUE[name]) == stored


def test_every_name_is_that_of_the_python_exporter_but_for_ratio() -> None:
    reader = PrometheusMetricReader(disable_target_info=True, registry=(_ := CollectorRegistry()))
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    for metric in CATALOGUE.values():
        if metric.kind == "histogram":
            meter.create_histogram(metric.name, metric.unit).record(1)
        elif metric.kind == "gauge":
            meter.create_gauge(metric.name, metric.unit).set(1)
        elif metric.kind == "counter":
            meter.create_counter(metric.name, metric.unit).add(1)
        else:
            meter.create_up_down_counter(metric.name, metric.unit).add(1)
    text = generate_latest(_).decode()
    provider.shutdown()
    served = {re.split("[{ ]", line)[0] for line in text.splitlines() if line[0] != "#"}
    expected = {
        name.removesuffix("_ratio")
        for metric in CATALOGUE.values()
        for name in series_names(metric)
    }
    assert served == expected


def test_names_stay_apart() -> None:
    names = [name for metric in CATALOGUE.values() for name in series_names(metric)]
    assert len(names) == len(set(names))


# Queries


@pytest.mark.parametrize(
    "ask",
    [
        lambda: select("feedloom.worker.lags"),
        lambda: select("feedloom.worker.lag", {ERROR_TYPE: present()}),
        lambda: level(select("feedloom.worker.lag"), by=(MODEL,)),
        lambda: rate(select("feedloom.worker.lag")),
        lambda: grown(select("feedloom.worker.lag"), window="5m"),
        lambda: level(select("feedloom.dead_letters")),
        lambda: quantile(0.5, select("feedloom.dead_letters")),
        lambda: mean(select("feedloom.dead_letters")),
        lambda: share_above(0.9, select("gen_ai.server.time_to_first_token")),
        lambda: select("gen_ai.server.time_to_first_token").text(),
        lambda: ratio(_lag("instance"), _lag("job")),
        lambda: minus(_lag(), level(select("feedloom.worker.partition.stalled"))),
        lambda: both(_lag("instance"), _lag("job")),
        lambda: both(_lag("instance"), _lag("job"), on=("job",)),
    ],
)
def test_a_query_for_what_nobody_records_is_not_made(ask: object) -> None:
    with pytest.raises(UnknownSeriesError):
        ask()  # type: ignore[operator]


def _lag(*by: str) -> Query:
    return level(select("feedloom.worker.lag"), by=by)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (ratio(_lag(), ratio(_lag(), _lag())), "L / (L / L)"),
        (minus(_lag(), minus(_lag(), _lag())), "L - (L - L)"),
        (where_value(minus(_lag(), _lag()), "==", 0), "L - L == 0"),
        (minus(where_value(_lag(), ">", 1), _lag()), "(L > 1) - L"),
        (where_value(unless(_lag(), _lag()), ">", 0), "(L unless L) > 0"),
        (unless(_lag(), where_value(_lag(), ">", 0)), "L unless L > 0"),
        (unless(_lag(), unless(_lag(), _lag())), "L unless (L unless L)"),
        (both(either(_lag(), _lag()), _lag()), "(L or L) and L"),
        (either(both(_lag(), _lag()), _lag()), "L and L or L"),
        (where_above(_lag(), minus(_lag(), _lag()), times=2, plus=1), "L > 1 + 2 * (L - L)"),
    ],
)
def test_operands_keep_together_as_they_were_put(query: Query, text: str) -> None:
    assert query.text.replace("sum(feedloom_worker_lag)", "L").replace("\n", " ") == text
    # And PromQL reads it so.
    promql_parser.parse(query.text)


def test_a_bound_is_found_however_prometheus_spells_it() -> None:
    first_token = select("gen_ai.server.time_to_first_token")
    pattern = re.search('le=~"([^"]*)"', share_above(1, first_token).text)
    assert pattern is not None
    # PromQL's strings are escaped as Go's are.
    whole = re.compile(pattern[1].replace("\\\\", "\\"))
    assert [le for le in ("1", "1.0", "10", "1x0", "2.5") if whole.fullmatch(le)] == ["1", "1.0"]


def _labels(expression: promql_parser.Expr) -> frozenset[str]:
    """Labels that it may have. Fails where it asks for a series or label that is not there."""
    match expression:
        case promql_parser.VectorSelector():
            assert expression.name in KNOWN, f"no series {expression.name}"
            for one in expression.matchers.matchers:
                assert one.name in KNOWN[expression.name], f"{expression.name} has no {one.name}"
            return KNOWN[expression.name]
        case promql_parser.MatrixSelector():
            return _labels(expression.vector_selector)
        case promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            return _labels(expression.expr)
        case promql_parser.AggregateExpr():
            inner = _labels(expression.expr)
            kept = frozenset(expression.modifier.labels if expression.modifier else ())
            assert kept <= inner, f"{kept - inner} is not in {expression.prettify()}"
            return kept
        case promql_parser.Call():
            found = [_labels(one) for one in expression.args]
            labels = frozenset().union(*found)
            if expression.func.name == "histogram_quantile":
                assert "le" in labels
                return labels - {"le"}
            return frozenset() if expression.func.name == "absent" else labels
        case promql_parser.BinaryExpr():
            left, right = _labels(expression.lhs), _labels(expression.rhs)
            matching = expression.modifier and expression.modifier.matching
            if matching:
                assert left.issuperset(matching.labels)
                assert right.issuperset(matching.labels)
            elif not _is_number(expression.lhs) and not _is_number(expression.rhs):
                assert left == right, expression.prettify()
            return right if _is_number(expression.lhs) else left
        case promql_parser.NumberLiteral():
            return frozenset()
    raise AssertionError(f"what is {expression!r}?")


def _is_number(expression: promql_parser.Expr) -> bool:
    return isinstance(expression, promql_parser.NumberLiteral)


QUERIES = {
    **{
        f"{board.title} | {number} {panel.title} | {which}": target.query
        for board in DASHBOARDS
        for number, panel in enumerate(board.panels)
        for which, target in enumerate(panel.targets)
    },
    **{f"{alert.name} {alert.severity}": alert.query for alert in ALERTS},
    **recordings(),
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_query_parses_and_asks_for_what_is_recorded(query: Query) -> None:
    parsed = promql_parser.parse(query.text.replace("$__rate_interval", "5m"))
    assert _labels(parsed) == query.labels


def test_the_check_of_queries_finds_what_is_wrong() -> None:
    for text in (
        "sum(rate(feedloom_dead_letter_total[5m]))",
        "sum by (tenant) (rate(feedloom_dead_letters_total[5m]))",
        'sum(rate(feedloom_dead_letters_total{tenant="a"}[5m]))',
        "sum by (job) (feedloom_worker_lag) / sum by (instance) (feedloom_worker_lag)",
    ):
        with pytest.raises(AssertionError):
            _labels(promql_parser.parse(text))


# Dashboards


def test_the_files_are_what_the_code_says() -> None:
    assert generated.stale(dashboards.files()) == []
    kept = {path.name for path in (generated.FOLDER / "grafana/dashboards").iterdir()}
    assert kept == {path.name for path in dashboards.files()}


def test_a_file_that_was_changed_is_found_and_written_again(tmp_path: Path) -> None:
    contents = {Path("a/b.json"): "{}\n", Path("c.json"): "[]\n"}
    assert generated.stale(contents, tmp_path) == list(contents)
    generated.write(contents, tmp_path)
    assert generated.stale(contents, tmp_path) == []
    (tmp_path / "c.json").write_text("[1]\n")
    assert generated.stale(contents, tmp_path) == [Path("c.json")]


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_panels_are_explained_and_do_not_cover_each_other(board: dashboards.Dashboard) -> None:
    panels = as_grafana(board)["panels"]
    assert isinstance(panels, list)
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: list[set[tuple[int, int]]] = []
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        taken.append(
            {
                (at["x"] + across, at["y"] + down)
                for across in range(at["w"])
                for down in range(at["h"])
            }
        )
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
    assert all(one.isdisjoint(other) for one, other in combinations(taken, 2))


def test_quantiles_show_exemplars_and_nothing_else_does() -> None:
    for board in DASHBOARDS:
        for panel in json.loads(dashboards.render(board))["panels"]:
            for target in panel.get("targets", ()):
                shown = target.get("exemplar", False)
                assert shown == ("histogram_quantile" in target["expr"]), target["expr"]


def test_what_a_panel_shows_has_one_unit() -> None:
    lag, stall = _lag(), level(select("feedloom.worker.partition.stalled"))
    with pytest.raises(ValueError, match="mixes units"):
        Panel(title="x", description="y.", targets=(Target(query=lag), Target(query=stall)))


@pytest.mark.parametrize(
    ("unit", "shown"),
    [("s", "s"), ("1", "percentunit"), ("{token}/s", "suffix: token/s"), ("{record}", "short")],
)
def test_units_are_grafanas(unit: str, shown: str) -> None:
    assert grafana_unit(unit) == shown


def test_a_variable_narrows_the_series_that_have_its_attribute() -> None:
    model = Variable(
        name="model",
        title="Model",
        source="gen_ai.server.request.duration",
        attribute=REQUEST_MODEL,
        attributes=(REQUEST_MODEL, MODEL),
    )
    on = Scope((model,))
    assert model.query == (
        "label_values(gen_ai_server_request_duration_seconds_count, gen_ai_request_model)"
    )
    assert on("feedloom.trainer.rounds").text() == (
        'feedloom_trainer_rounds_total{feedloom_model=~"$model"}'
    )
    assert on("feedloom.worker.lag").text() == "feedloom_worker_lag"
    # What a panel asks for itself is not narrowed twice.
    assert on("feedloom.trainer.rounds", {MODEL: equal("m")}).text() == (
        'feedloom_trainer_rounds_total{feedloom_model="m"}'
    )
    assert on(Foreign(name="x", kind="gauge", unit="1")).text() == "x"


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_the_variables_of_queries_are_the_dashboards(board: dashboards.Dashboard) -> None:
    text = " ".join(target.query.text for panel in board.panels for target in panel.targets)
    used = set(re.findall(r"\$(\w+)", text)) - {"__rate_interval"}
    assert used == {variable.name for variable in board.variables}


# What is deployed beside them


def _yaml(path: str) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((generated.FOLDER / path).read_text())
    return loaded


def test_dashboards_name_data_sources_that_are_provisioned() -> None:
    sources = _yaml("grafana/provisioning/datasources/feedloom.yaml")["datasources"]
    assert isinstance(sources, list)
    uids = {source["uid"] for source in sources}
    links = [
        link["datasourceUid"]
        for source in sources
        for kind in ("exemplarTraceIdDestinations", "derivedFields")
        for link in source["jsonData"].get(kind, ())
    ]
    links += [
        source["jsonData"]["tracesToLogsV2"]["datasourceUid"]
        for source in sources
        if "tracesToLogsV2" in source["jsonData"]
    ]
    used = {
        uid
        for board in DASHBOARDS
        for uid in re.findall('"uid": "(feedloom-[a-z]+)"', dashboards.render(board))
        if uid != board.uid
    }
    assert links
    assert used | set(links) <= uids


def test_compose_pins_images_mounts_what_is_there_and_listens_on_this_machine_alone() -> None:
    services = _yaml("compose.yaml")["services"]
    assert isinstance(services, dict)
    for name, service in services.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "healthcheck" in service or name in ("collector", "loki")
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (generated.FOLDER / source).exists(), source
        assert not re.search("(?i)password|secret|token", str(service.get("environment", "")))


def test_the_collector_takes_whatever_a_process_sends() -> None:
    # An endpoint alone turns all three on: what had no pipeline would be an error a minute.
    config = _yaml("collector.yaml")
    pipelines = config["service"]["pipelines"]  # type: ignore[index]
    assert set(pipelines) == {"traces", "metrics", "logs"}
    for pipeline in pipelines.values():
        assert set(pipeline["exporters"]) <= set(config["exporters"])  # type: ignore[arg-type]


def test_the_collector_is_scraped_as_the_job_that_alerts_know() -> None:
    scraped = _yaml("prometheus/prometheus.yaml")["scrape_configs"]
    own = _yaml("collector.yaml")
    assert isinstance(scraped, list)
    jobs = {job["job_name"]: job for job in scraped}
    [readers] = own["service"]["telemetry"]["metrics"]["readers"]  # type: ignore[index]
    port = readers["pull"]["exporter"]["prometheus"]["port"]
    assert jobs[collector.COLLECTOR_JOB]["static_configs"] == [{"targets": [f"collector:{port}"]}]
    served = own["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]  # type: ignore[index]
    assert jobs["feedloom"]["static_configs"] == [{"targets": [f"collector:{served}"]}]
    # Series come with the job and instance of their process.
    assert jobs["feedloom"]["honor_labels"] is True


def test_labels_are_sanitised() -> None:
    assert label_name("messaging.destination.partition.id") == "messaging_destination_partition_id"
