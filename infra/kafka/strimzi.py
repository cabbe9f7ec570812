"""What the Helm chart's Kafka resources are made from: topics and rights, as the code has them.

``python -m infra.kafka.strimzi`` says whether the chart's file differs from the catalogues, and
``--write`` writes it. Names are templates: the chart puts the deployment's topic prefix and the
workers' group in their place. Knows nothing of Kubernetes: the chart turns this into Strimzi's
resources. Pure, save the command.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from infra.contracts.catalogue import REQUESTS, REQUESTS_BATCH, TopicSpec, all_topics
from infra.kafka.acls import COMPONENTS, PURPOSES, Deployment, Grant, grants

FILE = Path(__file__).parents[1] / "deploy" / "helm" / "feedloom" / "files" / "kafka.json"
PREFIX = "{prefix}"
GROUP = "{group}"
AUTOSCALER = "autoscaler"
"""Who counts what waits while no worker is there to say so. No component of the code: KEDA."""

_NAMES = Deployment(topic_prefix=PREFIX, worker_group=GROUP)
_RESOURCES = {"topic": "topic", "group": "group", "transactional-id": "transactionalId"}
"""Strimzi's names of what a right is on."""


def document() -> dict[str, Any]:
    """Every topic, and every user with what it may do."""
    users: dict[str, Any] = {
        component: _user(PURPOSES[component], grants(component, _NAMES)) for component in COMPONENTS
    }
    users[AUTOSCALER] = _user("counts the requests that wait, to start workers", _counting())
    return {"topics": [_topic(spec) for spec in all_topics()], "users": users}


def text() -> str:
    """The file's content."""
    return json.dumps(document(), indent=1) + "\n"


def _topic(spec: TopicSpec) -> dict[str, Any]:
    return {
        "name": PREFIX + spec.name,
        "partitions": spec.partitions,
        # As ``feedloom topics apply`` has it: one partition is an order, and stays one.
        "scalable": spec.partitions > 1,
        "config": spec.config,
    }


def _user(purpose: str, found: tuple[Grant, ...]) -> dict[str, Any]:
    return {"purpose": purpose, "acls": [_acl(one) for one in found]}


def _acl(grant: Grant) -> dict[str, Any]:
    return {
        "type": _RESOURCES[grant.resource],
        "name": grant.name,
        "patternType": "prefix" if grant.prefixed else "literal",
        "operations": list(grant.operations),
    }


def _counting() -> tuple[Grant, ...]:
    topics = [
        Grant(resource="topic", name=PREFIX + spec.name, operations=("Describe",))
        for spec in (REQUESTS, REQUESTS_BATCH)
    ]
    return (*topics, Grant(resource="group", name=_NAMES.group, operations=("Describe",)))


@click.command()
@click.option("--write", "writing", is_flag=True, help="Write the file.")
def main(writing: bool) -> None:
    """Name the chart's file if it is stale, and end with 1."""
    if FILE.is_file() and FILE.read_text() == text():
        return
    click.echo(f"{'wrote' if writing else 'stale'}: {FILE}")
    if not writing:
        raise SystemExit(1)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text())


if __name__ == "__main__":
    main()
