"""Which partition a request goes to, so that shared prefixes meet in one worker's prefix cache.

Kafka's default partitioner decides first, so that every producer of a key agrees with no word
exchanged. A key too popular for one partition spills: consistent hashing with bounded loads
(Mirrokni, Thorup and Zadimoghaddam, SODA 2018), with rendezvous hashing (Thaler and Ravishankar,
1998) for where to. Pure; knows nothing of the client that uses it.
"""

from __future__ import annotations

import hashlib
import math

from kafka.partitioner.default import murmur2

PREFIX_CHARACTERS = 256


def prefix_key(text: str, characters: int = PREFIX_CHARACTERS) -> str:
    """One key for all texts that begin alike: a prompt, or a chat's system message.

    Of a chat give the system message alone: what follows differs from turn to turn.
    """
    start = text[:characters].encode("utf-8", "surrogatepass")
    return "prefix-" + hashlib.blake2b(start, digest_size=16).hexdigest()


def home_partition(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key."""
    return (int(murmur2(key)) & 0x7FFFFFFF) % partitions


def preferred_partitions(key: bytes, partitions: int) -> list[int]:
    """Every partition, best first: the home, then by rendezvous hashing.

    A key's order does not depend on other keys, and two keys of one home spill to different places.
    """

    def score(partition: int) -> bytes:
        return hashlib.blake2b(key, digest_size=8, salt=partition.to_bytes(8, "big")).digest()

    home = home_partition(key, partitions)
    others = (partition for partition in range(partitions) if partition != home)
    return [home, *sorted(others, key=score, reverse=True)]


class BoundedLoadRouter:
    """Counts one client's outstanding requests by partition. Not for use by two threads at once.

    A key goes to its first preferred partition that holds less than ``max(floor, ceil(factor *
    mean))``, the mean of outstanding requests being taken with this one. So no partition is ever
    filled above that, and a key whose home has room goes there, whatever the others hold.

    ``factor`` above 1 trades evenness for affinity. ``floor`` is what a partition may always hold:
    a worker runs many requests at once, and a client with few outstanding should not scatter them.
    """

    def __init__(self, partitions: int, *, factor: float = 1.25, floor: int = 8) -> None:
        if partitions < 1 or factor <= 1 or floor < 1:
            raise ValueError(
                f"partitions {partitions} and floor {floor} must be positive, factor {factor} "
                "above 1"
            )
        self._factor = factor
        self._floor = floor
        self._outstanding = [0] * partitions
        self._total = 0

    @property
    def outstanding(self) -> tuple[int, ...]:
        """Requests chosen for and not done, by partition."""
        return tuple(self._outstanding)

    @property
    def capacity(self) -> int:
        """What a partition may hold after the next request."""
        mean = (self._total + 1) / len(self._outstanding)
        return max(self._floor, math.ceil(self._factor * mean))

    def choose(self, key: bytes) -> int:
        """The partition for a request; counts it there until :meth:`done`."""
        chosen = home_partition(key, len(self._outstanding))
        capacity = self.capacity
        if self._outstanding[chosen] >= capacity:
            # One with room exists: all full would hold more than factor > 1 times the total.
            chosen = next(
                partition
                for partition in preferred_partitions(key, len(self._outstanding))
                if self._outstanding[partition] < capacity
            )
        self._outstanding[chosen] += 1
        self._total += 1
        return chosen

    def done(self, partition: int) -> None:
        """A request chosen for this partition ended. Raises ValueError if there was none."""
        if not self._outstanding[partition]:
            raise ValueError(f"no request is outstanding on partition {partition}")
        self._outstanding[partition] -= 1
        self._total -= 1
