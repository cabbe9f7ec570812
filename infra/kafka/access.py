"""Users and access rights on a broker, through its admin interface. Never takes a right away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka.errors import SecurityDisabledError

from infra.contracts.errors import ConfigurationError
from infra.kafka.acls import COMPONENTS, Deployment, Grant, Operation, Resource, grants
from infra.kafka.connection import admin_client, permitted, principal, reachable
from infra.kafka.credentials import Credentials
from infra.settings import KafkaSettings

ITERATIONS = 8_192
ANY_HOST = "*"

_RESOURCES: dict[Resource, ResourceType] = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
OPERATIONS: dict[Operation, ACLOperation] = {
    "Read": ACLOperation.READ,
    "Write": ACLOperation.WRITE,
    "Create": ACLOperation.CREATE,
    "Alter": ACLOperation.ALTER,
    "Describe": ACLOperation.DESCRIBE,
    "AlterConfigs": ACLOperation.ALTER_CONFIGS,
    "DescribeConfigs": ACLOperation.DESCRIBE_CONFIGS,
}


def secure(settings: KafkaSettings, credentials: Credentials, deployment: Deployment) -> None:
    """Give every component a user on the embedded broker, with the rights it needs.

    ``settings``: the super user's. Raises ConfigurationError.
    """
    set_passwords(settings, {one: credentials.create(one) for one in COMPONENTS})
    for component in COMPONENTS:
        apply_grants(settings, f"User:{component}", grants(component, deployment))


def apply_grants(settings: KafkaSettings, who: str, wanted: Iterable[Grant]) -> list[str]:
    """Allow ``who`` (``User:NAME``) what it may not do yet; a second call does nothing.

    Returns:
        One line a resource.

    Raises:
        ConfigurationError: the broker has no authorizer, or whoever asks may not alter ACLs.
    """
    changes: list[str] = []
    with (
        reachable(settings),
        admin_client(settings) as admin,
        permitted(settings, "alter access rights: that takes Alter on the cluster"),
    ):
        try:
            present, _ = admin.describe_acls(_all_of(who))
            for grant in wanted:
                missing = {
                    operation: acl
                    for operation, acl in _acls(who, grant).items()
                    if acl not in present
                }
                if not missing:
                    continue
                failed = admin.create_acls(list(missing.values()))["failed"]
                if failed:
                    raise failed[0](f"{grant.resource} {grant.name}")
                name = grant.name + ("*" if grant.prefixed else "")
                changes.append(f"{who}: {', '.join(missing)} on {grant.resource} {name}")
        except SecurityDisabledError as error:
            raise ConfigurationError(
                f"the broker at {settings.bootstrap_servers} checks no access rights: start it "
                "with an authorizer (`feedloom kafka start --secured`)"
            ) from error
    return changes


def set_passwords(settings: KafkaSettings, passwords: Mapping[str, str]) -> None:
    """Create these users, or change their passwords, for SCRAM-SHA-256 and SCRAM-SHA-512.

    Raises ConfigurationError: the broker keeps none, or whoever asks may not.
    """
    with reachable(settings), admin_client(settings) as admin:
        # Kafka changes each user once in a request.
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            outcomes = admin.alter_user_scram_credentials(
                [
                    UserScramCredentialUpsertion(user, mechanism, password, iterations=ITERATIONS)
                    for user, password in passwords.items()
                ]
            )
            refused = {user: text for user, text in outcomes.items() if text is not None}
            if refused:
                raise ConfigurationError(
                    f"{principal(settings)} could not set passwords: "
                    + "; ".join(f"{user}: {text}" for user, text in sorted(refused.items()))
                )


def _acls(who: str, grant: Grant) -> dict[Operation, ACL]:
    pattern = ResourcePattern(
        _RESOURCES[grant.resource],
        grant.name,
        ACLResourcePatternType.PREFIXED if grant.prefixed else ACLResourcePatternType.LITERAL,
    )
    return {
        operation: ACL(who, ANY_HOST, OPERATIONS[operation], ACLPermissionType.ALLOW, pattern)
        for operation in grant.operations
    }


def _all_of(who: str) -> ACLFilter:
    return ACLFilter(
        who,
        None,
        ACLOperation.ANY,
        ACLPermissionType.ANY,
        ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY),
    )
