"""A publisher that asks steadily, in a process of its own, and says what stands if no answer comes.

A process of its own, as kafka-python leaks sockets when a broker that it is connected to goes away.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from kafka.errors import KafkaError

from infra.contracts import catalogue
from infra.contracts.bus import read_to_end
from infra.contracts.errors import FeedloomError
from infra.kafka.bus import KafkaBus
from infra.kafka.partition_lag import GroupsLag
from infra.local.supervisor import Child
from infra.settings import KafkaSettings, WorkerSettings
from tests.conftest import ROOT

from .conftest import child_environment

ANSWER_S = 100.0
STACKS_S = 5.0
STACK_LINES = 200


class Publisher:
    """``steady_publisher`` in the background: so many questions at a time, of so many tokens.

    ``asked``: processes that are to say where they are if an answer does not come.
    """

    def __init__(
        self,
        home: Path,
        kafka: KafkaSettings,
        *,
        in_flight: int,
        tokens: int,
        asked: Sequence[Child] = (),
    ) -> None:
        self._kafka = kafka
        self._tokens = tokens
        self._asked = asked
        self.child = Child(
            "publisher",
            [
                sys.executable,
                "-m",
                "tests.integration.steady_publisher",
                str(in_flight),
                str(tokens),
            ],
            log=home / "publisher.log",
            environment={**child_environment(home, kafka), "PYTHONPATH": str(ROOT)},
        )

    def await_more(self, count: int) -> None:
        """Until so many more answers than now have come."""
        wanted = len(self._rows()) + count
        deadline = time.monotonic() + ANSWER_S
        while (now := len(self._rows())) < wanted:
            self.child.check()
            if time.monotonic() > deadline:
                raise AssertionError("\n".join([f"{now} answers of {wanted}", *self._standing()]))
            time.sleep(0.1)

    def results(self) -> dict[str, str]:
        """Stop asking; texts by request, once all have come."""
        assert self.child.stop(150) == 0, self.child.log_tail()
        rows = [json.loads(row) for row in self._rows()]
        assert [row for row in rows if row["error"] or row["output_tokens"] != self._tokens] == []
        return {row["request_id"]: row["text"] for row in rows}

    def _rows(self) -> list[str]:
        # Kafka's clients log to the same file.
        return [line for line in self.child.log.read_text().splitlines() if line[:1] == "{"]

    def _standing(self) -> Iterator[str]:
        """Where each process is, and whether requests were not answered or answers not read."""
        yield from _where(self.child, "most recent call first")
        for child in self._asked:
            yield from _where(child, "Task ")
        try:
            yield from self._on_kafka()
        except (KafkaError, FeedloomError) as error:
            yield f"Kafka does not say what stands: {error!r}"

    def _on_kafka(self) -> Iterator[str]:
        results = len(read_to_end(KafkaBus(self._kafka), catalogue.RESULTS.name))
        yield f"{results} results are on their topic"
        topics = [catalogue.REQUESTS.name, catalogue.REQUESTS_BATCH.name]
        with closing(GroupsLag(self._kafka, {WorkerSettings().group: topics})) as measured:
            for group in measured.measure():
                yield f"{group.group} is {group.state}, {group.members} members"
                yield from map(str, group.partitions)


def _where(child: Child, last: str) -> Iterator[str]:
    """What it says of its stacks, with ``last`` in the last of it."""
    if child.exit_status is not None:
        yield f"{child.name} ended with {child.exit_status}"
        return
    os.kill(child.pid, signal.SIGUSR1)
    deadline = time.monotonic() + STACKS_S
    while last not in child.log_tail(STACK_LINES) and time.monotonic() < deadline:
        time.sleep(0.1)
    yield f"{child.name}:\n{child.log_tail(STACK_LINES)}"
