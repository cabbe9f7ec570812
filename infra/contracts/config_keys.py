"""The typed catalogue of dynamic settings, and their fold. Pure: knows nothing of Kafka.

A setting travels as the JSON text in ``ConfigChanged.value``; ``null`` goes back to the default.
A key is the name of a section (``infra.contracts.config_sections``) and a field of it. Two kinds of
section may be narrowed: ``workers.<worker-id>.*`` falls back to ``worker.*``, and
``tenants.<name>.*`` to ``tenants.default.*``; both then to the built-in default. Ids and names may
hold dots: the field is what comes after the last.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import msgspec

from infra.contracts.config_sections import (
    BatchConfig,
    GatewayConfig,
    RolloutConfig,
    SamplingConfig,
    TenantConfig,
    TrainerConfig,
    WorkerConfig,
)
from infra.contracts.errors import ContractError
from infra.contracts.events.platform import ConfigChanged

MAX_KEY_LENGTH = 256
Value = bool | int | float | str
S = TypeVar("S", bound=msgspec.Struct)


class InvalidSetting(ContractError):
    """A key that names no setting, or a value of the wrong type or range. Says what would do."""


ANY_TENANT, DEFAULT_TENANT = "tenants.<name>", "tenants.default"
ANY_WORKER, EVERY_WORKER = "workers.<worker-id>", "worker"
_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    EVERY_WORKER: WorkerConfig,
    "batch": BatchConfig,
    "trainer": TrainerConfig,
    "rollout": RolloutConfig,
    "sampling": SamplingConfig,
    "gateway": GatewayConfig,
    ANY_TENANT: TenantConfig,
}
_NAMED = {"tenants.": ANY_TENANT, "workers.": EVERY_WORKER}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One entry of the catalogue. ``accepts`` says in words which values do.

    ``choices`` are the values of a text setting; empty for the others.
    """

    key: str
    default: Value | None
    accepts: str
    description: str
    decoder: msgspec.json.Decoder[Value | None]
    choices: tuple[str, ...] = ()


def _scalar(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """The number, boolean or text below annotations and an optional ``None``."""
    if isinstance(info, msgspec.inspect.Metadata):
        return _scalar(info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        return _scalar(info.types[0])
    return info


def _setting(key: str, field: msgspec.structs.FieldInfo) -> Setting:
    info = msgspec.inspect.type_info(field.type)
    assert isinstance(info, msgspec.inspect.Metadata)
    scalar = _scalar(info)
    accepts, choices = "true or false", ()
    if isinstance(scalar, msgspec.inspect.LiteralType):
        # As they are declared; msgspec sorts them.
        choices = get_args(get_args(field.type)[0])
        accepts = f"one of {', '.join(choices)}"
    elif isinstance(scalar, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(scalar, msgspec.inspect.IntType) else "a number"
        accepts = f"{noun} from {scalar.ge} to {scalar.le}"
    return Setting(
        key=key,
        default=field.default,
        accepts=accepts,
        description=(info.extra_json_schema or {})["description"],
        decoder=msgspec.json.Decoder(field.type | None),
        choices=choices,
    )


CATALOGUE: Mapping[str, Setting] = {
    key: _setting(key, field)
    for section, struct in _SECTIONS.items()
    for field in msgspec.structs.fields(struct)
    for key in (f"{section}.{field.name}",)
}
"""Every setting by its key; a tenant's under ``tenants.<name>.``, a worker's as ``worker.``"""


def _known(section: str) -> str | None:
    """The catalogue's name of a section; ``None`` if it has no such one."""
    for prefix, known in _NAMED.items():
        if section.startswith(prefix):
            return known if section != prefix else None
    return section if section in _SECTIONS else None


def setting(key: str) -> Setting:
    """The catalogue's entry for a key. Raises InvalidSetting, with the nearest key that exists."""
    section, _, field = key.rpartition(".")
    known = _known(section)
    writable = len(key) <= MAX_KEY_LENGTH and key.isprintable()
    if writable and known is not None and (found := CATALOGUE.get(f"{known}.{field}")):
        return found
    own = known == EVERY_WORKER != section
    sought = f"{known}.{field}" if own else key
    near = difflib.get_close_matches(sought[:MAX_KEY_LENGTH], CATALOGUE, n=1, cutoff=0.5)
    meant = near[0] if near else ""
    if own and meant.startswith(f"{EVERY_WORKER}."):
        meant = ANY_WORKER + meant.removeprefix(EVERY_WORKER)
    hint = f"; did you mean {meant}?" if meant else ""
    raise InvalidSetting(f"there is no setting {key!r}{hint} (`feedloom config list` shows all)")


def parse(key: str, json_text: str) -> Value | None:
    """The value that a JSON text gives a setting; ``None`` for ``null``: back to the default.

    Raises InvalidSetting when the key is unknown or the value does not fit it.
    """
    entry = setting(key)
    try:
        return entry.decoder.decode(json_text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidSetting(
            f"{key} takes {entry.accepts}, or null for its default; {json_text!r} is not: {error}"
        ) from error


def as_json(key: str, text: str) -> str:
    """What was typed as JSON text: a setting of text takes its value without the quotes too.

    Raises InvalidSetting of the key; the value is not looked at.
    """
    bare = setting(key).choices and not text.lstrip().startswith('"') and text.strip() != "null"
    return json.dumps(text.strip()) if bare else text


def parse_value(key: str, value: object) -> Value:
    """A value from a file, a variable or an option: text is as `config set` takes it.

    Raises InvalidSetting as :func:`parse` does, and for null: there is no default to go back to.
    """
    parsed = parse(key, as_json(key, value) if isinstance(value, str) else json.dumps(value))
    if parsed is None:
        raise InvalidSetting(f"{key} has no value null")
    return parsed


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A change that this catalogue does not accept, and why. It is not in force."""

    event: ConfigChanged
    why: str


class ConfigState:
    """What the changes applied so far say, over ``defaults`` (by key) and the built-in ones.

    Within a key the revision only rises: an older change is passed over. Of two with one revision
    the later in the topic stands, as it is the one that compaction keeps.
    Reading from another thread is safe: it sees a change whole or not yet. The sections returned
    are immutable.
    """

    def __init__(self, defaults: Mapping[str, Value] | None = None) -> None:
        self._defaults = dict(defaults or {})
        self._changes: dict[str, ConfigChanged] = {}
        self._refusals: dict[str, Refusal] = {}
        self._seen: dict[str, int] = {}
        # Section to field to value; replaced, never mutated, for the readers in other threads.
        self._values: Mapping[str, Mapping[str, Value]] = {}
        for key, value in self._defaults.items():
            parse(key, msgspec.json.encode(value).decode())
            self._put(key, value)

    def apply(self, event: ConfigChanged) -> bool:
        """Take in one change; ``False`` if it is stale or known.

        Raises InvalidSetting, and changes no value, if this catalogue does not accept it; it is
        remembered as the key's refusal until a change as new is accepted.
        """
        seen = self._seen.get(event.key, -1)
        self._seen[event.key] = max(seen, event.revision)
        known = self._changes.get(event.key)
        if known is not None and (event.revision < known.revision or event == known):
            return False
        refused = self._refusals.get(event.key)
        newest = refused is None or event.revision >= refused.event.revision
        try:
            value = parse(event.key, event.value)
        except InvalidSetting as error:
            if newest:
                self._refusals[event.key] = Refusal(event=event, why=str(error))
            raise
        if newest:
            self._refusals.pop(event.key, None)
        self._changes[event.key] = event
        self._put(event.key, self._defaults.get(event.key) if value is None else value)
        return True

    def forget(self, key: str) -> bool:
        """Take in a tombstone: the key's default is back and any revision is new."""
        self._seen.pop(key, None)
        self._refusals.pop(key, None)
        if self._changes.pop(key, None) is None:
            return False
        self._put(key, self._defaults.get(key))
        return True

    def change(self, key: str) -> ConfigChanged | None:
        """The newest valid change of a key."""
        return self._changes.get(key)

    def changes(self) -> list[ConfigChanged]:
        """The newest valid change of each key that has one, sorted by key."""
        return [self._changes[key] for key in sorted(self._changes)]

    def refusals(self) -> list[Refusal]:
        """The newest change of each key that is newer than what is in force and not valid."""
        return [self._refusals[key] for key in sorted(self._refusals)]

    def refusal(self, key: str) -> Refusal | None:
        """That of one key."""
        return self._refusals.get(key)

    def next_revision(self, key: str) -> int:
        """One more than the highest revision seen, so that no reader takes it for stale."""
        return self._seen.get(key, 0) + 1

    def value(self, key: str) -> Value | None:
        """The value in force; ``None`` means no limit. Raises InvalidSetting for unknown keys."""
        default = setting(key).default
        section, _, field = key.rpartition(".")
        fallback = DEFAULT_TENANT if _known(section) == ANY_TENANT else _known(section)
        for name in (section, fallback):
            if name is not None and field in (values := self._values.get(name, {})):
                return values[field]
        return default

    @property
    def worker(self) -> WorkerConfig:
        """``worker.*`` in force: what a worker without settings of its own has."""
        return self.for_worker(None)

    def for_worker(self, worker_id: str | None) -> WorkerConfig:
        """A worker's settings in force, its own before everybody's; ``None``: everybody's."""
        own = [f"workers.{worker_id}"] if worker_id else []
        return self._section(WorkerConfig, EVERY_WORKER, *own)

    @property
    def batch(self) -> BatchConfig:
        """``batch.*`` in force."""
        return self._section(BatchConfig, "batch")

    @property
    def trainer(self) -> TrainerConfig:
        """``trainer.*`` in force."""
        return self._section(TrainerConfig, "trainer")

    @property
    def rollout(self) -> RolloutConfig:
        """``rollout.*`` in force."""
        return self._section(RolloutConfig, "rollout")

    @property
    def sampling(self) -> SamplingConfig:
        """``sampling.*`` in force."""
        return self._section(SamplingConfig, "sampling")

    @property
    def gateway(self) -> GatewayConfig:
        """``gateway.*`` in force."""
        return self._section(GatewayConfig, "gateway")

    def tenant(self, name: str | None) -> TenantConfig:
        """A tenant's settings in force; ``None``, and a name without its own, get the default."""
        named = DEFAULT_TENANT if not name else f"tenants.{name}"
        return self._section(TenantConfig, DEFAULT_TENANT, named)

    def _section(self, struct: type[S], *names: str) -> S:
        values: dict[str, Any] = {}
        for name in names:
            values.update(self._values.get(name, ()))
        return struct(**values)

    def _put(self, key: str, value: Value | None) -> None:
        section, _, field = key.rpartition(".")
        fields = {name: old for name, old in self._values.get(section, {}).items() if name != field}
        if value is not None:
            fields[field] = value
        self._values = {**self._values, section: fields}
