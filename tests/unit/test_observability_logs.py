"""Log lines: as JSON on demand, with their trace, and without anybody's secrets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider

from infra.identity.keys import make_key
from observability.logs import (
    MOST_REPEATED,
    REDACTED,
    ClientRepeats,
    JsonFormatter,
    OtelLogHandler,
    TraceFormatter,
    without_secrets,
)

KEY = make_key()
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("called with KEY", "SECRET"),
        ("called with CUT", "SECRET"),
        ("Authorization: Bearer KEY", "SECRET"),
        ("{'authorization': 'bearer c0ffee.c0ffee-c0ffee'}", "c0ffee"),
        ("Authorization: Basic dXNlcjpwYXNzMQ==", "dXNlcjpwYXNzMQ"),
        (f"token {TOKEN}", "c2lnbmF0dXJl"),
        ("KafkaProducer(sasl_plain_password='hunter 2', retries=3)", "hunter"),
        ('{"sasl_password": "hunter2", "user": "u"}', "hunter2"),
        ("FEEDLOOM_KAFKA__SASL_PASSWORD=hunter2 is set", "hunter2"),
        ('ScramLoginModule required username="u" password="hunter2";', "hunter2"),
        ("GET https://user:hunter2@registry.example/v1", "hunter2"),
    ],
)
def test_a_secret_that_slips_in_does_not_get_out(text: str, secret: str) -> None:
    # Put in here: a test's name must be the same in every process.
    cut = "CUT" in text
    text = text.replace("KEY", KEY.text).replace("CUT", KEY.text[:30])
    secret = secret.replace("SECRET", KEY.text[17:30] if cut else KEY.secret)
    assert secret in text
    shown = without_secrets(text)
    assert secret not in shown
    assert REDACTED in shown


@pytest.mark.parametrize(
    "text",
    [
        "API keys changed: KEY_ID",
        "send an API key or a token as `Authorization: Bearer ...`",
        "bearer credentials and basic understanding are words",
        "needs sasl_password or sasl_password_file",
        "sasl_password=None",
        "http://127.0.0.1:8000/v1/models?after=a@b",
        "generation.requests/0 at 17",
    ],
)
def test_other_lines_stay_as_they_are(text: str) -> None:
    text = text.replace("KEY_ID", KEY.key_id)
    assert without_secrets(text) == text


def a_record(message: str, *arguments: object, failed: bool = False) -> logging.LogRecord:
    failure = None
    if failed:
        try:
            raise ValueError(f"refused {KEY.text}")
        except ValueError:
            failure = sys.exc_info()
    return logging.LogRecord("shop", logging.WARNING, "f.py", 3, message, arguments, failure)


def test_a_line_of_json_says_when_who_what_and_in_which_trace() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("work") as span:
        line = JsonFormatter("till").format(a_record("sold %d\nof é", 3))
    assert "\n" not in line
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    context = span.get_span_context()
    assert found == {
        "level": "WARNING",
        "logger": "shop",
        "message": "sold 3\nof é",
        "service": "till",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
    }
    assert "trace_id" not in json.loads(JsonFormatter("till").format(a_record("sold")))


def test_no_way_out_shows_a_secret() -> None:
    exporter = InMemoryLogRecordExporter()
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    record = a_record("key %s", KEY.text, failed=True)
    OtelLogHandler(provider).emit(record)
    (sent,) = exporter.get_finished_logs()
    for shown in (
        TraceFormatter().format(record),
        JsonFormatter("till").format(record),
        sent.log_record.body,
        *(sent.log_record.attributes or {}).values(),
    ):
        assert KEY.secret not in str(shown)
    assert "ValueError: refused" in JsonFormatter("till").format(record)
    assert KEY.key_id in str(sent.log_record.body)
    # For others that look at the record, it is what it was.
    assert record.getMessage() == f"key {KEY.text}"


PROGRAM = """
import logging
from infra.settings import load_settings
from observability.setup import configure_telemetry

with configure_telemetry("shop", load_settings().telemetry):
    logging.getLogger("shop").info("open")
"""


@pytest.mark.parametrize("form", ["json", "text"])
def test_the_form_is_a_setting(form: str) -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env=plain | {"FEEDLOOM_TELEMETRY__LOG_FORMAT": form, "OTEL_SERVICE_NAME": "till"},
        timeout=120,
    )
    (line,) = finished.stderr.splitlines()
    if form == "json":
        found = json.loads(line)
        assert (found["service"], found["message"]) == ("till", "open")
    else:
        assert line.endswith("INFO    shop: open")


def _said(name: str, at_s: float, text: str = "no broker") -> logging.LogRecord:
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, "%s", (text,), None)
    record.created = at_s
    return record


def test_what_a_kafka_client_repeats_is_written_now_and_then_with_how_often_it_was_said() -> None:
    filtering = ClientRepeats(every_s=10)
    moments = [100.0, 100.1, 103.0, 109.9, 110.0, 125.0]
    records = [_said("aiokafka.conn", moment) for moment in moments]
    passed = [record for record in records if filtering.filter(record)]
    assert [record.created for record in passed] == [100.0, 110.0, 125.0]
    lines = [TraceFormatter().format(record) for record in passed]
    assert [line.partition("aiokafka.conn: ")[2] for line in lines] == [
        "no broker",
        "no broker (and 3 times more before)",
        "no broker",
    ]
    written = json.loads(JsonFormatter("feedloom-worker").format(passed[1]))
    assert written["message"] == "no broker (and 3 times more before)"


def test_another_line_another_logger_and_our_own_repeats_are_written() -> None:
    filtering = ClientRepeats(every_s=10)
    assert filtering.filter(_said("aiokafka", 1.0, "node 1"))
    assert filtering.filter(_said("aiokafka", 1.0, "node 2"))
    assert filtering.filter(_said("kafka.net", 1.0, "node 1"))
    assert all(filtering.filter(_said("stream_workers.outcomes", 1.0)) for _ in range(3))


def test_lines_that_all_differ_take_no_more_memory_for_ever() -> None:
    filtering = ClientRepeats(every_s=10)
    for number in range(3 * MOST_REPEATED):
        assert filtering.filter(_said("kafka", 1.0, f"request {number}"))
    assert len(filtering._seen) <= MOST_REPEATED
