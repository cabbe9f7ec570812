"""Jars are taken only as pinned; a missing Java is named with its remedy."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import psutil
import pytest

from infra.contracts.errors import ConfigurationError
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.jars import Jar, fetch_jars, locked_jars
from infra.kafka.java import find_java, java_major

CONTENT = b"jar"
GOOD = Jar("g", "a", "1", hashlib.sha256(CONTENT).hexdigest())


def fetch(jar: Jar, folder: Path) -> Path:
    path = folder / jar.filename
    path.write_bytes(CONTENT)
    return path


def test_the_committed_lock_names_kafka_and_pins_every_jar() -> None:
    jars = locked_jars()
    assert any(jar.artifact == "kafka_2.13" for jar in jars)
    assert all(len(jar.sha256) == 64 for jar in jars)
    assert len({jar.filename for jar in jars}) == len(jars)


def test_a_malformed_lock_line_is_named() -> None:
    with pytest.raises(ValueError, match=r"jars\.lock:2"):
        locked_jars("# comment\ng:a 1\n")


def test_jars_are_fetched_once(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    library = tmp_path / "lib"
    count = fetch_jars(library, [GOOD], fetch=fetch, progress=lambda *at: seen.append(at))
    assert (count, seen) == (1, [(1, 1)])
    assert fetch_jars(library, [GOOD], fetch=fetch) == 0
    assert [path.name for path in library.iterdir()] == ["a-1.jar"]


def test_a_jar_with_another_hash_is_refused_and_not_kept(tmp_path: Path) -> None:
    bad = Jar("g", "a", "1", "0" * 64)
    with pytest.raises(ConfigurationError, match="g:a:1 as downloaded has SHA-256"):
        fetch_jars(tmp_path, [bad], fetch=fetch)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_java_names_the_command_that_installs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    assert java_major(old) == 11
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    monkeypatch.setattr("infra.kafka.java.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"version 11(.|\n)*make setup"):
        find_java()


def test_a_process_id_used_again_is_not_taken_for_the_broker(tmp_path: Path) -> None:
    broker = EmbeddedKafka(tmp_path)
    (tmp_path / "kafka").mkdir()
    layout = {"cluster_id": "x", "ports": [1], "controller_ports": [2]}
    (tmp_path / "kafka" / "layout.json").write_text(json.dumps(layout))
    node = {"number": 1, "port": 1, "pid": os.getpid(), "started_at": 1.0}
    (tmp_path / "kafka" / "state.json").write_text(json.dumps({"nodes": [node]}))
    assert broker.status() is None
    assert broker.stop() is False
    assert psutil.pid_exists(os.getpid())
