"""The root of every error Feedloom raises, and what each asks of its catcher.

FeedloomError
├── ContractError            the record can never be read: dead-letter it
│   ├── MalformedRecord        not JSON, wrong shape, missing field
│   ├── UnsupportedSchemaVersion
│   └── UnknownEventType
├── RequestRefused           the request can never run: answer it with an error result
├── RetryableError           the same record may succeed later: retry within a bound
├── FatalError               the process cannot go on: stop, let the work be delivered again
└── ConfigurationError       a person must change a setting; the message says which
"""

from __future__ import annotations


class FeedloomError(Exception):
    """Root of the tree above."""


class ContractError(FeedloomError):
    """A record breaks the contract and never will be readable. Dead-letter it."""


class MalformedRecord(ContractError):
    """The bytes are not the JSON document that the contract describes."""


class UnsupportedSchemaVersion(ContractError):
    """The major part of ``schema_version`` is one this reader does not know."""


class UnknownEventType(ContractError):
    """The ``type`` tag names no event of the contract."""


class RequestRefused(FeedloomError):
    """A well-formed request that cannot run. Becomes an error result with this code and text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RetryableError(FeedloomError):
    """The same work may succeed if tried again, within a bound."""


class FatalError(FeedloomError):
    """The process cannot go on and must stop without acknowledging its unfinished work."""


class ConfigurationError(FeedloomError):
    """A setting or the machine is at fault; the message names it and what to do."""
