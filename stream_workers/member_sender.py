"""An aiokafka producer's sender, mended and extended. Knows nothing of what is committed.

It commits offsets with version 3 of TxnOffsetCommit, as a member of its group; it tells the broker
of every rollback; and with version 4 of InitProducerId it goes on as a producer that is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    KafkaError,
    NotCoordinatorError,
    ProducerFenced,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.producer.sender import BaseHandler, InitPIDHandler, Sender
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import TopicPartition

from stream_workers.coordinator_requests import ResumeProducer, TxnOffsetCommit

if TYPE_CHECKING:
    from stream_workers.transactions import GroupMember

INVALID_PRODUCER_EPOCH, PRODUCER_FENCED = 47, 90
FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH, FENCED_INSTANCE_ID = 110, 113, 82
_MEMBER_CODES = (FENCED_MEMBER_EPOCH, STALE_MEMBER_EPOCH, FENCED_INSTANCE_ID)


class MemberRefused(KafkaError):  # type: ignore[misc]
    """The group refused the member with a code that aiokafka has no class for."""


class MemberSender:
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

    def resume(self, producer_id: int, epoch: int) -> None:
        """Ask for this producer's next epoch at the start; refused if another one has its place."""

        async def ask(node_id: int) -> bool:
            asked: bool = await _ResumeHandler(self._sender, producer_id, epoch).do(node_id)
            return asked

        self._sender._do_init_pid = ask

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


class _ResumeHandler(InitPIDHandler):  # type: ignore[misc]
    """As aiokafka's, of a producer that is known already."""

    def __init__(self, sender: Any, producer_id: int, epoch: int) -> None:
        super().__init__(sender)
        self._known = (producer_id, epoch)

    def create_request(self) -> Any:
        manager = self._sender._txn_manager
        return ResumeProducer(
            manager.transactional_id, manager.transaction_timeout_ms, *self._known
        )

    def handle_response(self, response: Any) -> float | None:
        if response.error_code in (INVALID_PRODUCER_EPOCH, PRODUCER_FENCED):
            raise ProducerFenced()
        backoff: float | None = super().handle_response(response)
        return backoff


class _MemberOffsetCommit(BaseHandler):  # type: ignore[misc]
    """As aiokafka's TxnOffsetCommitHandler, with the member's identity and its refusals."""

    group = ConnectionGroup.COORDINATION

    def __init__(self, sender: Any, offsets: Any, member: GroupMember) -> None:
        super().__init__(sender)
        self._offsets = offsets
        self._member = member

    def create_request(self) -> Any:
        manager = self._sender._txn_manager
        return TxnOffsetCommit(
            manager.transactional_id,
            (manager.producer_id, manager.producer_epoch),
            self._member,
            self._offsets,
        )

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
                    refused = kind() if code not in _MEMBER_CODES else MemberRefused(kind.__name__)
                    manager.error_transaction(refused)
                    return None
        return None

    def handle_error(self) -> float:
        """The connection failed: look for the coordinator again."""
        self._sender._coordinator_dead(CoordinationType.GROUP)
        return float(self._default_backoff)
