"""Why a backup or a restore came to nothing, and what each asks of its catcher.

FeedloomError
├── BackupRejected           a backup is not whole, not what it says or not signed: never restore it
├── RestoreRefused           what is on the platform stands against it; nothing was written
└── RetryableError
    ├── RestoreDisturbed     somebody else wrote at the same time: stop them, and run it again
    └── BackupStoreFailed    the place of a backup could not be reached, read or written
"""

from __future__ import annotations

from infra.contracts.errors import FeedloomError, RetryableError


class BackupRejected(FeedloomError):
    """A backup must not be restored. The message names the file that is at fault."""


class RestoreRefused(FeedloomError):
    """The platform is not as a restore needs it. Nothing was written."""


class RestoreDisturbed(RetryableError):
    """A record came to lie elsewhere than planned: somebody else writes to the same topic."""


class BackupStoreFailed(RetryableError):
    """The place of a backup could not be reached, read or written."""
