"""Why a batch is not run on, and what each asks of its catcher.

FeedloomError
├── BatchTaken               another runner has the batch: leave it alone
├── FileMissing              a file is not in the store: a batch that needs it fails
└── RetryableError
    ├── BatchContended       others wrote at the same moment: look again before another try
    └── FileStoreFailed      the store or the disk would not: make room or reach it, and try again
"""

from __future__ import annotations

from infra.contracts.errors import FeedloomError, RetryableError


class BatchTaken(FeedloomError):
    """A batch is another runner's, or finished."""


class FileMissing(FeedloomError):
    """The store has no such file."""


class BatchContended(RetryableError):
    """A change of a batch was overtaken again and again."""


class FileStoreFailed(RetryableError):
    """The store could not be reached, read or written."""
