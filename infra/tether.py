"""Run a command that ends when its starter ends, even if the starter is killed outright.

``python -m infra.tether PARENT_PID COMMAND...`` asks the Linux kernel to send SIGTERM to this
process when its parent dies (``prctl(PR_SET_PDEATHSIG)``, see prctl(2)), then becomes COMMAND.
The setting survives ``execve``. A process of its own is used because a ``preexec_fn`` is unsafe in
a program with threads. Elsewhere than on Linux the command runs without the tether.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` tied to the life of the calling process."""
    return [sys.executable, "-m", "infra.tether", str(os.getpid()), *command]


def _main(arguments: Sequence[str]) -> None:
    parent, command = int(arguments[0]), list(arguments[1:])
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        # The parent may have died before the request was in place.
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(command[0], command)  # nosec B606 # it is this module's purpose; words, no shell


if __name__ == "__main__":
    _main(sys.argv[1:])
