"""Bring a Kafka's topics in line with the catalogue. Never removes a topic or a partition."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from infra.contracts.catalogue import RESULTS, TopicSpec, all_topics
from infra.contracts.errors import FatalError
from infra.kafka.acls import CHANGELOG
from infra.kafka.connection import admin_client, permitted, reachable
from infra.settings import KafkaSettings

IN_SYNC_TIMEOUT_S = 120.0
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class TopicState:
    """A topic as it is on the broker. ``config`` holds what differs from the broker's defaults."""

    partitions: int
    config: dict[str, str]


def apply_catalogue(settings: KafkaSettings, *, partitions: int | None = None) -> list[str]:
    """Create missing topics, add partitions, correct configuration; a second call does nothing.

    ``partitions`` overrides the settings' and the catalogue's count for every topic that has more
    than one. A topic that already has more partitions keeps them.

    Returns:
        One line a change.

    Raises:
        ConfigurationError: no broker answers, or it does not allow this client to do that.
    """
    changes: list[str] = []
    specs = all_topics()
    wanted = {spec.name: _partitions(spec, settings, partitions) for spec in specs}
    configs = {spec.name: {**spec.config, **_durability(settings)} for spec in specs}
    with (
        reachable(settings),
        admin_client(settings) as admin,
        permitted(settings, "create and configure topics"),
    ):
        present = _describe(admin, settings, specs)
        new = {
            settings.topic_prefix + spec.name: {
                "num_partitions": wanted[spec.name],
                # -1: the broker's own (KIP-464).
                "replication_factor": settings.replication_factor or -1,
                "configs": configs[spec.name],
            }
            for spec in specs
            if spec.name not in present
        }
        if new:
            try:
                admin.create_topics(new, wait_for_metadata=True)
            except TopicAlreadyExistsError:
                # Another process applies the same catalogue; what it created is what we want.
                admin.wait_for_topics(list(new))
            changes.extend(f"created {name}" for name in new)
        for spec in specs:
            state = present.get(spec.name)
            if state is None:
                continue
            name = settings.topic_prefix + spec.name
            if state.partitions < wanted[spec.name]:
                admin.create_partitions({name: wanted[spec.name]})
                changes.append(f"{name}: {state.partitions} to {wanted[spec.name]} partitions")
            different = {
                key: value
                for key, value in configs[spec.name].items()
                if state.config.get(key) != value
            }
            if different:
                admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, different)])
                changes.append(f"{name}: {', '.join(f'{k}={v}' for k, v in different.items())}")
        changes += _grow_changelogs(admin, settings, wanted[RESULTS.name])
    return changes


def _grow_changelogs(admin: Any, settings: KafkaSettings, wanted: int) -> list[str]:
    """As many partitions as the topics that are joined: Faust, who made it, leaves it as it is."""
    changes = []
    names = [
        name
        for name in admin.list_topics()
        if name.startswith(settings.topic_prefix) and name.endswith(f"-{CHANGELOG}")
    ]
    for topic in admin.describe_topics(names) if names else ():
        count = len(topic["partitions"])
        if count < wanted:
            admin.create_partitions({topic["name"]: wanted})
            changes.append(f"{topic['name']}: {count} to {wanted} partitions")
    return changes


def describe_topics(settings: KafkaSettings) -> dict[str, TopicState]:
    """The catalogue's topics that are on the broker, by catalogue name."""
    with reachable(settings), admin_client(settings) as admin:
        return _describe(admin, settings, all_topics())


def missing_topics(settings: KafkaSettings) -> list[str]:
    """The catalogue's topics that are not on the broker, by catalogue name.

    Of those that this client may not see the broker does not say whether they are there; they do
    not count as missing.
    """
    names = {settings.topic_prefix + spec.name: spec.name for spec in all_topics()}
    with reachable(settings), admin_client(settings) as admin:
        described = admin.describe_topics(list(names))
    absent = UnknownTopicOrPartitionError.errno
    missing = {names[one["name"]] for one in described if one["error_code"] == absent}
    return [name for name in names.values() if name in missing]


def replicas(settings: KafkaSettings, topic: str) -> int:
    """How many brokers have a topic's records, where all are well."""
    name = settings.topic_prefix + topic
    action = f"describe topic {name}"
    with reachable(settings), admin_client(settings) as admin, permitted(settings, action):
        (described,) = admin.describe_topics([name])
        if described["error_code"]:
            raise for_code(described["error_code"])(name)
    return min(len(one["replica_nodes"]) for one in described["partitions"])


def behind(settings: KafkaSettings) -> list[str]:
    """Partitions, of all topics, that some of their brokers do not have whole: ``topic/0``."""
    with reachable(settings), admin_client(settings) as admin:
        return [
            f"{topic['name']}/{partition['partition_index']}"
            for topic in admin.describe_topics()
            for partition in topic["partitions"]
            if len(partition["isr_nodes"]) < len(partition["replica_nodes"])
        ]


def await_in_sync(settings: KafkaSettings) -> None:
    """Return once every partition is whole on all its brokers. Raises FatalError."""
    deadline = time.monotonic() + IN_SYNC_TIMEOUT_S
    while found := behind(settings):
        if time.monotonic() > deadline:
            raise FatalError(
                f"{len(found)} partitions are not in sync after {IN_SYNC_TIMEOUT_S:.0f} s, such as "
                f"{found[0]}: see the brokers' logs (`feedloom kafka logs`)"
            )
        time.sleep(POLL_S)


def _durability(settings: KafkaSettings) -> dict[str, str]:
    in_sync = settings.min_insync_replicas
    return {} if in_sync is None else {"min.insync.replicas": str(in_sync)}


def _partitions(spec: TopicSpec, settings: KafkaSettings, override: int | None) -> int:
    if spec.partitions == 1:
        return 1
    return override or settings.partitions or spec.partitions


def _describe(
    admin: Any, settings: KafkaSettings, specs: Iterable[TopicSpec]
) -> dict[str, TopicState]:
    on_broker = set(admin.list_topics())
    names = {
        settings.topic_prefix + spec.name: spec.name
        for spec in specs
        if settings.topic_prefix + spec.name in on_broker
    }
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    described = admin.describe_configs(resources)
    (configs,) = described.values()
    return {
        names[topic["name"]]: TopicState(
            partitions=len(topic["partitions"]),
            config={key: str(entry["value"]) for key, entry in configs[topic["name"]].items()},
        )
        for topic in admin.describe_topics(list(names))
    }
