"""Reads what ``feedloom top`` shows, without a group, and brings it into the model."""

from __future__ import annotations

import time
from contextlib import suppress

from infra.contracts import catalogue
from infra.contracts.bus import Bus, catch_up, unread
from infra.contracts.errors import FatalError
from infra.kafka.offsets import OffsetsUnknown
from infra.kafka.partition_lag import GroupsLag
from infra.kafka.topic_sizes import TopicSizes
from infra.settings import Settings
from infra.terminal.top_frame import Frame
from infra.terminal.top_model import FOLDED, REQUESTS, TopModel

CATCH_UP_S = 30.0
POLL_S = 0.1
RESULTS = catalogue.RESULTS.name


class TopFeed:
    """Everything up to now, once made; :meth:`poll` takes in what came since.

    ``settings``: with the broker's address filled in. Raises ConfigurationError: no broker answers,
    or it does not allow this; FatalError: the topics cannot be read in time.
    """

    def __init__(self, bus: Bus, settings: Settings, *, window_s: int) -> None:
        self.model = TopModel(window_s=window_s)
        self._folded = bus.reader(FOLDED)
        self._results = bus.reader([RESULTS], start="latest")
        self._lag = GroupsLag(
            settings.kafka,
            {
                settings.worker.group: REQUESTS,
                settings.trainer.group: (),
                catalogue.BATCHES_GROUP: (),
            },
            optional=(settings.trainer.group, catalogue.BATCHES_GROUP),
            times=False,
        )
        self._letters = TopicSizes(
            settings.kafka,
            [
                catalogue.dead_letter_topic(one).name
                for one in catalogue.CATALOGUE
                if one.dead_letter
            ],
        )
        try:
            self._begin(bus, window_s)
        except BaseException:
            self.close()
            raise

    def poll(self) -> Frame:
        """The platform as of now. Raises as the constructor."""
        for reader in (self._folded, self._results):
            while records := reader.poll(POLL_S):
                for record in records:
                    self.model.apply(record)
        # A broker that changes leaders does not tell; then what was measured last stands.
        with suppress(OffsetsUnknown):
            self.model.sample(self._lag.measure(), self._letters.measure())
        return self.model.frame(time.time_ns() // 1_000_000)

    def close(self) -> None:
        """Let go of every connection."""
        self._folded.close()
        self._results.close()
        self._lag.close()
        self._letters.close()

    def _begin(self, bus: Bus, window_s: int) -> None:
        catch_up(
            bus, self._folded, FOLDED, self._take_folded, what="the topics", timeout_s=CATCH_UP_S
        )
        ends = self._results.seek_since(int(1000 * (time.time() - window_s)))
        deadline = time.monotonic() + CATCH_UP_S
        while unread(self._results, ends):
            if time.monotonic() > deadline:
                raise FatalError(f"{RESULTS} could not be read within {CATCH_UP_S:.0f} s")
            for record in self._results.poll(POLL_S):
                self.model.apply(record)

    def _take_folded(self, timeout_s: float) -> None:
        for record in self._folded.poll(timeout_s):
            self.model.apply(record)
