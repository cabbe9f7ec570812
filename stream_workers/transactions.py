"""Transactions that carry a consumer group's identity, on aiokafka. Knows nothing of requests.

aiokafka 0.14 commits offsets in a transaction with version 0 of TxnOffsetCommit, which names no
group member: a worker that lost its partitions without noticing could still commit, and answer
twice. Version 3 (KIP-447) carries generation and member id, and the broker refuses an outdated
one. OffsetFetch version 7 can ask for stable offsets only: while another worker's transaction is
being completed, the broker says so instead of giving out the offsets from before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiokafka
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    IllegalGenerationError,
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorError,
    ProducerFenced,
    RebalanceInProgressError,
    RequestTimedOutError,
    TransactionalIdAuthorizationFailed,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.producer.sender import BaseHandler, Sender
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from infra.contracts.errors import ConfigurationError, FatalError, RetryableError

RETRY_BACKOFF_MS = 20
UNSTABLE_OFFSET_COMMIT = 88
FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH, FENCED_INSTANCE_ID = 110, 113, 82
PRODUCER_FENCED = 90


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
        self._producer = aiokafka.AIOKafkaProducer(
            transactional_id=transactional_id,
            transaction_timeout_ms=int(timeout_s * 1000),
            # After a commit the next transaction must wait for the markers, milliseconds.
            retry_backoff_ms=RETRY_BACKOFF_MS,
            **client_options,
        )
        self._sender = _MemberSender(self._producer)

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
        await self._producer.stop()

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
            TransactionFailed: a record or the commit was refused; the transaction is rolled back.
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
        if isinstance(error, ProducerFenced) or manager.is_fatal_error():
            raise TransactionsFenced(
                f"transactional id {self.transactional_id} is unusable here "
                f"({type(error).__name__}: {error}): does another worker run under the same "
                "worker_id?"
            ) from error
        ended = manager.wait_for_transaction_end()
        if ended.done() and not ended.cancelled():
            ended.exception()  # it is this very error; asyncio complains when nobody looks
        try:
            await self._producer.abort_transaction()
        except (KafkaError, AssertionError) as second:
            raise TransactionsFenced(f"a transaction could not be rolled back: {second}") from error
        if isinstance(
            error,
            IllegalGenerationError
            | UnknownMemberIdError
            | RebalanceInProgressError
            | _MemberRefused,
        ):
            raise OwnershipLost(f"{type(error).__name__}: {error}") from error

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
                node, _OffsetFetch(group_id, partitions), group=ConnectionGroup.COORDINATION
            )
        except (NodeNotReadyError, RequestTimedOutError, CoordinatorNotAvailableError):
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


class _MemberRefused(KafkaError):  # type: ignore[misc]
    """The group refused the member with a code that aiokafka has no class for."""


class _MemberSender:
    """Makes a producer's sender commit offsets as ``member``, and really roll back.

    aiokafka's transaction manager forgets on an abortable error which partitions belong to the
    transaction. Its rollback then takes the transaction for an empty one and tells the broker
    nothing, and the next commit brings in the records that were to be rolled back.
    """

    def __init__(self, producer: Any) -> None:
        self.member: GroupMember | None = None
        self._sender: Sender = producer._sender
        self._sender._do_txn_offset_commit = self._commit_offsets
        self._manager = producer._txn_manager
        self._manager.error_transaction = self._fail

    def _fail(self, error: BaseException) -> None:
        manager = self._manager
        manager._transition_to(TransactionState.ABORTABLE_ERROR)
        # In doubt a partition counts as added: the rollback must reach the coordinator.
        manager._txn_partitions |= manager._pending_txn_partitions
        manager._pending_txn_partitions.clear()
        for _, _, future in manager._pending_txn_offsets:
            future.set_exception(error)
        manager._pending_txn_offsets.clear()
        manager._transaction_waiter.set_exception(error)

    async def _commit_offsets(self, offsets: Any, group_id: str) -> None:
        if not offsets:
            return
        assert self.member is not None
        node = await self._sender._find_coordinator(CoordinationType.GROUP, group_id)
        await _MemberOffsetCommit(self._sender, offsets, self.member).do(node)


class _MemberOffsetCommit(BaseHandler):  # type: ignore[misc]
    """As aiokafka's TxnOffsetCommitHandler, with the member's identity and its refusals."""

    group = ConnectionGroup.COORDINATION

    def __init__(self, sender: Any, offsets: Any, member: GroupMember) -> None:
        super().__init__(sender)
        self._offsets = offsets
        self._member = member

    def create_request(self) -> Any:
        return _TxnOffsetCommit(self._sender._txn_manager, self._offsets, self._member)

    def handle_response(self, response: Any) -> float | None:
        """Seconds to wait before another try, ``None`` when it is settled."""
        manager = self._sender._txn_manager
        for topic, entries, _ in response.topics:
            for partition, code, _ in entries:
                position = TopicPartition(topic, partition)
                kind = for_code(code)
                if code == 0:
                    manager.offset_committed(
                        position, self._offsets[position].offset, self._member.group_id
                    )
                elif kind in (
                    CoordinatorNotAvailableError,
                    NotCoordinatorError,
                    RequestTimedOutError,
                ):
                    self._sender._coordinator_dead(CoordinationType.GROUP)
                    return float(self._default_backoff)
                elif kind in (CoordinatorLoadInProgressError, UnknownTopicOrPartitionError):
                    return float(self._default_backoff)
                elif kind is InvalidProducerEpoch or code == PRODUCER_FENCED:
                    raise ProducerFenced()
                else:
                    refused = kind() if code not in _MEMBER_CODES else _MemberRefused(kind.__name__)
                    manager.error_transaction(refused)
                    return None
        return None

    def handle_error(self) -> float:
        """The connection failed: look for the coordinator again."""
        self._sender._coordinator_dead(CoordinationType.GROUP)
        return float(self._default_backoff)


_MEMBER_CODES = (FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH, FENCED_INSTANCE_ID)

_TAGS = ("tags", TaggedFields)
_NAME = ("name", CompactString("utf-8"))


def _by_topic(partitions: Mapping[TopicPartition, Any]) -> dict[str, list[tuple[int, Any]]]:
    topics: dict[str, list[tuple[int, Any]]] = {}
    for position, value in sorted(partitions.items()):
        topics.setdefault(position.topic, []).append((position.partition, value))
    return topics


class _TxnOffsetCommitResponse(Response):  # type: ignore[misc]
    API_KEY = 28
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                _NAME,
                (
                    "partitions",
                    CompactArray(("partition_index", Int32), ("error_code", Int16), _TAGS),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _TxnOffsetCommitRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = _TxnOffsetCommitResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("group_id", CompactString("utf-8")),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        ("generation_id", Int32),
        ("member_id", CompactString("utf-8")),
        ("group_instance_id", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                _NAME,
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("committed_offset", Int64),
                        ("committed_leader_epoch", Int32),
                        ("committed_metadata", CompactString("utf-8")),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        _TAGS,
    )


class _TxnOffsetCommit(Request[_TxnOffsetCommitRequest]):  # type: ignore[misc]
    API_KEY = 28

    def __init__(self, manager: Any, offsets: Any, member: GroupMember) -> None:
        self._manager = manager
        self._offsets = offsets
        self._member = member

    def build(self, request_struct_class: Any) -> Any:
        topics: list[Any] = [
            (topic, [(index, stored.offset, -1, stored.metadata, {}) for index, stored in rows], {})
            for topic, rows in _by_topic(self._offsets).items()
        ]
        return request_struct_class(
            self._manager.transactional_id,
            self._member.group_id,
            self._manager.producer_id,
            self._manager.producer_epoch,
            self._member.generation,
            self._member.member_id,
            None,
            topics,
            {},
        )


class _OffsetFetchResponse(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                _NAME,
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("committed_offset", Int64),
                        ("committed_leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        _TAGS,
                    ),
                ),
                _TAGS,
            ),
        ),
        ("error_code", Int16),
        _TAGS,
    )


class _OffsetFetchRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _OffsetFetchResponse
    SCHEMA = Schema(
        ("group_id", CompactString("utf-8")),
        ("topics", CompactArray(_NAME, ("partition_indexes", CompactArray(Int32)), _TAGS)),
        ("require_stable", Boolean),
        _TAGS,
    )


class _OffsetFetch(Request[_OffsetFetchRequest]):  # type: ignore[misc]
    API_KEY = 9

    def __init__(self, group_id: str, partitions: Sequence[TopicPartition]) -> None:
        self._group_id = group_id
        self._partitions = partitions

    def build(self, request_struct_class: Any) -> Any:
        topics = _by_topic(dict.fromkeys(self._partitions))
        named: list[Any] = [
            (topic, [index for index, _ in rows], {}) for topic, rows in topics.items()
        ]
        return request_struct_class(self._group_id, named, True, {})
