"""Names and passwords on the secured embedded broker: a file each, for its owner's eyes only.

``home/kafka/credentials`` holds one file a user with the password and nothing else, so that each
component can be given its own (``sasl_password_file``) and no other.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from infra.contracts.errors import ConfigurationError
from infra.settings import KafkaSettings

ADMIN = "admin"
"""The broker's super user, whom no ACL binds."""
MECHANISM = "SCRAM-SHA-512"


def server_security(admin_password: str) -> str:
    """Broker properties: who may log in and how, and that nobody may do what no ACL allows.

    Broker and controller are one process and talk to each other as the super user: the broker by
    SCRAM as all clients do, the controller, which has no SCRAM users to look up yet, by PLAIN.
    """
    login = f'required username="{ADMIN}" password="{admin_password}"'
    package = "org.apache.kafka.common.security"
    client, controller = "listener.name.sasl_plaintext", "listener.name.controller"
    return f"""\
sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256
sasl.mechanism.inter.broker.protocol={MECHANISM}
{client}.scram-sha-512.sasl.jaas.config={package}.scram.ScramLoginModule {login};
{client}.scram-sha-256.sasl.jaas.config={package}.scram.ScramLoginModule required;
sasl.mechanism.controller.protocol=PLAIN
{controller}.sasl.enabled.mechanisms=PLAIN
{controller}.plain.sasl.jaas.config={package}.plain.PlainLoginModule {login} \\
  user_{ADMIN}="{admin_password}";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:{ADMIN}
allow.everyone.if.no.acl.found=false
"""


class Credentials:
    """Those of one home."""

    def __init__(self, home: Path) -> None:
        self.folder = home.resolve() / "kafka" / "credentials"

    def path(self, user: str) -> Path:
        """Where the password is."""
        return self.folder / user

    def create(self, user: str) -> str:
        """The user's password, made up the first time."""
        path = self.path(user)
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as stream:
                stream.write(secrets.token_urlsafe(32) + "\n")
        return path.read_text().strip()

    def log_in(self, kafka: KafkaSettings, user: str) -> KafkaSettings:
        """The same settings, as ``user``. Raises ConfigurationError: no such user."""
        if not self.path(user).is_file():
            known = sorted(one.name for one in self.folder.glob("*"))
            raise ConfigurationError(
                f"the embedded broker has no user {user!r}: FEEDLOOM_KAFKA__LOCAL_USER is one of "
                + ", ".join(known)
            )
        in_the_file = None
        return kafka.model_copy(
            update={
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": MECHANISM,
                "sasl_username": user,
                "sasl_password": in_the_file,
                "sasl_password_file": self.path(user),
            }
        )
