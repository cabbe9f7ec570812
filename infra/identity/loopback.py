"""Which hosts are this machine: what is allowed there alone asks here."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback: ``localhost`` or an address of it.

    No name is looked up: what it resolves to may change after the answer.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
