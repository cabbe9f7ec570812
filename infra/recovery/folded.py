"""What the topics of a backup say, as the platform's own readers fold them, and what differs. Pure.

Equal records say equal things; this is the second look, through the eyes of those who will read
them, and it names in words what is not as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import msgspec

from infra.contracts import codec
from infra.contracts.catalogue import CONFIG, KEYS, REGISTRY, ROLLOUTS, TopicSpec
from infra.contracts.config_keys import ConfigState, InvalidSetting
from infra.contracts.errors import ContractError
from infra.contracts.events.base import Event
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.contracts.events.platform import ApiKeyChanged, ConfigChanged
from infra.identity.keys import KeyRing
from infra.recovery.scope import compacts
from infra.recovery.snapshot import SavedRecord
from infra.registry.state import RegistryState
from infra.text import one_line

E = TypeVar("E", bound=Event)

State = Mapping[str, Event | bytes | None]
"""What there is, by name. Bytes: a value that no reader of ours can read."""

MAX_TEXT = 80
UNSHOWN = frozenset({"secret_hash"})
"""Fields whose values stay out of messages."""


def folded(spec: TopicSpec, records: Sequence[SavedRecord]) -> State:
    """What a topic says."""
    fold = _FOLDS.get(spec.name)
    if fold is not None:
        return fold(records)
    return _newest(records) if compacts(spec) else _each(records)


def differences(topic: str, before: State, here: State, *, also_new: bool = True) -> list[str]:
    """A line for each name that is not as it was. ``also_new``: names that were not there, too."""
    lines = []
    for name, was in before.items():
        if name not in here:
            lines.append(f"{topic}: {_line(name)} is missing")
        elif here[name] != was:
            lines.append(f"{topic}: {_line(name)}: {_difference(was, here[name])}")
    if also_new:
        lines += [f"{topic}: {_line(name)} was not there" for name in here if name not in before]
    return lines


def _registry(records: Sequence[SavedRecord]) -> State:
    state = RegistryState()
    for _, event in _events(records, ModelVersionPublished):
        if event is not None:
            state.apply(event)
    return {
        f"{model}@{version.version}": version
        for model in state.models()
        for version in state.versions(model)
    }


def _rollouts(records: Sequence[SavedRecord]) -> State:
    state, found = RegistryState(), dict[str, Event]()
    for _, event in _events(records, RolloutChanged):
        if event is not None and state.apply(event):
            found[event.model] = event
    return found


def _config(records: Sequence[SavedRecord]) -> State:
    state = ConfigState()
    for record, event in _events(records, ConfigChanged):
        if event is None:
            state.forget(record.key_text)
        elif event.key == record.key_text:
            try:
                state.apply(event)
            except InvalidSetting:
                continue  # it is among the refusals
    changes = {change.key: change for change in state.changes()}
    return changes | {f"{one.event.key}, refused": one.event for one in state.refusals()}


def _keys(records: Sequence[SavedRecord]) -> State:
    ring = KeyRing()
    for record, event in _events(records, ApiKeyChanged):
        if event is None:
            ring.forget(record.key_text)
        elif event.key_id == record.key_text:
            try:
                ring.apply(event)
            except ContractError:
                continue  # every reader passes it over
    standing = ring.keys()
    return {key.key_id: key for key in standing}


def _newest(records: Sequence[SavedRecord]) -> State:
    values = {record.key_text: record.value for record in records}
    return {name: _read(value) for name, value in values.items() if value is not None}


def _each(records: Sequence[SavedRecord]) -> State:
    seen: Counter[str] = Counter()
    found: dict[str, Event | bytes | None] = {}
    for record in records:
        name = f"{record.key_text} of {record.timestamp_ms}"
        seen[name] += 1
        found[f"{name}, number {seen[name]}"] = _read(record.value)
    return found


_FOLDS: Mapping[str, Callable[[Sequence[SavedRecord]], State]] = {
    REGISTRY.name: _registry,
    ROLLOUTS.name: _rollouts,
    CONFIG.name: _config,
    KEYS.name: _keys,
}


def _events(
    records: Iterable[SavedRecord], kind: type[E]
) -> Iterator[tuple[SavedRecord, E | None]]:
    for record in records:
        if record.value is None:
            yield record, None
            continue
        try:
            yield record, codec.decode(record.value, kind)
        except ContractError:
            continue


def _read(value: bytes | None) -> Event | bytes | None:
    try:
        return codec.decode_any(value or b"")
    except ContractError:
        return value


def _difference(was: Event | bytes | None, is_now: Event | bytes | None) -> str:
    if not isinstance(was, msgspec.Struct) or type(was) is not type(is_now):
        return "its record is another one"
    before, now = msgspec.structs.asdict(was), msgspec.structs.asdict(is_now)
    return "; ".join(
        f"{field} is not as it was"
        if field in UNSHOWN
        else f"{field} was {_line(repr(before[field]))} and is {_line(repr(now[field]))}"
        for field in before
        if before[field] != now[field]
    )


def _line(text: str) -> str:
    return one_line(text, MAX_TEXT)
