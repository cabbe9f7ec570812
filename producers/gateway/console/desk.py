"""What the console's routes work with: one a gateway, with threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from infra.contracts.bus import Bus
from infra.contracts.config_keys import InvalidSetting
from infra.contracts.dead_letters import DeadLetterRefused
from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.kafka.dead_letters import DeadLetters
from infra.registry.client import RolloutOvertaken
from infra.registry.config import ConfigOvertaken
from infra.registry.config_history import NoSuchRevision
from infra.registry.transitions import IllegalTransition
from producers.gateway.console.feed import LiveFeed
from producers.gateway.console.rollout import MovedOn
from producers.gateway.errors import ApiError, invalid, unavailable
from producers.gateway.service import GatewayService

T = TypeVar("T")

THREADS = 4
_CONFLICTS: dict[type[FeedloomError], str] = {
    MovedOn: "moved_on",
    RolloutOvertaken: "overtaken",
    ConfigOvertaken: "overtaken",
    IllegalTransition: "illegal_transition",
    NoSuchRevision: "no_such_revision",
    DeadLetterRefused: "dead_letter_refused",
}


class Console:
    """``span_directory``: where the platform's processes write their spans, if they do.

    ``dead_letters``: the bus's, as its broker needs them read.
    """

    def __init__(
        self,
        bus: Bus,
        service: GatewayService,
        *,
        source: str,
        span_directory: Path | None = None,
        dead_letters: DeadLetters | None = None,
    ) -> None:
        self.bus = bus
        self.service = service
        self.source = source
        self.span_directory = span_directory
        self.dead_letters = dead_letters or DeadLetters(bus)
        self.feed = LiveFeed(bus, lag=lambda: service.views.lag)
        # Not the loop's own threads: a broker that hangs must not keep callers' requests waiting.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway-console")

    def open(self) -> None:
        """Begin to count. Blocks."""
        self.feed.start()

    def close(self) -> None:
        """Stop; waits for what is being written."""
        self.feed.close()
        self._threads.shutdown()

    async def run(self, work: Callable[[], T]) -> T:
        """Run what blocks in one of the console's threads. Raises ApiError for what it raises."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except InvalidSetting as error:
            raise invalid(str(error), param="value", code="invalid_setting") from error
        except ApiError:
            raise
        except ConfigurationError as error:
            raise ApiError(503, str(error), code="not_configured") from error
        except FeedloomError as error:
            code = next((code for kind, code in _CONFLICTS.items() if isinstance(error, kind)), "")
            if code:
                raise ApiError(409, str(error), code=code) from error
            raise unavailable(str(error), code="broker_gone") from error
        except TimeoutError as error:
            raise unavailable("Kafka does not take records", code="broker_gone") from error
