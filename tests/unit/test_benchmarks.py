"""The parts of the benchmarks that work figures out: wrong arithmetic would look like a result."""

from __future__ import annotations

import gzip
import io
import math
import os
import socket
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from benchmarks.bench_mfu import flops_per_token, peak_tflops
from benchmarks.bench_telemetry import check_received, closed_port, inherited
from benchmarks.bench_train import check_losses
from benchmarks.guard import watch
from benchmarks.harness import Broken, Report, Target
from benchmarks.load import Job, Trace, summary
from benchmarks.otlp_sink import Sink
from benchmarks.plot import Chart, Line, render
from benchmarks.profile_dispatch import summarize
from benchmarks.render import BEGIN, END, page
from benchmarks.report import ORDER
from benchmarks.stats import event_rate, paired_ratio, percentile, rounded

ROOT = Path(__file__).resolve().parents[2]


def trace(number: int, sent: float, arrivals: list[tuple[float, int]], tokens: int) -> Trace:
    return Trace(Job(number, "p", tokens), sent, arrivals, ended=arrivals[-1][0])


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([4, 1, 3, 2], 0.5) == 2
    assert percentile([4, 1, 3, 2], 0.95) == 4
    assert math.isnan(percentile([], 0.5))


def test_rounds_are_compared_with_their_own_kind() -> None:
    """The machine was half as fast in the second round: the ratio does not see it."""
    assert paired_ratio([100, 50, 90], [200, 100, 200]) == 0.5


@pytest.mark.parametrize("offset", [0.0, 0.7, 1.9])
def test_a_rate_of_bursts_does_not_depend_on_where_the_window_lies(offset: float) -> None:
    bursts = [2.0 * burst for burst in range(100) for _ in range(8)]
    window = [at for at in bursts if 20 + offset <= at < 40 + offset]
    assert event_rate(window) == pytest.approx(4.0, rel=0.03)


def test_a_window_counts_what_arrived_within_it() -> None:
    early = trace(0, 0.0, [(0.5, 1), (1.5, 10), (2.5, 9)], 20)
    within = trace(1, 1.0, [(1.1, 1), (1.3, 4)], 5)
    window = summary([early, within], begin=1.0, end=2.0)
    assert window.tokens_per_s == 15
    assert window.ttft_ms[0] == pytest.approx(100)
    # Four tokens after 200 ms are four gaps of 50 ms.
    assert window.itl_ms[0] == pytest.approx(50)
    assert (window.requests, window.requests_per_s) == (2, 1)


def test_deltas_that_do_not_say_share_the_tokens() -> None:
    untold = trace(0, 0.0, [(0.5, 0), (1.5, 0)], 10)
    assert summary([untold], begin=0.0, end=1.0).tokens_per_s == 5


def test_a_short_answer_breaks_the_run() -> None:
    with pytest.raises(Broken, match="request 3"):
        summary([trace(3, 0.0, [(0.5, 4)], 5)], begin=0.0, end=1.0)


def test_a_missed_target_is_reported() -> None:
    report = Report("bench", quick=False)
    report.ratio("a / b", 0.5, Target(">=", 0.95))
    report.ratio("growth", 1.0, Target("<=", 1.1))
    document = report.document("bench")
    assert document["met"] == {"a / b": False, "growth": True}
    assert document["targets"] == {"a / b": ">= 0.95", "growth": "<= 1.1"}


def test_figures_are_rounded_and_stay_json() -> None:
    assert rounded({"a": (1.23456, math.nan), 2: 7}) == {"a": [1.235, None], "2": 7}


def test_the_page_keeps_what_people_wrote() -> None:
    text = f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    document = {
        **Report("bench_scale", quick=False).document("python -m benchmarks.bench_scale"),
        "ratios": {"4 workers / 4 x one worker": 0.97},
        "targets": {"4 workers / 4 x one worker": ">= 0.95"},
        "met": {"4 workers / 4 x one worker": True},
    }
    written = page(text, {"bench_scale": document})
    assert written.startswith("before\n\n")
    assert written.endswith("\n\nafter\n")
    assert "old" not in written
    assert "| 4 workers / 4 x one worker | 0.97 | >= 0.95 | met |" in written
    assert page(written, {"bench_scale": document}) == written


def test_the_page_names_what_was_not_measured() -> None:
    written = page(f"{BEGIN}\n{END}\n", {}, ["bench_mfu"])
    assert "## bench_mfu" in written
    assert "**Not measured yet.** `python -m benchmarks.bench_mfu`" in written


def test_flops_are_those_of_the_formula() -> None:
    """GPT-2 124M at 1,024 tokens: 0.86 GFLOPs a token, as nanoGPT counts."""
    found = flops_per_token(parameters=123_653_376, layers=12, width=768, context=1024)
    assert found == 6 * 123_653_376 + 113_246_208


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.0),
    ],
)
def test_each_gpu_has_the_peak_of_its_own_kind(device: str, peak: float) -> None:
    assert peak_tflops(device) == peak


@pytest.mark.parametrize(
    "device", ["NVIDIA A100-SXM4-80GB", "NVIDIA GH200 480GB", "NVIDIA H200 NVL"]
)
def test_an_unknown_gpu_asks_for_its_peak(device: str) -> None:
    with pytest.raises(Broken, match="--peak-tflops"):
        peak_tflops(device)


@pytest.mark.parametrize("other", [2.01, math.nan])
def test_sides_that_did_other_work_break_the_run(other: float) -> None:
    check_losses("race", {"a": 2.0, "b": 2.001}, 1e-3)
    with pytest.raises(Broken, match="losses differ"):
        check_losses("race", {"a": 2.0, "b": other}, 1e-3)


def test_the_plot_is_well_formed() -> None:
    lines = [Line("a<b", [(1, 300.0), (64, 5000.0)]), Line("c", [(1, 250.0), (64, 4000.0)])]
    drawn = ET.fromstring(render([Chart("tokens/s", "concurrency", lines)] * 2))
    assert len(drawn.findall(".//{http://www.w3.org/2000/svg}polyline")) == 4


def test_a_sample_counts_to_the_part_nearest_the_top() -> None:
    stacks = (
        "run (/x/stream_workers/handler.py:1);send (/x/site-packages/aiokafka/p.py:2) 3\n"
        "run (/x/stream_workers/handler.py:9);uuid4 (/usr/lib/uuid.py:2) 1\n"
    )
    parts, functions, samples = summarize(stacks)
    assert parts == {"aiokafka": 0.75, "request handler": 0.25}
    assert functions == {"run (stream_workers/handler.py)": 1.0}
    assert samples == 4


def test_the_guard_cleans_up_when_its_writer_is_gone(tmp_path: Path) -> None:
    left, ended = (
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
        )
        for _ in range(2)
    )
    folder = tmp_path / "home"
    folder.mkdir()
    try:
        watch(
            io.StringIO(f"folder {folder}\ngroup {left.pid}\ngroup {ended.pid}\ndone {ended.pid}\n")
        )
        assert left.wait(20) == -9
        assert ended.poll() is None
        assert not folder.exists()
    finally:
        for process in (left, ended):
            process.kill()
            process.wait()


def test_the_report_runs_every_benchmark() -> None:
    found = {path.stem for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert found | {"profile_dispatch"} == set(ORDER)


def export(*spans: tuple[bytes, bytes, str, Span.SpanKind.ValueType]) -> bytes:
    """Spans of a trace id, a span id, a name and a kind, as an exporter sends them."""
    sent = [
        Span(trace_id=trace_id, span_id=span_id, name=name, kind=kind)
        for trace_id, span_id, name, kind in spans
    ]
    scope = ResourceSpans(scope_spans=[ScopeSpans(spans=sent)])
    return bytes(ExportTraceServiceRequest(resource_spans=[scope]).SerializeToString())


def test_the_sink_counts_each_span_once_and_traces_that_reached_a_worker() -> None:
    consumer, producer = Span.SpanKind.SPAN_KIND_CONSUMER, Span.SpanKind.SPAN_KIND_PRODUCER
    sink = Sink(hangs=False)
    first = export(
        (b"t1", b"s1", "process x.requests", consumer), (b"t1", b"s2", "send x.requests", producer)
    )
    sink.keep("traces", "identity", first)
    sink.keep("traces", "gzip", gzip.compress(first))
    sink.keep("traces", "identity", export((b"t2", b"s3", "send x.requests", producer)))
    sink.keep("traces", "identity", export((b"t3", b"s4", "process x.results", consumer)))
    found = sink.found("requests")
    assert (found["spans"], found["traces"]) == (4, 1)
    assert found["spans_by_name"]["send x.requests"] == 2


@pytest.mark.parametrize("missing", ["spans", "metrics", "logs"])
def test_a_side_that_sent_nothing_is_no_side_with_everything_on(missing: str) -> None:
    all_there = {"spans": 1, "metrics": 1, "logs": 1}
    check_received(all_there, unanswered=1)
    with pytest.raises(Broken, match="not every signal"):
        check_received({**all_there, missing: 0}, unanswered=1)
    with pytest.raises(Broken, match="does not answer"):
        check_received(all_there, unanswered=0)


def test_a_closed_port_refuses() -> None:
    with (
        closed_port() as url,
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))),
    ):
        pass


def test_variables_are_inherited_only_by_children_of_their_side(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("benchmarks.bench_telemetry.project_home", lambda: tmp_path)
    monkeypatch.delenv("FEEDLOOM_HOME", raising=False)
    with inherited({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}):
        assert os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://x"
        assert os.environ["FEEDLOOM_HOME"] == str(tmp_path)
    assert not {"OTEL_EXPORTER_OTLP_ENDPOINT", "FEEDLOOM_HOME"} & set(os.environ)
