"""Which requests were answered, so that one that is submitted again is not answered twice."""

from __future__ import annotations

from collections import deque
from hashlib import blake2b

DIGEST_BYTES = 16


class AnsweredKeys:
    """The newest ``limit`` keys; older ones are forgotten. A key is a request's two ids.

    Kept as digests: a third of the memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._digests: set[bytes] = set()
        self._order: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return _digest(key) in self._digests

    def add(self, key: tuple[str, str]) -> None:
        """Remember it; one that is known already stays where it is in the order."""
        digest = _digest(key)
        if digest in self._digests:
            return
        self._digests.add(digest)
        self._order.append(digest)
        if len(self._order) > self._limit:
            self._digests.discard(self._order.popleft())


def _digest(key: tuple[str, str]) -> bytes:
    first, second = (part.encode("utf-8", "surrogatepass") for part in key)
    # The length tells ("a", "bc") from ("ab", "c").
    head = len(first).to_bytes(4, "big")
    return blake2b(head + first + second, digest_size=DIGEST_BYTES).digest()
