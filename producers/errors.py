"""Errors of the producer SDK."""

from __future__ import annotations

from infra.contracts.errors import FeedloomError


class ResultTimeout(FeedloomError, TimeoutError):
    """No answer came in time. The request may still be answered; the handle stays usable."""


class ClientClosed(FeedloomError):
    """The client was closed before the answer came."""


class InvalidFeedback(FeedloomError, ValueError):
    """The feedback says nothing, or more than its field can hold."""
