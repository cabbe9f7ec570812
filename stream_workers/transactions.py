"""Transactions that carry a consumer group's identity, on aiokafka. Knows nothing of requests.

aiokafka 0.14 commits offsets in a transaction with version 0 of TxnOffsetCommit, which names no
group member: a worker that lost its partitions without noticing could still commit, and answer
twice. Version 3 (KIP-447) carries generation and member id, and the broker refuses an outdated
one. OffsetFetch version 7 can ask for stable offsets only: while another worker's transaction is
being completed, the broker says so instead of giving out the offsets from before it.

A broker that dies takes longer to be replaced than a transaction may stay open, and the coordinator
then rolls the transaction back and refuses its producer, as it refuses one that another process of
the same id has taken the place of. InitProducerId version 4 (KIP-360) names the producer that it
asks for: the broker lets the first go on, and only the second stays out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiokafka
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    IllegalGenerationError,
    IllegalOperation,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RebalanceInProgressError,
    RequestTimedOutError,
    TransactionalIdAuthorizationFailed,
    UnknownMemberIdError,
    for_code,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from infra.contracts.errors import ConfigurationError, FatalError, RetryableError
from stream_workers.coordinator_requests import OffsetFetch
from stream_workers.member_sender import MemberRefused, MemberSender

RETRY_BACKOFF_MS = 20
UNSTABLE_OFFSET_COMMIT = 88
RESUME_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class TransactionFailed(RetryableError):
    """Nothing of the transaction was written. The same work may be committed again."""


class OwnershipLost(TransactionFailed):
    """The group has moved on: the partitions' new owner decides what becomes of the work."""


class TransactionsFenced(FatalError):
    """Another process took over this worker's transactional id. Stop; nothing more can commit."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to write; its name is the broker's, prefix included."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


class GroupMember(NamedTuple):
    """Who commits: the group, and what its coordinator knows this consumer by."""

    group_id: str
    generation: int
    member_id: str


class Committed(NamedTuple):
    """A group's stored position in a partition: the next offset to read, and its metadata."""

    offset: int
    metadata: str


class TransactionalProducer:
    """Writes records and offsets in one transaction after another. For one task at a time.

    ``transactional_id`` must be this process's own: starting one fences an older process of the
    same id and rolls back what that left open.
    """

    def __init__(
        self, *, transactional_id: str, timeout_s: float, client_options: Mapping[str, Any]
    ) -> None:
        self.transactional_id = transactional_id
        self._options = {
            "transactional_id": transactional_id,
            "transaction_timeout_ms": int(timeout_s * 1000),
            # After a commit the next transaction must wait for the markers, milliseconds.
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            **client_options,
        }
        self._producer = aiokafka.AIOKafkaProducer(**self._options)
        self._sender = MemberSender(self._producer)

    async def start(self) -> None:
        """Connect and get a producer id.

        Raises ConfigurationError when the broker does not allow it, and aiokafka's KafkaError when
        none answers.
        """
        try:
            await self._producer.start()
        except TransactionalIdAuthorizationFailed as error:
            await self._producer.client.close()
            raise ConfigurationError(
                f"transactional id {self.transactional_id} may not be used by whom "
                "FEEDLOOM_KAFKA__SASL_USERNAME, or the client's certificate, names: `feedloom "
                "topics acls --component worker` shows what a worker needs"
            ) from error

    async def stop(self) -> None:
        """Disconnect. An open transaction is left to the broker's timeout. Safe to call twice."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._producer.stop(), STOP_TIMEOUT_S)

    async def reachable(self, timeout_s: float) -> bool:
        """Whether a broker answers within ``timeout_s``."""
        try:
            await asyncio.wait_for(self._producer.client.fetch_all_metadata(), timeout_s)
        except (KafkaError, TimeoutError, OSError):
            return False
        return True

    async def commit(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, Committed],
        member: GroupMember,
    ) -> None:
        """Write all of it, or nothing.

        Raises:
            OwnershipLost: the group no longer knows ``member`` under that generation.
            TransactionFailed: a record or the commit was refused, or it took too long; the
                transaction is rolled back.
            TransactionsFenced: no transaction will ever succeed here again.
        """
        try:
            await self._producer.begin_transaction()
            pending: list[Any] = [
                await self._producer.send(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    partition=record.partition,
                    headers=list(record.headers),
                )
                for record in records
            ]
            if offsets:
                self._sender.member = member
                pending.append(
                    self._producer.send_offsets_to_transaction(
                        {
                            position: OffsetAndMetadata(stored.offset, stored.metadata)
                            for position, stored in offsets.items()
                        },
                        member.group_id,
                    )
                )
            # Before the commit: aiokafka would commit even though a batch had failed.
            for outcome in await asyncio.gather(*pending, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            await self._producer.commit_transaction()
        except (KafkaError, IllegalOperation, AssertionError) as error:
            await self._roll_back(error)
            raise TransactionFailed(f"{type(error).__name__}: {error}") from error

    async def _roll_back(self, error: BaseException) -> None:
        manager = self._producer._txn_manager
        if isinstance(error, TransactionalIdAuthorizationFailed):
            raise TransactionsFenced(
                f"transactional id {self.transactional_id} may no longer be used"
            ) from error
        # The broker did not take a batch, and so takes none behind it, after an abort neither:
        # batches are counted anew with the next epoch.
        broken = isinstance(error, ProducerFenced | OutOfOrderSequenceNumber)
        if broken or manager.is_fatal_error():
            await self._resume(error)
            return
        ended = manager.wait_for_transaction_end()
        if ended.done() and not ended.cancelled():
            ended.exception()  # it is this very error; asyncio complains when nobody looks
        try:
            await self._producer.abort_transaction()
        except (KafkaError, AssertionError):
            await self._resume(error)
            return
        if isinstance(
            error,
            IllegalGenerationError
            | UnknownMemberIdError
            | RebalanceInProgressError
            | MemberRefused,
        ):
            raise OwnershipLost(f"{type(error).__name__}: {error}") from error

    async def _resume(self, error: BaseException) -> None:
        """Go on as this very producer with a new epoch, which rolls back what it left open.

        Raises TransactionsFenced: there is a newer one. TransactionFailed: not now.
        """
        manager = self._producer._txn_manager
        fresh = aiokafka.AIOKafkaProducer(**self._options)
        sender = MemberSender(fresh)
        sender.resume(manager.producer_id, manager.producer_epoch)
        try:
            await asyncio.wait_for(fresh.start(), RESUME_TIMEOUT_S)
        except ProducerFenced as fenced:
            await fresh.stop()
            raise TransactionsFenced(
                f"transactional id {self.transactional_id} is unusable here "
                f"({type(error).__name__}: {error}): does another worker run under the same "
                "worker_id?"
            ) from fenced
        except (KafkaError, TimeoutError) as second:
            await fresh.stop()
            raise TransactionFailed(
                f"the producer cannot go on yet ({type(second).__name__}: {second})"
            ) from error
        broken, self._producer, self._sender = self._producer, fresh, sender
        await broken.stop()

    async def committed(
        self, group_id: str, partitions: Sequence[TopicPartition], *, timeout_s: float
    ) -> dict[TopicPartition, Committed]:
        """The group's stable positions; partitions without one are left out.

        Waits for transactions that are being completed. Raises TransactionFailed when
        ``timeout_s`` is not enough for that, or for a coordinator to be found.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = await self._fetch_offsets(group_id, partitions)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise TransactionFailed(
                    f"the offsets of group {group_id} did not become stable in {timeout_s:.0f} s: "
                    "a transaction of a dead worker ends after its transaction timeout"
                )
            await asyncio.sleep(RETRY_BACKOFF_MS / 1000)

    async def _fetch_offsets(
        self, group_id: str, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, Committed] | None:
        """One try; ``None`` means: not now."""
        client, sender = self._producer.client, self._producer._sender
        try:
            node = await sender._find_coordinator(CoordinationType.GROUP, group_id)
            response = await client.send(
                node, OffsetFetch(group_id, partitions), group=ConnectionGroup.COORDINATION
            )
        except (
            NodeNotReadyError,
            RequestTimedOutError,
            CoordinatorNotAvailableError,
            KafkaConnectionError,
        ):
            sender._coordinator_dead(CoordinationType.GROUP)
            return None
        codes = [response.error_code]
        found: dict[TopicPartition, Committed] = {}
        for topic, entries, _ in response.topics:
            for partition, offset, _, metadata, code, _ in entries:
                codes.append(code)
                if offset >= 0:
                    found[TopicPartition(topic, partition)] = Committed(offset, metadata or "")
        for code in codes:
            if code == UNSTABLE_OFFSET_COMMIT:
                return None
            kind = for_code(code)
            if kind in (CoordinatorNotAvailableError, NotCoordinatorError):
                sender._coordinator_dead(CoordinationType.GROUP)
                return None
            if kind is CoordinatorLoadInProgressError:
                return None
            if code:
                raise TransactionFailed(f"offsets of {group_id}: {kind.__name__}")
        return found
