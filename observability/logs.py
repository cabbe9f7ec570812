"""Log lines for people, with the trace they belong to, and the bridge to OpenTelemetry's logs."""

from __future__ import annotations

import logging
import time
import traceback

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.context import get_current
from opentelemetry.sdk._logs import LoggerProvider

_SEVERITIES = {
    logging.DEBUG: SeverityNumber.DEBUG,
    logging.INFO: SeverityNumber.INFO,
    logging.WARNING: SeverityNumber.WARN,
    logging.ERROR: SeverityNumber.ERROR,
    logging.CRITICAL: SeverityNumber.FATAL,
}


class TraceFormatter(logging.Formatter):
    """``time LEVEL logger: message [trace_id]``; the trace id only inside a span."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        context = trace.get_current_span().get_span_context()
        if not context.is_valid:
            return line
        first, newline, rest = line.partition("\n")
        return f"{first} [trace {context.trace_id:032x}]{newline}{rest}"


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
            attributes["exception.message"] = str(record.exc_info[1])
            attributes["exception.stacktrace"] = "".join(
                traceback.format_exception(*record.exc_info)
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
                body=record.getMessage(),
                attributes=attributes,
            )
        )
