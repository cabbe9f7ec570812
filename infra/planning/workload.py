"""What is asked of a deployment: load, targets, and what it must survive. Checked, not computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from infra.contracts.errors import ConfigurationError

_SHARES = (
    *("cached_share", "batch_share", "quota_share", "shadow_share"),
    *("feedback_share", "cancelled_share"),
)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """At the peak, over all regions. Shares are of all requests, 0 to 1."""

    requests_per_s: float
    prompt_tokens: float
    output_tokens: float
    cached_share: float = 0.0
    """Of the prompts' tokens that are in the prefix cache."""
    batch_share: float = 0.0
    quota_share: float = 0.0
    """That pass the admission log: of tenants with a quota, or with an idempotency key."""
    shadow_share: float = 0.0
    feedback_share: float = 0.05
    cancelled_share: float = 0.02
    mean_load: float = 0.5
    """The mean rate over that at the peak; what is kept for days is filled at the mean."""
    sdk_clients: int = 0
    """Services in a cluster that ask through the SDK instead of a gateway."""
    versions_per_day: float = 1.0

    def __post_init__(self) -> None:
        for name in ("requests_per_s", "prompt_tokens", "output_tokens"):
            if not 0 < getattr(self, name) < 1e12:
                raise ConfigurationError(f"{_option(name)} must be above 0")
        if self.output_tokens < 1 or self.prompt_tokens < 1:
            raise ConfigurationError("a request has at least one prompt and one output token")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{_option(name)} is a share: 0 to 1")
        if not 0 < self.mean_load <= 1:
            raise ConfigurationError("--mean-load is a share above 0, at most 1")
        if self.sdk_clients < 0 or self.versions_per_day < 0:
            raise ConfigurationError("--sdk-clients and --versions-per-day may not be negative")

    @property
    def sequence_tokens(self) -> float:
        """Prompt and answer."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Latencies in seconds; ``headroom``: the share of what a part can do that is planned with."""

    itl_s: float = 0.050
    ttft_s: float = 1.0
    headroom: float = 0.7
    loss_headroom: float = 0.9
    """The share that may be used while something that was to be survived is lost."""
    max_sequences: int = 256
    """In one engine at once. More has not been measured with the platform around it."""

    def __post_init__(self) -> None:
        if self.itl_s <= 0 or self.ttft_s <= 0:
            raise ConfigurationError("--itl-ms and --ttft-ms must be above 0")
        if not 0 < self.headroom <= self.loss_headroom <= 1:
            raise ConfigurationError(
                "--headroom must be above 0 and at most --loss-headroom, and that at most 1"
            )
        if self.max_sequences < 1:
            raise ConfigurationError("--max-sequences must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What to run on. ``weights`` and ``cache`` override the model's number formats."""

    gpu: str
    model: str
    weights: str | None = None
    cache: str | None = None
    tensor_parallel: int | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Zones in a region, regions, and clusters. ``clusters`` in a region: ``None`` finds them."""

    zones: int = 3
    spare_workers: int = 1
    """Where there is one zone: workers that may be lost."""
    regions: int = 1
    survive_region: bool = True
    clusters: int | None = None
    replication: int = 3
    own_results: bool = False
    """As if a gateway read the results of its own requests alone, which none does today."""

    def __post_init__(self) -> None:
        for name in ("zones", "regions", "replication"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{_option(name)} must be at least 1")
        if self.clusters is not None and self.clusters < 1:
            raise ConfigurationError("--clusters must be auto or at least 1")
        if self.spare_workers < 0:
            raise ConfigurationError("--spare may not be negative")
        if self.zones > 1 and self.replication < 2:
            raise ConfigurationError("surviving a zone takes --replication 2 at least, better 3")

    @property
    def surviving_zones(self) -> int:
        """Of ``zones``, once one is lost."""
        return max(1, self.zones - 1)


Reach = Literal["memory", "engine slots", "token latency", "first token"]


def _option(name: str) -> str:
    names = {"requests_per_s": "--rps"}
    return names.get(name, "--" + name.replace("_", "-"))
