"""Log lines with the trace they belong to, for people or programs, and OpenTelemetry's logs.

Secrets should not be logged. If one slips in all the same, it does not get out: see
:func:`without_secrets`.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import traceback
from datetime import UTC, datetime

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider

REDACTED = "[redacted]"
CLIENTS = {"aiokafka", "kafka"}
REPEATED_EVERY_S = 10.0
MOST_REPEATED = 1_000
"""Lines that are remembered at once."""

_SEVERITIES = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}
_SECRETS = (
    # An API key's secret; its id is public (``infra.identity.keys``). Also when it was cut short.
    (re.compile(r"\b(fl_[0-9A-Za-z]{12}_)[0-9A-Za-z]{6,}"), rf"\1{REDACTED}"),
    # An ``Authorization`` header's credential. Words of prose have neither digits nor capitals.
    (
        re.compile(r"\b((?i:bearer|basic)\s+)(?=\S*[\dA-Z=])[\w.~+/=-]{8,}"),
        rf"\1{REDACTED}",
    ),
    # A JSON web token without its ``Bearer``.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), REDACTED),
    # ``sasl_password='...'`` of settings and clients, ``"password": "..."``, JAAS, variables.
    (
        re.compile(r"(?i)(password[\"']?\s*[:=]\s*)(\"[^\"]*\"|'[^']*'|(?!None\b)[^\s,;)}\]]+)"),
        rf"\1{REDACTED}",
    ),
    # ``https://name:password@host``.
    (re.compile(r"(://[^\s:/@]+:)[^\s/@]+(?=@)"), rf"\1{REDACTED}"),
)


def without_secrets(text: str) -> str:
    """``text`` without API keys, credentials, tokens and passwords, as far as patterns tell."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class ClientRepeats(logging.Filter):
    """Of what Kafka's clients say over and over, lets one line pass in ``every_s`` seconds.

    While a broker is away they say so dozens of times a second, and bury all else. A line that
    passes knows how many like it did not (``repeats``).
    """

    def __init__(self, every_s: float = REPEATED_EVERY_S) -> None:
        super().__init__()
        self._every_s = every_s
        # When it last passed, and how often it did not since.
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in CLIENTS:
            return True
        key = record.name, record.getMessage()
        passed, held = self._seen.get(key, (-math.inf, 0))
        if record.created - passed < self._every_s:
            self._seen[key] = passed, held + 1
            return False
        if len(self._seen) >= MOST_REPEATED and key not in self._seen:
            self._seen.clear()
        self._seen[key] = record.created, 0
        record.repeats = held
        return True


def _held(record: logging.LogRecord) -> str:
    repeats = getattr(record, "repeats", 0)
    return f" (and {repeats} times more before)" if repeats else ""


class TraceFormatter(logging.Formatter):
    """``time LEVEL logger: message [trace_id]``; the trace id only inside a span."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return super().formatMessage(record) + _held(record)

    def format(self, record: logging.LogRecord) -> str:
        line = without_secrets(super().format(record))
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return line
        first, newline, rest = line.partition("\n")
        return f"{first} [trace {context.trace_id:032x}]{newline}{rest}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``,
    ``service``; inside a span ``trace_id`` and ``span_id``; of an error, its ``exception``.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()) + _held(record),
            "service": self._service,
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
            line["span_id"] = f"{context.span_id:016x}"
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class OtelLogHandler(logging.Handler):
    """Hands each record to an OpenTelemetry logger, with its trace context and exception."""

    def __init__(self, provider: LoggerProvider) -> None:
        super().__init__()
        self._provider = provider

    def emit(self, record: logging.LogRecord) -> None:
        # The exporter's own complaints would feed themselves.
        if record.name.startswith("opentelemetry"):
            return
        attributes: dict[str, str | int] = {
            "code.file.path": record.pathname,
            "code.line.number": record.lineno,
        }
        if record.exc_info and record.exc_info[0] is not None:
            attributes["exception.type"] = record.exc_info[0].__name__
            attributes["exception.message"] = without_secrets(str(record.exc_info[1]))
            attributes["exception.stacktrace"] = without_secrets(
                "".join(traceback.format_exception(*record.exc_info))
            )
        level = max((known for known in _SEVERITIES if known <= record.levelno), default=None)
        self._provider.get_logger(record.name).emit(
            LogRecord(
                timestamp=int(record.created * 1e9),
                observed_timestamp=time.time_ns(),
                context=get_current(),
                severity_text=record.levelname,
                severity_number=(
                    SeverityNumber.UNSPECIFIED if level is None else _SEVERITIES[level]
                ),
                body=without_secrets(record.getMessage()) + _held(record),
                attributes=attributes,
            )
        )
