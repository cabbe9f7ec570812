"""Networks of one process each, which reach the others only through links that can be cut.

A process in a network namespace of its own finds each broker where it always is, at its port on
127.0.0.1: a listener there, in the namespace, passes on to this side's, which is the broker itself,
or a listener that leads into the broker's own network. So nobody's configuration knows of it. The
kernel's netem would delay packets; here, bytes are held back, which works in kernels that have
none. Needs root and ``ip``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CHUNK = 65_536
CLONE_NEWNET = 0x40000000


@dataclass
class Network:
    """Of one process. ``delay_s``: of each piece of data, either way."""

    name: str
    delay_s: float = 0.0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)


class Switchboard:
    """Owns networks and the links out of them. Use as a context."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._networks: dict[str, Network] = {}
        self._servers: list[asyncio.Server] = []
        self._published: dict[int, asyncio.Server] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Switchboard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for network in self._networks.values():
            subprocess.run(["ip", "netns", "delete", network.name], check=True)

    def add(self, name: str, ports: Sequence[int]) -> None:
        """A network out of which these ports of 127.0.0.1 can be reached."""
        network = Network(f"{self._label}-{name}")
        subprocess.run(["ip", "netns", "add", network.name], check=True)
        self._networks[name] = network
        inside = ["ip", "netns", "exec", network.name]
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True)
        network.opened.set()
        for port in ports:
            listener = _inside(network.name, partial(_listener, port))
            self._do(self._listen(network, listener, port))

    def __contains__(self, name: str) -> bool:
        return name in self._networks

    def inside(self, name: str, command: Sequence[str]) -> list[str]:
        """``command``, to be run in that network."""
        return ["ip", "netns", "exec", self._networks[name].name, *command]

    def publish(self, name: str, port: int, *, at: int = 0) -> int:
        """A port of this side, that one or any, that leads to one of that network."""
        network = self._networks[name]
        listener = _listener(at)
        chosen: int = listener.getsockname()[1]
        self._published[chosen] = self._do(self._listen(network, listener, port, inward=True))
        return chosen

    def withdraw(self, port: int) -> None:
        """Nothing listens any more at a port that was published; links that exist stay."""

        async def close() -> None:
            server.close()

        server = self._published.pop(port)
        self._servers.remove(server)
        self._do(close())

    def cut(self, name: str) -> None:
        """Nothing gets in or out, and nobody is told; what was on its way waits."""
        self._loop.call_soon_threadsafe(self._networks[name].opened.clear)

    def reset(self, name: str) -> None:
        """Every connection breaks; new ones can be made."""
        network = self._networks[name]

        async def abort() -> None:
            for writer in list(network.writers):
                writer.transport.abort()

        self._do(abort())

    def delay(self, name: str, seconds: float) -> None:
        """Whatever is sent comes later by this."""
        self._networks[name].delay_s = seconds

    def heal(self, name: str) -> None:
        """As it should be."""
        self._networks[name].delay_s = 0.0
        self._loop.call_soon_threadsafe(self._networks[name].opened.set)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(
        self, network: Network, listener: socket.socket, port: int, *, inward: bool = False
    ) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._carry(network, port, reader, writer, inward=inward)

        server = await asyncio.start_server(connected, sock=listener)
        self._servers.append(server)
        return server

    async def _carry(
        self,
        network: Network,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        inward: bool,
    ) -> None:
        await network.opened.wait()
        ends = {writer}
        try:
            made = _inside(network.name, socket.socket) if inward else socket.socket()
            made.setblocking(False)
            await self._loop.sock_connect(made, ("127.0.0.1", port))
            there, back = await asyncio.open_connection(sock=made)
        except OSError:
            writer.transport.abort()
            return
        ends.add(back)
        network.writers |= ends
        try:
            await asyncio.gather(_pump(network, reader, back), _pump(network, there, writer))
        except OSError:
            pass
        finally:
            network.writers -= ends
            for end in ends:
                end.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for network in self._networks.values():
            for writer in list(network.writers):
                writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _pump(
    network: Network, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while data := await reader.read(CHUNK):
        if network.delay_s:
            await asyncio.sleep(network.delay_s)
        await network.opened.wait()
        writer.write(data)
        await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.write_eof()


def _listener(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    made.listen(128)
    return made


def _inside(name: str, make: Callable[[], socket.socket]) -> socket.socket:
    """A socket of a namespace: it stays there, whoever uses it. Only one thread goes in for it."""
    made: list[socket.socket] = []
    failed: list[BaseException] = []

    def enter() -> None:
        try:
            with Path("/var/run/netns", name).open("rb") as handle:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(make())
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
