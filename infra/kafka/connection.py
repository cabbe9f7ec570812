"""What every kafka-python client of a deployment is configured with, and how its errors read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaConnectionError, KafkaTimeoutError

from infra.contracts.errors import ConfigurationError
from infra.settings import KafkaSettings

BOOTSTRAP_TIMEOUT_MS = 15_000


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Address and security options shared by producer, consumer and admin client.

    Raises ConfigurationError when no broker is set.
    """
    if settings.bootstrap_servers is None:
        raise ConfigurationError(
            "no Kafka broker is set: run `feedloom kafka start`, or set "
            "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"
        )
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "security_protocol": settings.security_protocol,
    }
    if settings.sasl_mechanism is not None:
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password,
        }
    if settings.ssl_cafile is not None:
        options["ssl_cafile"] = str(settings.ssl_cafile)
    return options


@contextmanager
def reachable(settings: KafkaSettings) -> Iterator[None]:
    """Turn a failure to reach any broker into a message that says what to do."""
    try:
        yield
    except (KafkaConnectionError, KafkaTimeoutError) as error:
        raise ConfigurationError(
            f"no Kafka broker answers at {settings.bootstrap_servers} ({error or 'timed out'}): "
            "check FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS and `feedloom doctor`"
        ) from error


@contextmanager
def admin_client(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end."""
    with reachable(settings):
        admin = KafkaAdminClient(**client_options(settings))
    try:
        yield admin
    finally:
        admin.close()
