"""A FastStream worker around the engine, as FastStream's documentation writes one.

The engine is loaded in ``on_startup``. ``max_workers`` is what runs requests side by side; it goes
with FastStream's default acknowledgement, which commits a request before it is answered.
"""

from __future__ import annotations

import os
from typing import Any

import uvloop
from faststream import FastStream
from faststream.kafka import KafkaBroker
from pydantic import BaseModel

from benchmarks.peers_engine import build, stream


class Request(BaseModel):
    request_id: str
    prompt: str
    max_tokens: int


class Chunk(BaseModel):
    request_id: str
    text: str
    tokens: int
    finished: bool


PREFIX = os.environ["PEERS_PREFIX"]
broker = KafkaBroker(os.environ["PEERS_BROKERS"], logger=None)
app = FastStream(broker)
chunks = broker.publisher(PREFIX + "chunks")
engine: Any = None


@app.on_startup
async def load() -> None:
    global engine
    engine = build(os.environ["PEERS_MODEL"])


@broker.subscriber(
    PREFIX + "requests",
    group_id=PREFIX + "workers",
    auto_offset_reset="earliest",
    max_workers=256,
)
async def answer(request: Request) -> None:
    deltas = stream(engine, request.request_id, request.prompt, request.max_tokens)
    async for text, tokens, finished in deltas:
        await chunks.publish(
            Chunk(request_id=request.request_id, text=text, tokens=tokens, finished=finished),
            key=request.request_id.encode(),
        )


if __name__ == "__main__":
    uvloop.run(app.run())
