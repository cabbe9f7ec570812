"""Which topics a backup holds, and in which order they are read. Pure.

Who refers comes before what is referred to: each topic is read whole after those that refer to it,
so whatever a record of the backup names is in the backup too. A restore writes in the reverse
order, so that a reader of a half-restored platform finds no name without its referent either.

Not in a backup: what people asked, were answered and said (requests, chunks, results, feedback),
reports that processes repeat by themselves (workers, gateways), admissions, which hold for two
days, and dead letters.
"""

from __future__ import annotations

from infra.contracts.catalogue import (
    BATCHES,
    CONFIG,
    CONFIG_HISTORY,
    DECISIONS,
    EXAMPLES,
    FILES,
    FORGOTTEN,
    KEYS,
    REGISTRY,
    ROLLOUTS,
    TopicSpec,
)

CONTROL: tuple[TopicSpec, ...] = (
    # A decision names a rollout's revision, a rollout versions, a version its parent.
    DECISIONS,
    ROLLOUTS,
    REGISTRY,
    # A writer puts a change into the history before it makes it.
    CONFIG,
    CONFIG_HISTORY,
    KEYS,
    BATCHES,
    FILES,
    FORGOTTEN,
)
FEEDBACK: tuple[TopicSpec, ...] = (EXAMPLES,)
"""Only where it is asked for: it holds what people wrote."""

_ORDER = (*FEEDBACK, *CONTROL)
_BY_NAME = {spec.name: spec for spec in _ORDER}


def reading_order(*, feedback: bool) -> tuple[TopicSpec, ...]:
    """The topics of a backup, in the order in which they are read."""
    return _ORDER if feedback else CONTROL


def writing_order(names: set[str]) -> tuple[TopicSpec, ...]:
    """Those of these topics that this release knows, in the order of a restore.

    Feedback first: once there are versions, a trainer goes by it.
    """
    return tuple(spec for spec in (*FEEDBACK, *reversed(CONTROL)) if spec.name in names)


def known(name: str) -> bool:
    """Whether a restore knows what to do with a topic."""
    return name in _BY_NAME


def compacts(spec: TopicSpec) -> bool:
    """Whether the broker leaves only the newest record of a key."""
    return "compact" in spec.cleanup_policy


def expires(spec: TopicSpec) -> bool:
    """Whether the broker takes records away by their age."""
    return "delete" in spec.cleanup_policy and (spec.retention_ms or 0) > 0
