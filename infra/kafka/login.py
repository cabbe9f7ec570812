"""kafka-python's network client, which says why it is not let in, and at once.

kafka-python 3.0.12 remembers refused logins to raise them (``_auth_failures``), but its connections
keep the error to themselves: with a wrong password it tries until the time for connecting is over,
and then says only that. The same goes for a certificate that is not trusted, which also leaves a
socket open. What comes together with the end of a connection, as the refusal of a login may, it
throws away.
"""

from __future__ import annotations

import ssl
from typing import Any

from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailedError,
    UnsupportedSaslMechanismError,
)
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport


class LoginClient(KafkaNetClient):  # type: ignore[misc]
    """For the option ``kafka_client`` of producer, consumer and admin client."""

    def __init__(self, **options: Any) -> None:
        net = NetworkSelector(**options)
        super().__init__(net=net, manager=_Connections(net, **options), **options)


class _Connections(KafkaConnectionManager):  # type: ignore[misc]
    def bootstrap(self, timeout_ms: float | None = None, refresh: bool = True) -> None:
        """Closes what it opened when it fails: whoever makes a client gets none to close."""
        inside = self.bootstrapped
        try:
            super().bootstrap(timeout_ms, refresh)
        except KafkaError:
            if not inside:
                self.close()
                self._net.close()
            raise

    async def _connect(self, node: Any, conn: Any, **options: Any) -> None:
        await super()._connect(node, conn, **options)
        # Once it was let in, a refusal is tried again: a broker that has just started may not know
        # all its users yet.
        if not self.bootstrapped and conn.init_future.failed():
            error = conn.init_future.exception
            if _is_final(error):
                self._auth_failures[node.node_id] = error

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        sock = await create_connection(
            self._net,
            node.host,
            node.port,
            self.config["socket_options"],
            proxy_url=self.config["proxy_url"],
            timeout_at=timeout_at,
        )
        if not self.ssl_enabled:
            return _Plain(self._net, sock, host=node.host)
        context = self.config["ssl_context"]
        transport = _Encrypted(self._net, sock, host=node.host, ssl_context=context)
        shaken = False
        try:
            await transport.handshake()
            shaken = True
        except OSError as error:
            raise KafkaConnectionError(f"TLS handshake failed: {error}") from error
        finally:
            if not shaken:
                transport.abort()
        return transport


class _Plain(KafkaTCPTransport):  # type: ignore[misc]
    def _sock_recv(self) -> tuple[bytes, BaseException | None]:
        return _all_first(*super()._sock_recv())


class _Encrypted(KafkaSSLTransport):  # type: ignore[misc]
    def _sock_recv(self) -> tuple[bytes, BaseException | None]:
        return _all_first(*super()._sock_recv())


def _all_first(data: bytes, error: BaseException | None) -> tuple[bytes, BaseException | None]:
    """What came before the end; the end is met again by the next call."""
    return data, None if data else error


def _is_final(error: BaseException | None) -> bool:
    if isinstance(error, SaslAuthenticationFailedError | UnsupportedSaslMechanismError):
        return True
    while error is not None:
        # A broker that is stopping ends handshakes, too.
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        (inner,) = error.args[:1] or (None,)
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return False
