"""The typed catalogue of dynamic settings, and their fold. Pure: knows nothing of Kafka.

A setting travels as the JSON text in ``ConfigChanged.value``; ``null`` goes back to the default.
Type, range, default and description are written once, as a field of one of the four sections
below; a key is its section's name and the field's. ``tenants.<name>.*`` falls back to
``tenants.default.*``, and that to the built-in default.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from infra.contracts.errors import ContractError
from infra.contracts.events import ConfigChanged

MAX_KEY_LENGTH = 256
Value = bool | int | float
S = TypeVar("S", bound=msgspec.Struct)
Limit = Annotated[int, Meta(ge=1, le=1_000_000_000)]


class InvalidSetting(ContractError):
    """A key that names no setting, or a value of the wrong type or range. Says what would do."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``worker.*``: of each worker, in force from its next request on."""

    chunk_interval_s: Annotated[
        float, Meta(ge=0.0, le=10.0, description="Seconds between two chunks of one answer.")
    ] = 0.05
    chunk_max_tokens: Annotated[
        int, Meta(ge=1, le=4096, description="Tokens that make a chunk go out before its time.")
    ] = 16
    max_inflight_tokens: Annotated[
        Limit, Meta(description="Sum of prompt + max_tokens over the requests in the engine.")
    ] = 65_536
    max_waiting: Annotated[
        int,
        Meta(
            ge=1,
            le=100_000,
            description="Requests that may queue inside the engine; the others are held before "
            "it, where priority and fairness count.",
        ),
    ] = 32


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``batch.*``: how much of the slack batch requests may take, in each worker."""

    enabled: Annotated[bool, Meta(description="Whether batch requests are admitted.")] = True
    ttft_factor: Annotated[
        float,
        Meta(
            ge=1.0,
            le=100.0,
            description="Batch gives way when it makes the interactive TTFT longer by this factor.",
        ),
    ] = 1.2
    ttft_slack_s: Annotated[
        float,
        Meta(
            ge=0.0,
            le=60.0,
            description="Seconds by which it may always be longer: a model step more or less.",
        ),
    ] = 0.008
    max_kv_usage: Annotated[
        float,
        Meta(
            ge=0.0,
            le=1.0,
            description="Used fraction of the KV cache above which no batch request is admitted.",
        ),
    ] = 0.9


class TenantConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``tenants.<name>.*``: one tenant's share and limits, in each worker. ``None``: no limit."""

    weight: Annotated[
        float,
        Meta(ge=0.001, le=1000.0, description="Share of the tokens, relative to other tenants."),
    ] = 1.0
    max_inflight_requests: Annotated[
        Limit | None, Meta(description="Requests that the tenant may have in the engine.")
    ] = None
    max_inflight_tokens: Annotated[
        Limit | None, Meta(description="Sum of prompt + max_tokens over those requests.")
    ] = None


Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Weight = Annotated[float, Meta(ge=0.0, le=100.0)]


class TrainerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``trainer.*``: of the next round of training on feedback.

    Names that transformers' ``TrainingArguments`` has are its own.
    """

    min_examples: Annotated[
        int, Meta(ge=1, le=10_000_000, description="New feedback that starts a round: answers.")
    ] = 32
    max_wait_s: Annotated[
        float, Meta(ge=0.1, le=1e8, description="Age of new feedback that starts a round, seconds.")
    ] = 3600.0
    drift_drop: Annotated[
        Share,
        Meta(description="Fall of the share of answers people like that starts a round; 0: none."),
    ] = 0.1
    drift_window: Annotated[
        int, Meta(ge=10, le=100_000, description="Judged answers before the fall, and after.")
    ] = 100
    num_train_epochs: Annotated[
        int, Meta(ge=1, le=1000, description="How often a round sees its feedback.")
    ] = 3
    per_device_train_batch_size: Annotated[
        int, Meta(ge=1, le=4096, description="Sequences a step; as many pairs and ratings.")
    ] = 16
    gradient_accumulation_steps: Annotated[
        int, Meta(ge=1, le=4096, description="Batches whose gradients make one step.")
    ] = 1
    per_device_eval_batch_size: Annotated[
        int, Meta(ge=1, le=4096, description="Sequences at a time while a version is measured.")
    ] = 32
    max_train_seconds: Annotated[
        float,
        Meta(ge=0.0, le=1e8, description="A round trains no longer, its schedule within; 0: any."),
    ] = 1800.0
    learning_rate: Annotated[
        float, Meta(ge=1e-9, le=1.0, description="After warm-up, before decay.")
    ] = 3e-4
    warmup_steps: Annotated[
        int, Meta(ge=0, le=100_000, description="Steps of re-warming from zero.")
    ] = 20
    weight_decay: Annotated[Weight, Meta(description="Of AdamW.")] = 0.01
    max_grad_norm: Annotated[
        float, Meta(ge=1e-3, le=1e6, description="Gradients are clipped to it.")
    ] = 1.0
    bf16: Annotated[bool, Meta(description="bfloat16 where it does no harm.")] = True
    fp16: Annotated[bool, Meta(description="float16 in its stead, on a GPU only.")] = False
    save_total_limit: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Newest rounds whose run folders stay; 0: all.")
    ] = 20
    replay_fraction: Annotated[
        float, Meta(ge=0.0, le=0.99, description="Share of the tokens that is replayed Pile text.")
    ] = 0.5
    adapt_replay: Annotated[
        bool, Meta(description="More replay while rounds forget; replay_fraction is the least.")
    ] = True
    ptx_weight: Annotated[
        Weight, Meta(description="Of a replayed token in the loss; a completion's is 1.")
    ] = 1.0
    sft: Annotated[bool, Meta(description="Learn from accepted and edited completions.")] = True
    dpo_weight: Annotated[
        Weight, Meta(description="Of preference pairs in the loss; 0 leaves them out.")
    ] = 0.1
    kto_weight: Annotated[
        Weight, Meta(description="Of ratings in the loss; 0 leaves them out.")
    ] = 0.1
    beta: Annotated[
        float, Meta(ge=1e-4, le=100.0, description="Of DPO and KTO: the pull towards the parent.")
    ] = 0.1
    lora_rank: Annotated[
        int, Meta(ge=0, le=1024, description="Of the adapter that is trained; 0: all weights.")
    ] = 16
    max_principal_share: Annotated[
        Share, Meta(description="Of a round's feedback, that one principal may contribute.")
    ] = 0.25
    heldout_fraction: Annotated[
        Share, Meta(description="Of prompts, whose feedback only measures and never trains.")
    ] = 0.1
    max_forgetting: Annotated[
        float,
        Meta(ge=0.0, le=1e6, description="Gate: share by which held-out bits per byte may rise."),
    ] = 0.01
    min_preference_accuracy: Annotated[
        Share, Meta(description="Gate: held-out pairs told apart better than by the parent.")
    ] = 0.5
    min_win_rate: Annotated[
        Share, Meta(description="Gate: held-out prompts answered better than by the parent.")
    ] = 0.5
    max_violations: Annotated[
        int,
        Meta(ge=0, le=1_000_000, description="Gate: of the safety list, if more than the parent."),
    ] = 0


ANY_TENANT, DEFAULT_TENANT = "tenants.<name>", "tenants.default"
_SECTIONS: Mapping[str, type[msgspec.Struct]] = {
    "worker": WorkerConfig,
    "batch": BatchConfig,
    "trainer": TrainerConfig,
    ANY_TENANT: TenantConfig,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One entry of the catalogue. ``accepts`` says in words which values do."""

    key: str
    default: Value | None
    accepts: str
    description: str
    decoder: msgspec.json.Decoder[Value | None]


def _scalar(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """The number or boolean below annotations and an optional ``None``."""
    if isinstance(info, msgspec.inspect.Metadata):
        return _scalar(info.type)
    if isinstance(info, msgspec.inspect.UnionType):
        return _scalar(info.types[0])
    return info


def _setting(key: str, field: msgspec.structs.FieldInfo) -> Setting:
    info = msgspec.inspect.type_info(field.type)
    assert isinstance(info, msgspec.inspect.Metadata)
    scalar = _scalar(info)
    accepts = "true or false"
    if isinstance(scalar, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        noun = "a whole number" if isinstance(scalar, msgspec.inspect.IntType) else "a number"
        accepts = f"{noun} from {scalar.ge} to {scalar.le}"
    return Setting(
        key=key,
        default=field.default,
        accepts=accepts,
        description=(info.extra_json_schema or {})["description"],
        decoder=msgspec.json.Decoder(field.type | None),
    )


CATALOGUE: Mapping[str, Setting] = {
    key: _setting(key, field)
    for section, struct in _SECTIONS.items()
    for field in msgspec.structs.fields(struct)
    for key in (f"{section}.{field.name}",)
}
"""Every setting by its key; a tenant's under ``tenants.<name>.``"""


def setting(key: str) -> Setting:
    """The catalogue's entry for a key. Raises InvalidSetting, with the nearest key that exists."""
    section, _, field = key.rpartition(".")
    known = section if section in _SECTIONS and section != ANY_TENANT else ANY_TENANT
    named = section.startswith("tenants.") and section != "tenants."
    writable = len(key) <= MAX_KEY_LENGTH and key.isprintable()
    if writable and (named or known != ANY_TENANT) and (found := CATALOGUE.get(f"{known}.{field}")):
        return found
    near = difflib.get_close_matches(key[:MAX_KEY_LENGTH], CATALOGUE, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
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


def parse_value(key: str, value: object) -> Value:
    """A value from a file, a variable or an option: text is JSON, as `config set` takes it.

    Raises InvalidSetting as :func:`parse` does, and for null: there is no default to go back to.
    """
    parsed = parse(key, value if isinstance(value, str) else json.dumps(value))
    if parsed is None:
        raise InvalidSetting(f"{key} has no value null")
    return parsed


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
        self._seen: dict[str, int] = {}
        # Section to field to value; replaced, never mutated, for the readers in other threads.
        self._values: Mapping[str, Mapping[str, Value]] = {}
        for key, value in self._defaults.items():
            parse(key, msgspec.json.encode(value).decode())
            self._put(key, value)

    def apply(self, event: ConfigChanged) -> bool:
        """Take in one change; ``False`` if it is stale or known.

        Raises InvalidSetting, and changes no value, if this catalogue does not accept it.
        """
        seen = self._seen.get(event.key, -1)
        self._seen[event.key] = max(seen, event.revision)
        known = self._changes.get(event.key)
        if known is not None and (event.revision < known.revision or event == known):
            return False
        value = parse(event.key, event.value)
        self._changes[event.key] = event
        self._put(event.key, self._defaults.get(event.key) if value is None else value)
        return True

    def forget(self, key: str) -> bool:
        """Take in a tombstone: the key's default is back and any revision is new."""
        self._seen.pop(key, None)
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

    def next_revision(self, key: str) -> int:
        """One more than the highest revision seen, so that no reader takes it for stale."""
        return self._seen.get(key, 0) + 1

    def value(self, key: str) -> Value | None:
        """The value in force; ``None`` means no limit. Raises InvalidSetting for unknown keys."""
        default = setting(key).default
        section, _, field = key.rpartition(".")
        fallback = section if section in _SECTIONS else DEFAULT_TENANT
        for values in (self._values.get(section), self._values.get(fallback)):
            if values is not None and field in values:
                return values[field]
        return default

    @property
    def worker(self) -> WorkerConfig:
        """``worker.*`` in force."""
        return self._section(WorkerConfig, "worker")

    @property
    def batch(self) -> BatchConfig:
        """``batch.*`` in force."""
        return self._section(BatchConfig, "batch")

    @property
    def trainer(self) -> TrainerConfig:
        """``trainer.*`` in force."""
        return self._section(TrainerConfig, "trainer")

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
