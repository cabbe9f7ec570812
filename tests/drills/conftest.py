"""One broker, one collector and one Prometheus for all drills."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.kafka.broker import EmbeddedKafka
from tests.conftest import embedded_broker
from tests.drills.observatory import SUMMARY, Observatory


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """How long each alert took."""
    if SUMMARY in config.stash:
        terminalreporter.write_line(config.stash[SUMMARY])


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A drill stops it, so it is no other test's."""
    with embedded_broker(tmp_path_factory.mktemp("kafka-home")) as started:
        yield started


@pytest.fixture(scope="session")
def observatory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observatory]:
    with (
        Observatory(tmp_path_factory.mktemp("observatory")) as started,
        pytest.MonkeyPatch.context() as environment,
    ):
        for name, value in started.environment.items():
            environment.setenv(name, value)
        yield started
