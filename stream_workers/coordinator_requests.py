"""Requests to Kafka's coordinators in versions that aiokafka 0.14 does not have.

Their fields are those of Kafka's protocol guide; what is made of the answers is for
``stream_workers.transactions`` and ``stream_workers.member_sender``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
from aiokafka.structs import TopicPartition

_TAGS = ("tags", TaggedFields)
_NAME = ("name", CompactString("utf-8"))


def _by_topic(partitions: Mapping[TopicPartition, Any]) -> dict[str, list[tuple[int, Any]]]:
    topics: dict[str, list[tuple[int, Any]]] = {}
    for position, value in sorted(partitions.items()):
        topics.setdefault(position.topic, []).append((position.partition, value))
    return topics


class TxnOffsetCommitResponse(Response):  # type: ignore[misc]
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


class TxnOffsetCommitRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 28
    API_VERSION = 3
    RESPONSE_TYPE = TxnOffsetCommitResponse
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


class TxnOffsetCommit(Request[TxnOffsetCommitRequest]):  # type: ignore[misc]
    API_KEY = 28

    def __init__(
        self,
        transactional_id: str,
        producer: tuple[int, int],
        member: tuple[str, int, str],
        offsets: Mapping[TopicPartition, Any],
    ) -> None:
        """``producer``: id and epoch. ``member``: group id, generation, member id."""
        self._transactional_id = transactional_id
        self._producer = producer
        self._member = member
        self._offsets = offsets

    def build(self, request_struct_class: Any) -> Any:
        topics: list[Any] = [
            (topic, [(index, stored.offset, -1, stored.metadata, {}) for index, stored in rows], {})
            for topic, rows in _by_topic(self._offsets).items()
        ]
        group_id, generation, member_id = self._member
        return request_struct_class(
            self._transactional_id,
            group_id,
            *self._producer,
            generation,
            member_id,
            None,
            topics,
            {},
        )


class ResumeProducerResponse(Response):  # type: ignore[misc]
    API_KEY = 22
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    )


class ResumeProducerRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 22
    API_VERSION = 4
    RESPONSE_TYPE = ResumeProducerResponse
    SCHEMA = Schema(
        ("transactional_id", CompactString("utf-8")),
        ("transaction_timeout_ms", Int32),
        ("producer_id", Int64),
        ("producer_epoch", Int16),
        _TAGS,
    )


class ResumeProducer(Request[ResumeProducerRequest]):  # type: ignore[misc]
    API_KEY = 22

    def __init__(self, transactional_id: str, timeout_ms: int, producer_id: int, epoch: int):
        self._fields = (transactional_id, timeout_ms, producer_id, epoch)

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(*self._fields, {})


class OffsetFetchResponse(Response):  # type: ignore[misc]
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


class OffsetFetchRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = OffsetFetchResponse
    SCHEMA = Schema(
        ("group_id", CompactString("utf-8")),
        ("topics", CompactArray(_NAME, ("partition_indexes", CompactArray(Int32)), _TAGS)),
        ("require_stable", Boolean),
        _TAGS,
    )


class OffsetFetch(Request[OffsetFetchRequest]):  # type: ignore[misc]
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
