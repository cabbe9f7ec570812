"""Two programs that do a worker's Kafka work without being one; sides of ``bench_dispatch``.

``bare``: the least that any worker must do, on aiokafka alone. Fetch, produce one chunk and one
result a record (constant bytes of the size that a worker writes; nothing is decoded), wait until
the broker has them, commit, go on. ``faust``: an agent as Faust's documentation writes them, with
Faust's own defaults: ``async for`` over the topic, decode with msgspec, send chunk and result.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from benchmarks.records import answer_headers, chunk_of, result_of
from infra.contracts.catalogue import CHUNKS, REQUESTS, RESULTS
from infra.contracts.codec import decode, encode
from infra.contracts.events.generation import GenerationRequest
from stream_workers.sink import SOURCE_HEADER

BATCH = 500


async def consume_and_produce(servers: str, prefix: str, group: str) -> None:
    """Until cancelled."""
    import aiokafka

    consumer = aiokafka.AIOKafkaConsumer(
        prefix + REQUESTS.name,
        bootstrap_servers=servers,
        group_id=prefix + group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True
    )
    await producer.start()
    await consumer.start()
    partitions = len(await producer.partitions_for(prefix + CHUNKS.name))
    chunk = result = b""
    chunk_headers: list[tuple[str, bytes]] = []
    result_headers: list[tuple[str, bytes]] = []
    while True:
        fetched = await consumer.getmany(timeout_ms=200, max_records=BATCH)
        pending = []
        for partition, records in fetched.items():
            for record in records:
                if not chunk:
                    request = decode(record.value, GenerationRequest)
                    a, b = chunk_of(request), result_of(request)
                    chunk, result = encode(a), encode(b)
                    origin = f"{REQUESTS.name}/{partition.partition}/{record.offset}"
                    chunk_headers = [*answer_headers(a), (SOURCE_HEADER, origin.encode())]
                    result_headers = answer_headers(b)
                pending.append(
                    await producer.send(
                        prefix + CHUNKS.name,
                        value=chunk,
                        key=record.key,
                        partition=record.offset % partitions,
                        headers=chunk_headers,
                    )
                )
                pending.append(
                    await producer.send(
                        prefix + RESULTS.name,
                        value=result,
                        key=record.key,
                        headers=result_headers,
                    )
                )
        if pending:
            await asyncio.gather(*pending)
            await consumer.commit()


def plain_agent(servers: str, prefix: str, group: str) -> Any:
    """The Faust application; its caller starts it."""
    import faust

    app = faust.App(
        prefix + group,
        broker=[f"aiokafka://{servers}"],
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        web_enabled=False,
    )

    def topic(name: str) -> Any:
        return app.topic(prefix + name, key_type=bytes, value_type=bytes)

    requests, chunks, results = topic(REQUESTS.name), topic(CHUNKS.name), topic(RESULTS.name)

    async def generate(stream: Any) -> None:
        async for value in stream:
            request = decode(value, GenerationRequest)
            key = request.request_id.encode()
            chunk, result = chunk_of(request), result_of(request)
            assert request.reply is not None
            await chunks.send(
                key=key,
                value=encode(chunk),
                partition=request.reply.partition,
                headers=dict(answer_headers(chunk)),
            )
            await results.send(key=key, value=encode(result), headers=dict(answer_headers(result)))

    app.agent(requests, name="generate")(generate)
    return app


async def run_agent(servers: str, prefix: str, group: str) -> None:
    """Until cancelled."""
    app = plain_agent(servers, prefix, group)
    await app.start()
    await app.wait_until_stopped()


@click.command()
@click.argument("kind", type=click.Choice(["bare", "faust"]))
@click.argument("servers")
@click.argument("prefix")
@click.argument("group")
def main(kind: str, servers: str, prefix: str, group: str) -> None:
    """Run one of the two until killed."""
    run = consume_and_produce if kind == "bare" else run_agent
    asyncio.run(run(servers, prefix, group))


if __name__ == "__main__":
    main()
