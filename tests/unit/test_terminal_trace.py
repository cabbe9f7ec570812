"""The path of a request: found in files, in OTLP/JSON and at Jaeger; followed over span links."""

from __future__ import annotations

import io
import itertools
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind
from rich.console import Console

from infra.contracts.errors import ConfigurationError
from infra.terminal import trace_tree, trace_view
from infra.terminal.commands import trace
from infra.terminal.jaeger import JaegerSource
from infra.terminal.otlp_json import read_otlp_json
from infra.terminal.span_sources import SpanFiles, SpanList, SpanSource
from observability.spans import SpanFileExporter, SpanLink, SpanRecord, read_spans, trace_hops

REQUEST, FEEDBACK, TRAINING, SWITCH, OTHER = (digit * 32 for digit in "12345")
MS = 1_000_000


def span(
    trace_id: str,
    span_id: str,
    name: str,
    *,
    parent: str | None = None,
    service: str = "worker",
    start_ms: int = 0,
    took_ms: int = 10,
    links: tuple[str, ...] = (),
    status: str = "unset",
    message: str = "",
    attributes: dict[str, Any] | None = None,
) -> SpanRecord:
    return SpanRecord(
        service=service,
        name=name,
        kind="internal",
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent,
        start_ns=start_ms * MS,
        end_ns=(start_ms + took_ms) * MS,
        status=status,
        attributes=attributes or {},
        links=links,
        linked=tuple(SpanLink(trace_id=one, attributes={"feedloom.link": "x"}) for one in links),
        message=message,
    )


IDS = {"feedloom.request.id": "r-1"}
LOOP = [
    span(REQUEST, "a1", "send generation.requests", service="shop", took_ms=40, attributes=IDS),
    span(
        REQUEST,
        "a2",
        "process generation.requests",
        parent="a1",
        start_ms=5,
        took_ms=30,
        attributes={
            **IDS,
            "messaging.destination.name": "generation.requests",
            "messaging.destination.partition.id": "3",
            "messaging.kafka.offset": 41,
        },
    ),
    span(
        REQUEST,
        "a3",
        "text_completion default",
        parent="a2",
        start_ms=6,
        took_ms=20,
        attributes={"gen_ai.usage.input_tokens": 6, "gen_ai.usage.output_tokens": 17},
    ),
    span(FEEDBACK, "b1", "send feedback.events", start_ms=90, links=(REQUEST,), attributes=IDS),
    span(OTHER, "c1", "send feedback.events", start_ms=91),
    span(TRAINING, "d1", "train default", start_ms=5000, links=(FEEDBACK, OTHER)),
    span(TRAINING, "d2", "send model.registry", parent="d1", start_ms=5001),
    span(
        SWITCH,
        "e1",
        "switch default",
        start_ms=6000,
        links=(TRAINING,),
        status="error",
        message="SwitchFailed: no such file",
    ),
]


def listed(spans: list[SpanRecord]) -> SpanList:
    return SpanList(spans, where="here")


def write(folder: Path, spans: list[SpanRecord]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = b"".join(msgspec.json.encode(one) + b"\n" for one in spans)
    (folder / "worker-1.jsonl").write_bytes(lines + b'{"service": "worker", "na')
    return folder


def otlp(spans: list[SpanRecord]) -> list[dict[str, Any]]:
    """One request of an exporter for each span, as the collector's file exporter writes them."""

    def value(given: Any) -> dict[str, Any]:
        if isinstance(given, bool):
            return {"boolValue": given}
        return {"intValue": str(given)} if isinstance(given, int) else {"stringValue": given}

    def pairs(given: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"key": key, "value": value(one)} for key, one in given.items()]

    return [
        {
            "resourceSpans": [
                {
                    "resource": {"attributes": pairs({"service.name": one.service})},
                    "scopeSpans": [
                        {
                            "spans": [
                                {
                                    "traceId": one.trace_id,
                                    "spanId": one.span_id,
                                    "parentSpanId": one.parent_id or "",
                                    "name": one.name,
                                    "kind": 1,
                                    "startTimeUnixNano": str(one.start_ns),
                                    "endTimeUnixNano": str(one.end_ns),
                                    "attributes": pairs(one.attributes),
                                    "links": [
                                        {
                                            "traceId": link.trace_id,
                                            "spanId": link.span_id,
                                            "attributes": pairs(link.attributes),
                                        }
                                        for link in one.linked
                                    ],
                                    "status": {"code": 2, "message": one.message}
                                    if one.status == "error"
                                    else {},
                                }
                            ]
                        }
                    ],
                }
            ]
        }
        for one in spans
    ]


class _Jaeger(BaseHTTPRequestHandler):
    """As much of Jaeger's query service as answers from ``LOOP``."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/api/services":
            self._answer({"data": ["worker", "shop"]})
        elif url.path == "/api/traces":
            tags = json.loads(query.get("tags", "{}"))
            self._traces(
                {
                    one.trace_id
                    for one in LOOP
                    if one.service == query["service"] and tags.items() <= one.attributes.items()
                }
            )
        elif any(one.trace_id == url.path.rpartition("/")[2] for one in LOOP):
            self._traces({url.path.rpartition("/")[2]})
        else:
            self.send_error(404)

    def _traces(self, ids: set[str]) -> None:
        self._answer({"data": [_jaeger_trace(one) for one in sorted(ids)]})

    def _answer(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _jaeger_trace(trace_id: str) -> dict[str, Any]:
    def references(one: SpanRecord) -> list[dict[str, str]]:
        parent = (
            [{"refType": "CHILD_OF", "traceID": trace_id, "spanID": one.parent_id}]
            if one.parent_id
            else []
        )
        links = [
            {"refType": "FOLLOWS_FROM", "traceID": link.trace_id, "spanID": link.span_id}
            for link in one.linked
        ]
        return parent + links

    mine = [one for one in LOOP if one.trace_id == trace_id]
    return {
        "traceID": trace_id,
        "spans": [
            {
                "traceID": trace_id,
                "spanID": one.span_id,
                "operationName": one.name,
                "references": references(one),
                "startTime": one.start_ns // 1000,
                "duration": (one.end_ns - one.start_ns) // 1000,
                "tags": [
                    {"key": key, "type": "string", "value": value}
                    for key, value in {**one.attributes, "span.kind": one.kind}.items()
                ]
                + (
                    [
                        {"key": "error", "type": "bool", "value": True},
                        {"key": "otel.status_description", "value": one.message},
                    ]
                    if one.status == "error"
                    else []
                ),
                "logs": [],
                "processID": one.service,
            }
            for one in mine
        ],
        "processes": {one.service: {"serviceName": one.service, "tags": []} for one in mine},
    }


@pytest.fixture
def jaeger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Jaeger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=["list", "files", "otlp", "otlp lines", "jaeger"])
def source(request: pytest.FixtureRequest, tmp_path: Path, jaeger: str) -> SpanSource:
    match request.param:
        case "list":
            return listed(LOOP)
        case "files":
            return SpanFiles([tmp_path / "none", write(tmp_path / "spans", LOOP)])
        case "jaeger":
            return JaegerSource(jaeger)
    path = tmp_path / "traces.json"
    if request.param == "otlp":
        groups = [group for one in otlp(LOOP) for group in one["resourceSpans"]]
        path.write_text(json.dumps({"resourceSpans": groups}))
    else:
        path.write_text("\n".join(json.dumps(one) for one in otlp(LOOP)) + "\n")
    return read_otlp_json(path)


def test_a_request_is_told_with_all_that_came_of_it_wherever_its_spans_are(
    source: SpanSource,
) -> None:
    story = trace_tree.of_request(source, "r-1")
    assert story is not None
    told = [(one.trace_id, one.role, one.hop) for one in story.sections]
    assert told == [
        (REQUEST, "request", 0),
        (FEEDBACK, "feedback", 1),
        (TRAINING, "training run", 2),
        (SWITCH, "version switch", 3),
    ]
    first, *_, last = story.sections
    assert [(node.span.name, node.depth) for node in first.nodes] == [
        ("send generation.requests", 0),
        ("process generation.requests", 1),
        ("text_completion default", 2),
    ]
    assert (first.nodes[0].span.service, first.nodes[1].span.service) == ("shop", "worker")
    generated = first.nodes[2].span
    assert (generated.start_ns, generated.end_ns) == (6 * MS, 26 * MS)
    assert generated.attributes["gen_ai.usage.output_tokens"] == 17
    assert (last.nodes[0].span.status, last.nodes[0].span.message) == (
        "error",
        "SwitchFailed: no such file",
    )
    assert "switch default of worker" in last.relation


def test_links_are_followed_back_too_but_not_round_the_corner(source: SpanSource) -> None:
    story = trace_tree.of_trace(source, TRAINING)
    assert story is not None
    assert [one.trace_id for one in story.sections] == [TRAINING, SWITCH, FEEDBACK, OTHER, REQUEST]
    # Of a request, what else its training run has read is none of its business.
    story = trace_tree.of_request(source, "r-1")
    assert story is not None
    assert OTHER not in [one.trace_id for one in story.sections]


def test_nothing_is_known_of_another_request(source: SpanSource) -> None:
    assert trace_tree.of_request(source, "r-2") is None
    assert trace_tree.of_trace(source, "f" * 32) is None


def test_many_linked_traces_are_cut_off_and_counted() -> None:
    many = [span(f"{n:032x}", f"{n:016x}", "commit", links=(REQUEST,)) for n in range(100, 130)]
    story = trace_tree.of_request(listed([*LOOP[:3], *many]), "r-1", most_linked=4)
    assert story is not None
    assert len(story.sections) == 1 + 4
    assert story.left_out == {REQUEST: 26}
    assert trace_view.as_json(story)["traces"][0]["linked_left_out"] == 26


def test_a_trace_with_the_id_that_no_link_leads_to_comes_last() -> None:
    lone = span(OTHER, "f1", "send feedback.events", start_ms=70, attributes=IDS)
    story = trace_tree.of_request(listed([lone, *LOOP[:4]]), "r-1")
    assert story is not None
    assert [one.trace_id for one in story.sections] == [REQUEST, FEEDBACK, OTHER]
    assert "carries r-1" in story.sections[-1].relation


spans_of_one_trace = st.lists(
    st.tuples(st.integers(0, 7), st.none() | st.integers(0, 7), st.integers(0, 50)), max_size=12
)


@given(spans_of_one_trace)
def test_every_span_is_in_the_tree_once_whatever_the_parents(
    rows: list[tuple[int, int | None, int]],
) -> None:
    spans = [
        span(REQUEST, str(own), "x", parent=None if up is None else str(up), start_ms=start)
        for own, up, start in rows
    ]
    nodes = list(trace_tree.tree(spans))
    assert sorted(node.span.span_id for node in nodes) == sorted({str(own) for own, *_ in rows})
    depths = [0, *(node.depth for node in nodes)]
    assert all(after <= before + 1 for before, after in itertools.pairwise(depths))


@pytest.mark.parametrize("width", [72, 110])
def test_the_page_fits_the_terminal(width: int) -> None:
    story = trace_tree.of_request(listed(LOOP), "r-1")
    assert story is not None
    console = Console(file=io.StringIO(), width=width, record=True)
    trace_view.show(story, console)
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= width
    page = "\n".join(line.rstrip() for line in lines)
    assert "generation.requests/3 at 41" in page
    assert "6 tokens in, 17 out" in page
    assert "SwitchFailed: no such file" in page
    assert page.count("r-1") == 1
    if width == 110:
        row = next(line for line in lines if "text_completion" in line)
        assert row.split() == [
            *("└─", "text_completion", "default", "worker", "internal", "+6.00", "ms"),
            *("20.0", "ms", "▕", "█████████████", "▏"),
        ]
        # 6 to 26 of 40 ms, on 24 places.
        assert "▕   █████████████        ▏" in row


@pytest.mark.parametrize(
    ("ns", "said"),
    [
        (0, "0"),
        (999, "1 µs"),
        (1_500_000, "1.50 ms"),
        (250 * MS, "250 ms"),
        (12_340 * MS, "12.3 s"),
        (90_000 * MS, "1.5 min"),
    ],
)
def test_durations_have_three_digits(ns: int, said: str) -> None:
    assert trace_view.duration(ns) == said


def test_a_file_tells_which_span_a_link_leads_to(tmp_path: Path) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(SpanFileExporter(tmp_path)))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("one", kind=SpanKind.PRODUCER) as one:
        pass
    target = one.get_span_context()
    with (
        pytest.raises(KeyError),
        tracer.start_as_current_span(
            "two",
            links=[Link(target, {"feedloom.link": "request"})],
            attributes={"all": ("a", "b")},
        ),
    ):
        raise KeyError("gone")
    provider.shutdown()
    _, second = read_spans(tmp_path)
    assert second.pointers == (
        SpanLink(
            trace_id=f"{target.trace_id:032x}",
            span_id=f"{target.span_id:016x}",
            attributes={"feedloom.link": "request"},
        ),
    )
    assert second.attributes == {"all": "a, b"}
    assert (second.status, second.message) == ("error", "KeyError: 'gone'")
    assert trace_hops([second], f"{target.trace_id:032x}") == ["shop: two"]


def test_lines_without_span_ids_of_links_are_read_as_before(tmp_path: Path) -> None:
    old = msgspec.to_builtins(span(FEEDBACK, "b1", "train", links=(REQUEST,)))
    for name in ("linked", "message", "instance"):
        del old[name]
    (tmp_path / "trainer-1.jsonl").write_bytes(msgspec.json.encode(old) + b"\n")
    (read,) = SpanFiles([tmp_path]).pointing_at(REQUEST)
    assert read.pointers == (SpanLink(trace_id=REQUEST),)


def ask(*arguments: str) -> Any:
    return CliRunner().invoke(trace, arguments)


def test_the_command_prints_the_story_and_its_json(tmp_path: Path) -> None:
    folder = str(write(tmp_path / "spans", LOOP))
    done = ask("r-1", "--spans", folder)
    assert done.exit_code == 0, done.output
    assert "request  trace 1111" in done.output
    document = json.loads(ask("r-1", "--spans", folder, "--json").output)
    roles = [one["role"] for one in document["traces"]]
    assert roles == ["request", "feedback", "training run", "version switch"]
    assert document["traces"][1]["link"]["attributes"] == {"feedloom.link": "x"}
    by_trace = json.loads(ask("--trace-id", FEEDBACK.upper(), "--spans", folder, "--json").output)
    assert by_trace["traces"][0]["trace_id"] == FEEDBACK


def test_an_unknown_id_says_where_was_looked_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path))
    write(tmp_path / "spans", LOOP)
    error = ask("r-9").exception
    assert isinstance(error, ConfigurationError)
    for part in (
        "no span of request r-9",
        f"{tmp_path}/spans (1 file)",
        f"{tmp_path}/demo/state/spans (not there)",
        "FEEDLOOM_TELEMETRY__SPAN_DIRECTORY",
    ):
        assert part in str(error)
    monkeypatch.setenv("FEEDLOOM_TELEMETRY__SPAN_DIRECTORY", str(tmp_path / "mine"))
    assert f"in {tmp_path}/mine (not there)" in str(ask("r-1").exception)


def test_a_question_is_one_question(tmp_path: Path) -> None:
    assert ask().exit_code == ask("r-1", "--trace-id", REQUEST).exit_code == 2
    both = ask("r-1", "--spans", str(tmp_path), "--jaeger", "http://127.0.0.1:1")
    assert both.exit_code == 2


def test_what_is_no_trace_file_and_no_jaeger_is_said_so(tmp_path: Path, jaeger: str) -> None:
    (tmp_path / "x.json").write_text("[1, 2]")
    assert "is not OTLP/JSON" in str(ask("r", "--otlp-json", str(tmp_path / "x.json")).exception)
    assert "cannot be read" in str(ask("r", "--otlp-json", str(tmp_path / "y.json")).exception)
    assert "no Jaeger answers" in str(ask("r", "--jaeger", "http://127.0.0.1:1").exception)
    assert "give a URL" in str(ask("r", "--jaeger", "localhost:16686").exception)
    assert "is it the query service" in str(ask("r", "--jaeger", f"{jaeger}/ui").exception)
