"""A plain Faust agent around the engine, as Faust's documentation writes one.

The engine is loaded when the application starts. ``concurrency`` is what runs requests side by
side: so many instances of the agent share the stream.
"""

from __future__ import annotations

import os
from typing import Any

import faust

from benchmarks.peers_engine import build, stream


class Request(faust.Record, serializer="json"):
    request_id: str
    prompt: str
    max_tokens: int


class Chunk(faust.Record, serializer="json"):
    request_id: str
    text: str
    tokens: int
    finished: bool


class Application(faust.App):
    engine: Any

    async def on_start(self) -> None:
        await super().on_start()
        self.engine = build(os.environ["PEERS_MODEL"])


PREFIX = os.environ["PEERS_PREFIX"]
app = Application(PREFIX + "workers", broker="kafka://" + os.environ["PEERS_BROKERS"])
requests = app.topic(PREFIX + "requests", value_type=Request)
chunks = app.topic(PREFIX + "chunks", value_type=Chunk)


@app.agent(requests, concurrency=256)
async def answer(events: Any) -> None:
    async for request in events:
        deltas = stream(app.engine, request.request_id, request.prompt, request.max_tokens)
        async for text, tokens, finished in deltas:
            await chunks.send(
                key=request.request_id,
                value=Chunk(
                    request_id=request.request_id, text=text, tokens=tokens, finished=finished
                ),
            )


if __name__ == "__main__":
    app.main()
