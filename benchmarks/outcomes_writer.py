"""The program that ends requests on a schedule, by one of the ways in ``ends``; may be killed.

It joins the group for its identity alone: no request record is read. On a start it goes on from
what is committed, and, for the table, from what is marked.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiokafka
import click
import msgspec
import uvloop
from aiokafka.structs import TopicPartition as BrokerPartition

from benchmarks.ends import (
    PARTITIONS,
    TABLE,
    Books,
    Ends,
    TableEnds,
    TransactionEnds,
    request_id,
)
from benchmarks.records import answer_headers, request_of, result_of
from benchmarks.rpc import keep_stdout, serve
from infra.contracts.catalogue import REQUESTS, RESULTS
from infra.contracts.codec import encode
from stream_workers.offsets import Position, decode_position
from stream_workers.transactions import Committed, GroupMember, Outgoing, TransactionalProducer

GROUP = "outcomes"
AHEAD = 4_000
"""Ended and not committed, at most: at saturation the schedule waits here."""


async def schedule(
    ends: Ends, books: Books, prefix: str, command: Mapping[str, Any]
) -> dict[str, Any]:
    """End requests at ``rate_per_s`` (0: as fast as they are committed), each after a while.

    ``first`` and ``count`` name the requests. What ended is put in an order of its own within
    every 50, as answers of different lengths end. The result's ``worker_id`` carries the moment
    (monotonic, seconds) at which its generation ended.
    """
    rate, first, count = command["rate_per_s"], command["first"], command["count"]
    template = result_of(request_of(0))
    numbers = [number for number in range(first, first + count) if books.take(number)]
    draw = random.Random(first)
    blocks = [numbers[at : at + 50] for at in range(0, len(numbers), 50)]
    for block in blocks:
        draw.shuffle(block)
    order = [number for block in blocks for number in block]
    started = time.monotonic()
    for index, number in enumerate(order):
        if rate:
            await asyncio.sleep(max(0.0, started + index / rate - time.monotonic()))
        elif index % 20 == 0:
            await asyncio.sleep(0)
            while ends.waiting >= AHEAD:  # noqa: ASYNC110 - a benchmark's back-pressure
                await asyncio.sleep(0.001)
        result = msgspec.structs.replace(
            template, request_id=request_id(number), worker_id=f"{time.monotonic():.6f}"
        )
        record = Outgoing(
            prefix + RESULTS.name,
            result.request_id.encode(),
            encode(result),
            answer_headers(result),
        )
        ends.put(number, record)
    while len(ends.done) < len(order) or ends.waiting:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.001)
    seconds = time.monotonic() - started
    ends.done.clear()
    return {"ended": len(order), "seconds": seconds}


async def positions(consumer: Any, prefix: str) -> dict[int, Position]:
    """Where the group stands, for the table: plain offsets."""
    stored: dict[int, Position] = {}
    for number in range(PARTITIONS):
        offset = await consumer.committed(BrokerPartition(prefix + REQUESTS.name, number))
        stored[number] = Position(offset or 0)
    return stored


async def marked(servers: str, prefix: str) -> set[int]:
    """Every request that the table knows."""
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [BrokerPartition(prefix + TABLE, number) for number in range(PARTITIONS)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found: set[int] = set()
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                found.update(int(record.value) for record in records)
        return found
    finally:
        await consumer.stop()


async def open_ends(
    kind: str, servers: str, prefix: str
) -> tuple[Ends, Books, Callable[[], Awaitable[None]]]:
    """A member of the group, its positions restored, and the loop that commits."""
    group = prefix + GROUP
    consumer = aiokafka.AIOKafkaConsumer(
        prefix + REQUESTS.name,
        bootstrap_servers=servers,
        group_id=group,
        enable_auto_commit=False,
        session_timeout_ms=6_000,
    )
    await consumer.start()
    while len(consumer.assignment()) < PARTITIONS:  # noqa: ASYNC110 - the dead member's time-out
        await asyncio.sleep(0.05)
    if kind == "transaction":
        coordinator = consumer._coordinator
        transactional = TransactionalProducer(
            transactional_id=f"{group}.writer",
            timeout_s=10,
            client_options={"bootstrap_servers": servers},
        )
        await transactional.start()
        every = [BrokerPartition(prefix + REQUESTS.name, number) for number in range(PARTITIONS)]
        found = await transactional.committed(group, every, timeout_s=30)
        stored = {
            each.partition: decode_position(*found.get(each, Committed(0, ""))) for each in every
        }
        books = Books(stored)
        ends = TransactionEnds(transactional, books, prefix)
        ends.log.resume(GroupMember(group, coordinator.generation, coordinator.member_id))
        return ends, books, ends.log.run
    known = await marked(servers, prefix)
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True
    )
    await producer.start()
    books = Books(await positions(consumer, prefix))
    table = TableEnds(producer, consumer, books, prefix, known)
    return table, books, table.run


async def _main(kind: str, servers: str, prefix: str) -> None:
    ends, books, run = await open_ends(kind, servers, prefix)
    committing = asyncio.ensure_future(run())

    async def handle(command: Mapping[str, Any]) -> Any:
        work = asyncio.ensure_future(schedule(ends, books, prefix, command))
        await asyncio.wait({work, committing}, return_when=asyncio.FIRST_COMPLETED)
        if committing.done():
            committing.result()
        return await work

    await serve(handle)


@click.command()
@click.argument("kind", type=click.Choice(["transaction", "table"]))
@click.argument("servers")
@click.argument("prefix")
def main(kind: str, servers: str, prefix: str) -> None:
    """Answer commands (``rate_per_s``, ``first``, ``count``) until the input ends."""
    keep_stdout()
    uvloop.run(_main(kind, servers, prefix))


if __name__ == "__main__":
    main()
