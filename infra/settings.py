"""Every static setting of the platform, typed once.

Sources, first wins: arguments, ``FEEDLOOM_*`` variables (``FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS``),
``feedloom.toml`` in the working directory or the file that ``FEEDLOOM_CONFIG`` names, the defaults
below. Unknown keys are refused. No other module reads ``FEEDLOOM_*`` variables; some read what is
not the project's to name, such as ``OTEL_*``, ``JAVA_HOME`` and what torchrun gives its processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from infra.contracts.config_keys import InvalidSetting, parse_value
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.errors import ConfigurationError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """The broker to talk to and who to be there, and the local one to start when none is given."""

    bootstrap_servers: str | None = None
    """``host:port,...``; unset: the embedded broker that ``feedloom kafka start`` runs."""
    topic_prefix: str = ""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password: str | None = Field(default=None, repr=False)
    sasl_password_file: Path | None = None
    """Holds the password, in its stead; read at each connection's start."""
    ssl_cafile: Path | None = None
    """PEM certificates of those who may sign the broker's; unset: the system's."""
    ssl_certfile: Path | None = None
    """PEM certificate of this client, and those up to its root, where the broker asks for one."""
    ssl_keyfile: Path | None = None
    """PEM key of the certificate; unset: it is in ``ssl_certfile``."""
    ssl_key_password: str | None = Field(default=None, repr=False)
    ssl_check_hostname: bool = True
    """Off: a certificate from ``ssl_cafile`` is enough, whichever host it was made for."""
    replication_factor: int | None = Field(default=None, ge=1)
    """Of topics that are created; unset: the broker's ``default.replication.factor``."""
    min_insync_replicas: int | None = Field(default=None, ge=1)
    """How many brokers must have a record before it is acknowledged; unset: as the broker says."""
    partitions: int | None = Field(default=None, ge=1)
    """Overrides the catalogue's count for topics with more than one partition."""
    local_port: int = Field(default=0, ge=0, le=65535)
    """Port of the embedded broker; 0 picks a free one and keeps it."""
    local_heap_mb: int = Field(default=512, ge=128)
    local_user: str = "operator"
    """Who to be on the embedded broker where that was started with ``--secured``."""

    @model_validator(mode="after")
    def _check_security(self) -> Self:
        for complaint in (*self._replica_faults(), *self._sasl_faults(), *self._tls_faults()):
            raise ValueError(complaint)
        return self

    def _replica_faults(self) -> Iterator[str]:
        copies, needed = self.replication_factor, self.min_insync_replicas
        if copies is not None and needed is not None and needed > copies:
            yield (
                f"min_insync_replicas {needed} of replication_factor {copies}: nothing could be "
                "written"
            )

    def _sasl_faults(self) -> Iterator[str]:
        protocol = self.security_protocol
        if not protocol.startswith("SASL"):
            for name in ("sasl_mechanism", "sasl_username", "sasl_password_file"):
                if getattr(self, name) is not None:
                    yield f"{name} is of no use with security_protocol {protocol}: set SASL_SSL"
            return
        if self.sasl_mechanism is None:
            yield f"security_protocol {protocol} needs sasl_mechanism, such as SCRAM-SHA-512"
        if not self.sasl_username:
            yield f"security_protocol {protocol} needs sasl_username"
        if bool(self.sasl_password) == bool(self.sasl_password_file):
            yield f"security_protocol {protocol} needs sasl_password or sasl_password_file"
        yield from self._unreadable("sasl_password_file")

    def _tls_faults(self) -> Iterator[str]:
        protocol = self.security_protocol
        files = ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if protocol not in ("SSL", "SASL_SSL"):
            for name in files:
                if getattr(self, name) is not None:
                    yield f"{name} is of no use with security_protocol {protocol}: set SASL_SSL"
            return
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            yield "ssl_keyfile needs ssl_certfile, the certificate of this key"
        for name in files:
            yield from self._unreadable(name)

    def _unreadable(self, name: str) -> Iterator[str]:
        path = getattr(self, name)
        if path is not None and not os.access(path, os.R_OK):
            yield f"{name}: {path} is not there or cannot be read"


class WorkerSettings(_Section):
    """A stream worker. Token counts bound memory; times are in seconds."""

    worker_id: str | None = None
    group: str = "feedloom-workers"
    model: str = "default"
    max_inflight_tokens: int = Field(default=65_536, ge=1)
    """Sum of prompt + max_tokens over admitted requests; the consumer pauses above it."""
    max_model_len: int | None = Field(default=None, ge=8)
    chunk_interval_s: float = Field(default=0.05, ge=0)
    chunk_max_tokens: int = Field(default=16, ge=1)
    engine_retries: int = Field(default=2, ge=0)
    drain_timeout_s: float = Field(default=30.0, ge=0)
    max_num_seqs: int = Field(default=64, ge=1)
    kv_cache_gb: float = Field(default=0.5, gt=0)
    """CPU engine only: memory for the KV cache, GiB."""
    pin_cores: bool = True
    """CPU engine only: it gets cores of its own; off where several workers share a machine."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs, of one machine, that the model is spread over."""
    max_adapters: int = Field(default=0, ge=0, le=64)
    """LoRA adapters that serve beside the weights; 2 for a canary of one beside another. vLLM is
    slower with any: on a CPU by a sixth where no adapter answers, by half where one does."""
    max_adapter_rank: int = Field(default=16, ge=1, le=512)
    max_queued: int = Field(default=1_000, ge=1)
    """Requests of one class taken from Kafka and not started; the consumer pauses above it."""
    session_timeout_s: float = Field(default=10.0, ge=6)
    """A worker that the broker has not heard of for this long loses its partitions."""
    transaction_timeout_s: float = Field(default=10.0, ge=1)
    """The broker rolls back what a dead worker left open after this long."""
    remember_records: int = Field(default=1_000, ge=0)
    """How many records below a partition's position are searched for ids already answered."""
    stuck_s: float = Field(default=300.0, gt=0)
    """A partition whose oldest request is older than this makes the worker not ready."""
    join_feedback: bool = True
    """Also join feedback with results; off where other workers of the group do."""
    feedback_window_s: float = Field(default=7 * 86_400.0, ge=1)
    """An answer waits in memory so long for feedback, and again after each; later feedback finds
    none. Also the retention of the join's changelog topic, where a worker creates it."""
    health_port: int | None = Field(default=None, ge=0, le=65535)
    """Serves /healthz and /readyz; 0 picks a free port, unset serves none."""
    health_host: str = "127.0.0.1"


class TrainerSettings(_Section):
    """The learning loop.

    The dynamic settings ``trainer.*`` may be given here too, each under its own name
    (``FEEDLOOM_TRAINER__LEARNING_RATE``): they hold until ``feedloom config set`` says otherwise.
    """

    group: str = "feedloom-trainer"
    model: str = "default"
    block_size: int = Field(default=256, ge=16)
    """Tokens a training sequence."""
    max_feedback_age_s: float | None = Field(default=None, gt=0)
    """Older feedback is not trained on; unset: all is."""
    safety_list: Path | None = None
    """JSON lines of ``category``, ``prompt``, ``banned``; unset: the built-in one."""
    schedule: str | None = None
    """When a round starts if any new feedback waits: a cron expression, in UTC."""
    rollout_delay_s: float = Field(default=0.0, ge=0)
    """Wait this long between publishing a version and rolling it out: time to object."""
    logging_dir: Path | None = None
    """Each round's report and TensorBoard files, a folder each; unset: ``runs`` in the home."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 leaves torch's own choice."""
    seed: int = 17
    config: dict[str, bool | int | float] = {}
    """Defaults of ``trainer.*`` by name; gathered from the fields that bear these names."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        dynamic = {field.name for field in msgspec.structs.fields(TrainerConfig)}
        values = {**given.get("config", {})}
        values |= {name: value for name, value in given.items() if name in dynamic}
        rest = {name: value for name, value in given.items() if name not in dynamic}
        return {**rest, "config": {name: _parsed(name, value) for name, value in values.items()}}


def _parsed(name: str, value: Any) -> Any:
    """A value as ``feedloom config set`` would take it; variables come as text."""
    try:
        return parse_value(f"trainer.{name}", value)
    except InvalidSetting as error:
        raise ValueError(str(error)) from error


class BootstrapSettings(_Section):
    """The embedded default model, built once on this machine."""

    seconds: float = Field(default=120.0, gt=0)
    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    vocab_size: int = 4096
    context: int = 512
    corpus_mb: float = Field(default=24.0, gt=0)
    compile: bool = False
    seed: int = 17


class TelemetrySettings(_Section):
    """What the standard ``OTEL_*`` variables have no name for."""

    span_directory: Path | None = None
    """Also append finished spans here, one JSON-lines file a process."""
    prometheus_port: int | None = Field(default=None, ge=0, le=65535)
    """Serves metrics at /metrics; 0 picks a free port, which the log names. Unset: only where
    ``OTEL_METRICS_EXPORTER`` names prometheus."""
    prometheus_host: str | None = None
    """Where that listens; unset: ``OTEL_EXPORTER_PROMETHEUS_HOST``, else 127.0.0.1."""
    log_format: Literal["text", "json"] = "text"
    """Of what goes to standard error; ``json``: an object a line."""


class ArtifactStoreSettings(_Section):
    """Where versions' files are kept, and whose signature they bear."""

    url: str = ""
    """A folder, ``s3://BUCKET/PREFIX`` or ``gs://BUCKET/PREFIX``; unset: below ``home``."""
    cache: Path = Path()
    """Versions from an object store are downloaded to here; unset: below ``home``."""
    endpoint_url: str | None = None
    """Of an S3-compatible store that is not Amazon's."""
    signing_key: Path | None = None
    """PEM private key, P-256, P-384 or P-521: every version that is stored is signed with it."""
    public_key: Path | None = None
    """PEM public key: no version is loaded that its private key did not sign."""


class GatewaySettings(_Section):
    """The HTTP interface. Sizes in bytes, times in seconds."""

    gateway_id: str | None = None
    """Unset: host and process."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    reply_partition: int | None = Field(default=None, ge=0)
    """Of the chunk topic; unset: one that no other live replica reads, if there is one."""
    authentication: bool = True
    """Off: everybody is the tenant ``default`` with every role. Only on a loopback address."""
    max_body_bytes: int = Field(default=1_000_000, ge=1_000)
    max_upload_bytes: int = Field(default=100_000_000, ge=1_000)
    """Of a file for a batch."""
    max_prompt_characters: int = Field(default=400_000, ge=1)
    max_json_depth: int = Field(default=32, ge=4, le=500)
    max_connections: int = Field(default=4_000, ge=1)
    request_timeout_s: float = Field(default=120.0, gt=0)
    """How long a request may take that does not say so itself."""
    max_timeout_s: float = Field(default=86_400.0, gt=0)
    keep_alive_s: float = Field(default=10.0, gt=0)
    """A stream that is silent for so long gets a comment."""
    patience_s: float = Field(default=15.0, gt=0)
    """A stream that has nothing to send for so long begins, and can then fail only by an event."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    files_url: str = ""
    """Where files are kept: a folder, ``s3://...`` or ``gs://...``; unset: below ``home``."""
    jwt_issuer: str | None = None
    """``iss`` of the tokens that are accepted; unset: API keys only."""
    jwt_audience: str | None = None
    jwks_url: str | None = None
    """Unset: from the issuer's ``/.well-known/openid-configuration``."""
    jwt_algorithms: tuple[
        Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"],
        ...,
    ] = ("RS256", "ES256")
    jwt_leeway_s: float = Field(default=30.0, ge=0, le=600)
    jwt_tenant_claim: str = "tenant"
    jwt_roles_claim: str = "roles"


class DemoSettings(_Section):
    """``feedloom demo``."""

    prompts: int = Field(default=64, ge=1)
    rate_per_s: float = Field(default=8.0, gt=0)
    max_tokens: int = Field(default=48, ge=1)
    heldout_prompts: int = Field(default=96, ge=1)


class Settings(BaseSettings):
    """The root. ``home`` holds everything the platform writes on this machine."""

    model_config = SettingsConfigDict(
        env_prefix="FEEDLOOM_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    home: Path = Path(".feedloom")
    kafka: KafkaSettings = KafkaSettings()
    worker: WorkerSettings = WorkerSettings()
    trainer: TrainerSettings = TrainerSettings()
    bootstrap: BootstrapSettings = BootstrapSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    artifact_store: ArtifactStoreSettings = ArtifactStoreSettings()
    demo: DemoSettings = DemoSettings()
    gateway: GatewaySettings = GatewaySettings()

    @property
    def artifacts(self) -> ArtifactStoreSettings:
        """The artifact store, its places below ``home`` unless they were given."""
        given = self.artifact_store
        places: dict[str, object] = {"url": str(self.home / "artifacts")} if not given.url else {}
        if "cache" not in given.model_fields_set:
            places["cache"] = self.home / "artifact-cache"
        return given.model_copy(update=places)

    @property
    def shards(self) -> Path:
        """Pile-format shards: ``train/``, ``heldout/``."""
        return self.home / "pile"

    @property
    def runs(self) -> Path:
        """One folder a round of training, by model."""
        return self.trainer.logging_dir or self.home / "runs"

    @property
    def logs(self) -> Path:
        """One log file a child process."""
        return self.home / "logs"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("FEEDLOOM_CONFIG", "feedloom.toml"))
        toml = TomlConfigSettingsSource(settings_cls, toml_file=path)
        return (init_settings, env_settings, toml)


def _refuse_unknown_variables() -> None:
    """pydantic-settings ignores unknown top-level variables; a misspelt one must not pass."""
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG"}
    for variable in os.environ:
        if variable.startswith("FEEDLOOM_"):
            section = variable.removeprefix("FEEDLOOM_").split("__")[0]
            if section.upper() not in known:
                raise ConfigurationError(
                    f"unknown setting {variable}: FEEDLOOM_ is followed by one of "
                    + ", ".join(sorted(known))
                )


def load_settings(**overrides: object) -> Settings:
    """Read the settings. Raises ConfigurationError with one line a mistake."""
    _refuse_unknown_variables()
    named = os.environ.get("FEEDLOOM_CONFIG")
    if named and not Path(named).is_file():
        raise ConfigurationError(f"FEEDLOOM_CONFIG names {named}, which is not a file")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigurationError("settings: " + "; ".join(lines)) from error
