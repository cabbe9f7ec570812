"""Why an artifact was not loaded or not kept, and what each asks of its catcher.

FeedloomError
├── ArtifactRejected         the files are not what was published: never load them
└── RetryableError
    └── ArtifactStoreFailed  the store or the disk would not: make room or reach it, and try again
"""

from __future__ import annotations

from infra.contracts.errors import FeedloomError, RetryableError


class ArtifactRejected(FeedloomError):
    """An artifact is not what its manifest or its signature says, and must not be loaded."""


class ArtifactStoreFailed(RetryableError):
    """A store could not be reached, read or written. Nothing was published or loaded."""
