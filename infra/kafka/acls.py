"""What each component may do on the broker: no more than its code does. Pure.

Names come from the topic catalogue, so a topic that is added there and used must be given here to
whoever uses it; nobody may touch it before. Kafka lets whoever may read or write a topic describe
it too, and whoever may write any topic write idempotently (KIP-679), so neither is listed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from infra.contracts.catalogue import (
    ADMISSIONS,
    BATCHES,
    BATCHES_GROUP,
    CANCELLATIONS,
    CATALOGUE,
    CHUNKS,
    CONFIG,
    CONFIG_HISTORY,
    DECISIONS,
    EXAMPLES,
    FEEDBACK,
    FILES,
    FORGOTTEN,
    GATEWAYS,
    KEYS,
    REGISTRY,
    REQUESTS,
    REQUESTS_BATCH,
    RESULTS,
    ROLLOUTS,
    SHADOW,
    WORKERS,
    TopicSpec,
    all_topics,
    dead_letter_topic,
)

Component = Literal[
    "worker", "trainer", "gateway", "console", "publisher", "client", "rollouts", "operator"
]
COMPONENTS: tuple[Component, ...] = get_args(Component)
PURPOSES: dict[Component, str] = {
    "worker": "answers requests and joins feedback",
    "trainer": "learns from feedback and publishes versions",
    "gateway": "serves HTTP for callers who have no access to Kafka",
    "console": "a gateway that operators change rollouts and settings and mend dead letters with",
    "publisher": "an upstream service that asks and reads no answers: it gets its own by HTTP",
    "client": "a trusted first-party user of the SDK, who can read everybody's answers",
    "rollouts": "decides on canaries",
    "operator": "people at the command line",
}

Resource = Literal["topic", "group", "transactional-id"]
Operation = Literal[
    "Read", "Write", "Create", "Alter", "Describe", "AlterConfigs", "DescribeConfigs"
]
_ORDER: tuple[Operation, ...] = get_args(Operation)

CHANGELOG = "feedback-join-changelog"
"""Ends the name of the topic that Faust keeps the worker's join table in; the worker creates it."""


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What the names of a deployment are made of."""

    topic_prefix: str = ""
    worker_group: str = "feedloom-workers"

    @property
    def group(self) -> str:
        """The consumer group of the workers, as Kafka knows it."""
        return self.topic_prefix + self.worker_group


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One resource and what may be done with it.

    ``prefixed``: ``name`` is how the names of all resources meant begin.
    """

    resource: Resource
    name: str
    operations: tuple[Operation, ...]
    prefixed: bool = False


@dataclass(frozen=True, kw_only=True)
class _Topics:
    reads: tuple[TopicSpec, ...] = ()
    writes: tuple[TopicSpec, ...] = ()
    dead_letters: tuple[TopicSpec, ...] = ()
    """Sources of the dead letters that are written."""


_ASK = (REQUESTS, REQUESTS_BATCH, CANCELLATIONS)
_SETTLED = (REGISTRY, ROLLOUTS, CONFIG)

_DEAD = tuple(spec for spec in CATALOGUE if spec.dead_letter)
_GATEWAY = _Topics(
    # Of requests, those of batches that another gateway had begun.
    reads=(
        *(CHUNKS, RESULTS, *_SETTLED, WORKERS, KEYS, REQUESTS_BATCH),
        *(ADMISSIONS, FILES, BATCHES, GATEWAYS),
    ),
    writes=(*_ASK, FEEDBACK, ADMISSIONS, FILES, BATCHES, GATEWAYS),
)

_TOPICS: dict[Component, _Topics] = {
    "worker": _Topics(
        reads=(*_ASK, CHUNKS, RESULTS, FEEDBACK, FORGOTTEN, EXAMPLES, *_SETTLED, WORKERS),
        # Feedback is moved to where its answer is.
        writes=(CHUNKS, RESULTS, FEEDBACK, FORGOTTEN, EXAMPLES, SHADOW, WORKERS),
        dead_letters=(REQUESTS, REQUESTS_BATCH, RESULTS, FEEDBACK, FORGOTTEN),
    ),
    "trainer": _Topics(
        reads=(EXAMPLES, *_SETTLED), writes=(REGISTRY, ROLLOUTS), dead_letters=(EXAMPLES,)
    ),
    "gateway": _GATEWAY,
    # Dead letters are read, replayed to their sources, and marked.
    "console": _Topics(
        reads=(*_GATEWAY.reads, CONFIG_HISTORY, *map(dead_letter_topic, _DEAD)),
        writes=(*_GATEWAY.writes, *_DEAD, ROLLOUTS, CONFIG, CONFIG_HISTORY),
        dead_letters=_DEAD,
    ),
    "publisher": _Topics(writes=(*_ASK, FEEDBACK)),
    "client": _Topics(reads=(CHUNKS, RESULTS), writes=(*_ASK, FEEDBACK, FORGOTTEN)),
    "rollouts": _Topics(
        reads=(*_SETTLED, DECISIONS, RESULTS, EXAMPLES), writes=(ROLLOUTS, DECISIONS)
    ),
    "operator": _Topics(
        reads=all_topics(),
        # All that a restored backup writes, besides what people change.
        writes=(
            *(*_DEAD, REGISTRY, ROLLOUTS, DECISIONS),
            *(CONFIG, CONFIG_HISTORY, KEYS, FILES, BATCHES),
        ),
        dead_letters=_DEAD,
    ),
}


def grants(component: Component, deployment: Deployment) -> tuple[Grant, ...]:
    """Everything that a component may do, topics first, each resource once, sorted by name."""
    found: dict[tuple[Resource, str, bool], set[Operation]] = {}
    for resource, name, prefixed, operations in _all(component, deployment):
        found.setdefault((resource, name, prefixed), set()).update(operations)
    order: tuple[Resource, ...] = get_args(Resource)
    return tuple(
        Grant(
            resource=resource,
            name=name,
            operations=tuple(one for one in _ORDER if one in operations),
            prefixed=prefixed,
        )
        for (resource, name, prefixed), operations in sorted(
            found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        )
    )


def _all(
    component: Component, deployment: Deployment
) -> Iterator[tuple[Resource, str, bool, tuple[Operation, ...]]]:
    prefix, group = deployment.topic_prefix, deployment.group
    topics = _TOPICS[component]
    for spec in topics.reads:
        yield "topic", prefix + spec.name, False, ("Read",)
    for spec in (*topics.writes, *map(dead_letter_topic, topics.dead_letters)):
        yield "topic", prefix + spec.name, False, ("Write",)
    if component == "worker":
        yield "topic", f"{group}-{CHANGELOG}", False, ("Create", "Read", "Write")
        yield "group", group, False, ("Read",)
        # A worker's transactional id ends with its worker id, which may be new at each start.
        yield "transactional-id", f"{group}.", True, ("Write", "Describe")
    elif component in ("gateway", "console"):
        yield "group", group, False, ("Describe",)
        yield "group", prefix + BATCHES_GROUP, False, ("Read",)
    elif component == "operator":
        for spec in all_topics():
            name = prefix + spec.name
            yield "topic", name, False, ("Create", "Alter", "AlterConfigs", "DescribeConfigs")
        yield "topic", f"{group}-{CHANGELOG}", False, ("Describe", "Alter")
        yield "group", group, False, ("Describe",)


def as_text(component: Component, principal: str, found: Iterable[Grant]) -> str:
    """A table for people."""
    rows = [
        (one.resource, one.name + ("*" if one.prefixed else ""), ", ".join(one.operations))
        for one in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{component}: {PURPOSES[component]} ({principal})"]
    lines += [
        f"  {resource:{widths[0]}}  {name:{widths[1]}}  {operations}"
        for resource, name, operations in rows
    ]
    return "\n".join(lines)


def as_commands(
    principal: str, found: Iterable[Grant], *, bootstrap_servers: str, command_config: str
) -> str:
    """One ``kafka-acls.sh`` line a resource. ``command_config``: the file that says who asks."""
    lines = []
    for one in found:
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers]
        words += ["--command-config", command_config, "--add", "--allow-principal", principal]
        for operation in one.operations:
            words += ["--operation", operation]
        words += [f"--{one.resource}", one.name]
        words += ["--resource-pattern-type", "prefixed" if one.prefixed else "literal"]
        lines.append(shlex.join(words))
    return "\n".join(lines)


def as_json(sets: Sequence[tuple[Component, str, Iterable[Grant]]]) -> str:
    """Every grant of every set, as one array of objects."""
    return json.dumps(
        [
            {
                "component": component,
                "principal": principal,
                "resource": one.resource,
                "name": one.name,
                "pattern": "prefixed" if one.prefixed else "literal",
                "operations": list(one.operations),
            }
            for component, principal, found in sets
            for one in found
        ],
        indent=2,
    )
