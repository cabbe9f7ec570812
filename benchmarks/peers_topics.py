"""A client of the FastStream and Faust workers: puts the answers that share a topic back together.

Neither library has one. It reads every partition of the chunks, since any may hold an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Self
from uuid import uuid4

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


class Request(msgspec.Struct):
    request_id: str
    prompt: str
    max_tokens: int


class Chunk(msgspec.Struct):
    request_id: str
    text: str
    tokens: int
    finished: bool


class TopicClient:
    """A context manager in one event loop."""

    def __init__(self, brokers: str, prefix: str) -> None:
        self._requests = prefix + "requests"
        self._producer = AIOKafkaProducer(bootstrap_servers=brokers)
        self._consumer = AIOKafkaConsumer(prefix + "chunks", bootstrap_servers=brokers)
        self._open: dict[str, asyncio.Queue[Chunk]] = {}

    async def __aenter__(self) -> Self:
        await self._producer.start()
        await self._consumer.start()
        # The end of the topic is looked up at the first read, which may come after an answer.
        for partition in self._consumer.assignment():
            await self._consumer.position(partition)
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def stream(self, prompt: str, max_tokens: int) -> AsyncIterator[Chunk]:
        request = Request(uuid4().hex, prompt, max_tokens)
        arrived = self._open[request.request_id] = asyncio.Queue()
        try:
            await self._producer.send(
                self._requests,
                msgspec.json.encode(request),
                key=request.request_id.encode(),
            )
            while True:
                chunk = await arrived.get()
                yield chunk
                if chunk.finished:
                    return
        finally:
            del self._open[request.request_id]

    async def _read(self) -> None:
        decoder = msgspec.json.Decoder(Chunk)
        async for record in self._consumer:
            chunk = decoder.decode(record.value)
            if chunk.request_id in self._open:
                self._open[chunk.request_id].put_nowait(chunk)
