"""A real broker on which everybody logs in: by SCRAM, by PLAIN over TLS, or by certificate."""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.kafka.acls import Component, Deployment
from infra.kafka.broker import BrokerStatus, EmbeddedKafka
from infra.kafka.broker_node import Layout
from infra.settings import KafkaSettings

PREFIX = "sec."
DEPLOYMENT = Deployment(topic_prefix=PREFIX, worker_group="workers")
PLAIN_PASSWORD = "in-the-clear-but-over-tls"
KEY_PASSWORD = "of-the-key"


class TlsBroker(EmbeddedKafka):
    """The secured broker of a home, with two listeners more."""

    def __init__(self, home: Path, files: Path) -> None:
        super().__init__(home, secured=True)
        self.files = files
        self.plain_port, self.mutual_port = _free_port(), _free_port()

    def extra_properties(self, layout: Layout, number: int) -> str:
        controller = f"CONTROLLER://127.0.0.1:{layout.controller_ports[number - 1]}"
        plain = f"SASL_SSL://127.0.0.1:{self.plain_port}"
        mutual = f"SSL://127.0.0.1:{self.mutual_port}"
        scram = f"SASL_PLAINTEXT://127.0.0.1:{layout.ports[number - 1]}"
        return f"""\
listeners={scram},{plain},{mutual},{controller}
advertised.listeners={scram},{plain},{mutual}
listener.security.protocol.map=SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,\
CONTROLLER:SASL_PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={self.files / "server.pem"}
ssl.truststore.type=PEM
ssl.truststore.location={self.files / "ca.pem"}
listener.name.ssl.ssl.client.auth=required
listener.name.ssl.ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required \
user_client="{PLAIN_PASSWORD}" user_worker="{PLAIN_PASSWORD}";
"""


@dataclass(frozen=True)
class Secured:
    """The running broker, and how each component connects to it."""

    broker: TlsBroker
    status: BrokerStatus

    @property
    def admin(self) -> KafkaSettings:
        return self._prefixed(self.broker.settings(self.status))

    def scram(self, user: Component, mechanism: str = "SCRAM-SHA-512") -> KafkaSettings:
        settings = self._prefixed(self.broker.settings(self.status, user))
        return settings.model_copy(update={"sasl_mechanism": mechanism})

    def plain(self, user: Component, **others: object) -> KafkaSettings:
        """PLAIN over TLS."""
        chosen: dict[str, object] = {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": user,
            "sasl_password": PLAIN_PASSWORD,
            "ssl_cafile": self.broker.files / "ca.pem",
            **others,
        }
        return self._settings(self.broker.plain_port, **chosen)

    def mutual(self, **others: object) -> KafkaSettings:
        """As the worker, by its certificate."""
        chosen: dict[str, object] = {
            "security_protocol": "SSL",
            "ssl_cafile": self.broker.files / "ca.pem",
            "ssl_certfile": self.broker.files / "worker.pem",
            "ssl_keyfile": self.broker.files / "worker.key",
            "ssl_key_password": KEY_PASSWORD,
            **others,
        }
        return self._settings(self.broker.mutual_port, **chosen)

    def _settings(self, port: int, **chosen: object) -> KafkaSettings:
        return KafkaSettings.model_validate(
            {"bootstrap_servers": f"127.0.0.1:{port}", "topic_prefix": PREFIX, **chosen}
        )

    def _prefixed(self, settings: KafkaSettings) -> KafkaSettings:
        return settings.model_copy(update={"topic_prefix": PREFIX})


def make_certificates(folder: Path) -> None:
    """Of a CA: for the server at 127.0.0.1, and a worker. Of another: for a stranger."""
    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "other")}
    names = {"ca": _name("test CA"), "other": _name("another CA")}

    def signed(
        subject: str, key: ec.EllipticCurvePrivateKey, authority: str, *, is_ca: bool = False
    ) -> bytes:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(names[authority] if is_ca else _name(subject))
            .issuer_name(names[authority])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(keys[authority], hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    (folder / "ca.pem").write_bytes(signed("", keys["ca"], "ca", is_ca=True))
    (folder / "other-ca.pem").write_bytes(signed("", keys["other"], "other", is_ca=True))
    for subject, authority in (("server", "ca"), ("worker", "ca"), ("stranger", "other")):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = signed(subject, key, authority)
        if subject == "worker":
            (folder / "worker.pem").write_bytes(certificate)
            (folder / "worker.key").write_bytes(_pem(key, KEY_PASSWORD))
        else:
            (folder / f"{subject}.pem").write_bytes(_pem(key, None) + certificate)


def _pem(key: ec.EllipticCurvePrivateKey, password: str | None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password.encode())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
