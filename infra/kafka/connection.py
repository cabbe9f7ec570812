"""What the clients of a deployment are configured with, and how their errors read.

Every client, kafka-python's, aiokafka's and Faust's, gets its TLS context and password from here.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import (
    AuthorizationError,
    KafkaConnectionError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)

from infra.contracts.errors import ConfigurationError
from infra.kafka.login import LoginClient
from infra.settings import KafkaSettings

BOOTSTRAP_TIMEOUT_MS = 15_000


class AccessRefused(ConfigurationError):
    """The broker knows who asks, and does not allow it."""


class LoginRefused(ConfigurationError):
    """The broker does not believe the client to be who it says."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Address and security options shared by producer, consumer and admin client.

    Raises ConfigurationError: no broker is set, or a certificate, key or password is of no use.
    """
    if settings.bootstrap_servers is None:
        raise ConfigurationError(
            "no Kafka broker is set: run `feedloom kafka start`, or set "
            "FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"
        )
    return {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "bootstrap_timeout_ms": BOOTSTRAP_TIMEOUT_MS,
        "kafka_client": LoginClient,
        **security_options(settings),
    }


def security_options(settings: KafkaSettings) -> dict[str, Any]:
    """Who to be and how to encrypt, under the names that kafka-python and aiokafka share.

    Raises ConfigurationError as :func:`client_options`.
    """
    options: dict[str, Any] = {
        "security_protocol": settings.security_protocol,
        "ssl_context": tls_context(settings),
    }
    if settings.sasl_mechanism is not None:
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": sasl_password(settings),
        }
    return options


def tls_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """Trust, client certificate and host check; ``None`` where the protocol does not encrypt.

    Raises ConfigurationError: a file holds no certificate, or the key is not the certificate's.
    """
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    cafile, certfile = settings.ssl_cafile, settings.ssl_certfile
    try:
        context = ssl.create_default_context(cafile=None if cafile is None else str(cafile))
    except OSError as error:
        raise ConfigurationError(
            f"kafka.ssl_cafile: {cafile} holds no PEM certificate ({error})"
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = settings.ssl_check_hostname
    if certfile is not None:
        try:
            # An empty password where none is set: OpenSSL would ask for one on the terminal.
            context.load_cert_chain(
                certfile, settings.ssl_keyfile, settings.ssl_key_password or (lambda: "")
            )
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"kafka.ssl_certfile: {certfile} and the key in {settings.ssl_keyfile or certfile} "
                f"cannot be used together ({error}): both must be PEM, of one pair, and "
                "kafka.ssl_key_password the key's"
            ) from error
    return context


def sasl_password(settings: KafkaSettings) -> str | None:
    """As set, or the first line of the file that is named. Raises ConfigurationError."""
    path = settings.sasl_password_file
    if path is None:
        return settings.sasl_password
    try:
        password = path.read_text("utf-8").split("\n", 1)[0].strip("\r")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"kafka.sasl_password_file: {path}: {error}") from error
    if not password:
        raise ConfigurationError(f"kafka.sasl_password_file: {path} begins with an empty line")
    return password


@contextmanager
def reachable(settings: KafkaSettings) -> Iterator[None]:
    """Turn a failure to reach any broker, or to get in, into a message that says what to do.

    Raises ConfigurationError; of it LoginRefused and AccessRefused as :func:`permitted`.
    """
    try:
        with permitted(settings, "do this"):
            yield
    except (KafkaConnectionError, KafkaTimeoutError) as error:
        raise ConfigurationError(
            f"no Kafka broker answers at {settings.bootstrap_servers} ({error or 'timed out'}): "
            "check FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS and `feedloom doctor`"
        ) from error


@contextmanager
def permitted(settings: KafkaSettings, action: str) -> Iterator[None]:
    """Turn the broker's refusal of an ``action`` ("write topic x") into a clear message.

    Raises LoginRefused, AccessRefused.
    """
    try:
        yield
    except AuthorizationError as error:
        raise access_refused(settings, action, error) from error
    except (SaslAuthenticationFailedError, UnsupportedSaslMechanismError) as error:
        raise login_refused(settings, error) from error


def access_refused(
    settings: KafkaSettings, action: str, error: AuthorizationError
) -> AccessRefused:
    """Who may not do what, and where it is said what they may."""
    what = type(error).__name__
    names = error.args[0] if error.args else None
    if isinstance(names, set | frozenset) and names:
        what += ": " + ", ".join(sorted(str(name) for name in names))
    return AccessRefused(
        f"{principal(settings)} may not {action} ({what}): `feedloom topics acls` shows what each "
        "component needs, and with --apply allows it"
    )


def login_refused(settings: KafkaSettings, error: BaseException) -> LoginRefused:
    """Whose name and password the broker does not take."""
    return LoginRefused(
        f"Kafka at {settings.bootstrap_servers} does not let {principal(settings)} in with "
        f"{settings.sasl_mechanism} ({error}): check FEEDLOOM_KAFKA__SASL_USERNAME, the password "
        "and FEEDLOOM_KAFKA__SASL_MECHANISM"
    )


def principal(settings: KafkaSettings) -> str:
    """As ACLs name whoever connects with these settings, where the settings tell."""
    if settings.sasl_username is not None:
        return f"User:{settings.sasl_username}"
    return "this client" if settings.ssl_certfile is None else f"owner of {settings.ssl_certfile}"


@contextmanager
def admin_client(settings: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end."""
    with reachable(settings):
        admin = KafkaAdminClient(**client_options(settings))
    try:
        yield admin
    finally:
        admin.close()
