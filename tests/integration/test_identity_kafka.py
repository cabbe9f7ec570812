"""API keys on a real broker: made by the command, known to a running gateway, revoked for good."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.events.platform import ApiKeyChanged
from infra.identity.authenticator import PlatformAuthenticator
from infra.identity.key_topic import (
    KeysWatcher,
    create_key,
    read_keys,
    revoke_key,
    rotate_key,
)
from infra.identity.keys import parse_key, state_of
from infra.identity.principal import Unauthenticated
from infra.kafka.bus import KafkaBus
from infra.local.supervisor import feedloom_command
from infra.settings import GatewaySettings, KafkaSettings

from .conftest import child_environment

pytestmark = pytest.mark.kafka

TOPIC = catalogue.KEYS.name


class Shell:
    """Runs ``feedloom keys`` as somebody at a terminal does."""

    def __init__(self, kafka: KafkaSettings, home: Path) -> None:
        self._home = home
        self._environment = {
            **os.environ,
            **child_environment(home, kafka),
            "LOGNAME": "ann",
        }

    def keys(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        finished = subprocess.run(
            feedloom_command(["keys", *arguments]),
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self._home,
            timeout=120,
        )
        assert finished.returncode == status, finished.stderr
        return finished


def until_changed(authenticator: PlatformAuthenticator, key_id: str) -> None:
    """Poll until the change of a key is there."""
    watcher = authenticator._watcher
    assert watcher is not None
    deadline = time.monotonic() + 60
    while key_id not in watcher.poll(0.2):
        assert time.monotonic() < deadline


async def test_a_key_from_the_command_to_its_revocation(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    shell = Shell(kafka_settings, tmp_path)
    running = PlatformAuthenticator(kafka_bus, GatewaySettings())
    created = shell.keys(
        "create",
        "--tenant",
        "acme",
        "--name",
        "app",
        "--role",
        "caller",
        "--model",
        "default",
        "--expires",
        "90d",
    )
    key = parse_key(created.stdout.removesuffix("\n"))
    assert key.secret not in created.stderr
    until_changed(running, key.key_id)
    principal = await running.authenticate(key.text)
    assert (principal.tenant, principal.subject, principal.roles, principal.models) == (
        "acme",
        "app",
        frozenset({"caller"}),
        frozenset({"default"}),
    )

    rotated = parse_key(shell.keys("rotate", key.key_id, "--overlap", "1h").stdout.strip())
    until_changed(running, key.key_id)
    for each in (key, rotated):
        assert (await running.authenticate(each.text)).subject == "app"

    shell.keys("revoke", rotated.key_id, "--reason", "leaked")
    until_changed(running, rotated.key_id)
    late = PlatformAuthenticator(kafka_bus, GatewaySettings())
    for authenticator in (running, late):
        await authenticator.authenticate(key.text)
        with pytest.raises(Unauthenticated, match="was revoked"):
            await authenticator.authenticate(rotated.text)
        authenticator.close()

    listed = shell.keys("list", "--json").stdout
    rows = {row["key_id"]: row for row in json.loads(listed)}
    assert {key_id: row["state"] for key_id, row in rows.items()} == {
        key.key_id: "active",
        rotated.key_id: "revoked",
    }
    assert rows[key.key_id]["replaced_by"] == rotated.key_id
    assert (rows[rotated.key_id]["actor"], rows[rotated.key_id]["reason"]) == ("ann", "leaked")
    written = b"".join(record.value or b"" for record in read_to_end(kafka_bus, TOPIC))
    for each in (key, rotated):
        assert each.secret.encode() not in written
        assert each.secret not in listed

    refused = shell.keys("rotate", rotated.key_id, status=1)
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"feedloom: {rotated.key_id} is revoked")


def test_whoever_writes_at_the_same_moment_a_revocation_stands(kafka_bus: KafkaBus) -> None:
    publisher, watcher = kafka_bus.publisher(), KeysWatcher(kafka_bus)
    made = [
        create_key(publisher, watcher, tenant="acme", name=f"{n}", roles=("caller",), now_ms=1)
        for n in range(3)
    ]
    watcher.close()

    def change(number: int) -> None:
        own_publisher, own = kafka_bus.publisher(), KeysWatcher(kafka_bus)
        try:
            for each in made:
                found = each.key.key_id
                if number == 0:
                    revoke_key(own_publisher, own, found, now_ms=2, reason="out")
                    continue
                own.catch_up()
                standing = own.ring.get(found)
                if standing is not None and state_of(standing, now_ms=2) == "active":
                    rotate_key(own_publisher, own, found, overlap_ms=1_000, now_ms=2)
        finally:
            own_publisher.close()
            own.close()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(change, number) for number in range(2)]:
            assert future.exception() is None or "is revoked" in str(future.exception())
    publisher.close()
    last = {
        record.key_text: codec.decode(record.value or b"", ApiKeyChanged)
        for record in read_to_end(kafka_bus, TOPIC)
    }
    ring = read_keys(kafka_bus)
    for each in made:
        # What compaction would leave is what every reader believes.
        assert last[each.key.key_id] == ring.get(each.key.key_id)
        assert last[each.key.key_id].revoked_at_ms == 2
