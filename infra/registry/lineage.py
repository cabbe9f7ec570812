"""Which versions learnt from the feedback on which answers, and what of it is forgotten."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import msgspec

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Record, catch_up
from infra.contracts.errors import ContractError
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten
from infra.contracts.events.model import ModelVersionPublished
from infra.registry.errors import ArtifactRejected
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore

log = logging.getLogger(__name__)

LEARNT_FROM = "feedback.json"
"""In a version's folder: the ids of the requests whose feedback it was trained on."""
TIMEOUT_S = 60.0
POLL_S = 0.5


def learnt_from(store: ArtifactStore, version: ModelVersionPublished) -> frozenset[str]:
    """The requests whose feedback a version was trained on, its ancestors' not among them.

    Raises ArtifactRejected when its files are not what was published.
    """
    if LEARNT_FROM not in {file.path for file in version.manifest}:
        return frozenset()
    data = (Path(store.resolve(version)) / LEARNT_FROM).read_bytes()
    try:
        return frozenset(msgspec.json.decode(data, type=list[str]))
    except msgspec.DecodeError as error:
        raise ArtifactRejected(f"{LEARNT_FROM} of {version.version}: {error}") from error


def ancestors(state: RegistryState, version: ModelVersionPublished) -> list[ModelVersionPublished]:
    """Its parent, the parent's parent and so on."""
    found: list[ModelVersionPublished] = []
    names = {version.version}
    while version.lineage.parent is not None and version.lineage.parent not in names:
        parent = state.version(version.model, version.lineage.parent)
        if parent is None:
            break
        names.add(parent.version)
        found.append(parent)
        version = parent
    return found


class Lineages:
    """The lineage of every version of a registry, each version's files read once.

    A version whose files cannot be read is reported by a warning and counts as having learnt from
    none.
    """

    def __init__(self, store: ArtifactStore, state: RegistryState) -> None:
        self._store = store
        self._state = state
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def requests(self, version: ModelVersionPublished) -> frozenset[str]:
        """What this version was trained on itself."""
        key = version.model, version.version
        if key not in self._known:
            try:
                self._known[key] = learnt_from(self._store, version)
            except ArtifactRejected as error:
                log.warning("lineage of %s@%s is not known: %s", *key, error)
                self._known[key] = frozenset()
        return self._known[key]

    def all_requests(self, version: ModelVersionPublished) -> frozenset[str]:
        """What this version and those it descends from were trained on."""
        own = self.requests(version)
        return own.union(*map(self.requests, ancestors(self._state, version)))

    def learners(self, requests: Collection[str]) -> list[tuple[ModelVersionPublished, bool]]:
        """Versions with any of these in them, and whether they themselves were trained on one."""
        wanted = set(requests)
        return [
            (version, bool(wanted & self.requests(version)))
            for model in self._state.models()
            for version in self._state.versions(model)
            if wanted & self.all_requests(version)
        ]


def forgotten(bus: Bus) -> dict[str, FeedbackForgotten]:
    """Every request that is to be forgotten. Raises FatalError when the topic is not read."""
    found: dict[str, FeedbackForgotten] = {}

    def take(record: Record) -> None:
        try:
            event = codec.decode(record.value or b"", FeedbackForgotten)
        except ContractError:
            return  # the join sends it to the dead letters
        found[event.request_id] = event

    with _read_to_end(bus, catalogue.FORGOTTEN.name, take):
        return found


def requests_of(bus: Bus, principals: Collection[str]) -> list[str]:
    """The requests on which one of these gave feedback that could still be trained on."""
    found: dict[str, None] = {}

    def take(record: Record) -> None:
        found.pop(record.key_text, None)
        try:
            example = codec.decode(record.value or b"", FeedbackExample)
        except ContractError:
            return  # a tombstone, or one that the trainer sends to the dead letters
        if not set(principals).isdisjoint(example.principals):
            found[example.request_id] = None

    with _read_to_end(bus, catalogue.EXAMPLES.name, take):
        return list(found)


def taken_out(bus: Bus, requests: Collection[str], *, wait_s: float = 0.0) -> set[str]:
    """Those of ``requests`` of which a tombstone is the newest example.

    ``wait_s``: how long to read on for the tombstones that are not there yet.
    """
    wanted, gone = set(requests), set[str]()

    def take(record: Record) -> None:
        if (key := record.key_text) in wanted:
            (gone.discard if record.value is not None else gone.add)(key)

    with _read_to_end(bus, catalogue.EXAMPLES.name, take) as read_on:
        deadline = monotonic() + wait_s
        while gone != wanted and monotonic() < deadline:
            read_on(POLL_S)
    return gone


@contextmanager
def _read_to_end(
    bus: Bus, topic: str, take: Callable[[Record], None]
) -> Iterator[Callable[[float], None]]:
    """Every record up to the end that the topic has now; what is given reads on from there."""
    reader = bus.reader([topic])

    def poll(timeout_s: float) -> None:
        for record in reader.poll(timeout_s):
            take(record)

    try:
        catch_up(bus, reader, [topic], poll, what=topic, timeout_s=TIMEOUT_S)
        yield poll
    finally:
        reader.close()
