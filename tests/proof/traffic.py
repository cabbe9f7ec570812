"""Mixed traffic on a platform until SIGTERM, by librdkafka and plain HTTP, from a seed.

    python -m tests.proof.traffic SERVERS PREFIX LEDGER --rate 4 --seed 1 --http URL --key KEY

Requests (a part of them batch, a part over HTTP, half of those streamed), cancellations, feedback
and malformed records. The ledger gets a JSON line for each that was acknowledged: by the brokers
or by an answer of HTTP. On SIGTERM nothing new is sent; it ends once all that was sent is
acknowledged or has failed, and the last line counts what was sent and what failed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import threading
import time
import uuid
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import confluent_kafka
import httpx

SCHEMA_VERSION = "1.0"
GIVE_UP_S = 180.0
REMEMBERED = 60
"""Answers that feedback may be about: the last ones."""
SENTENCES = ("The module reads files.", "A class holds values.", "It returns a list of names.")
SHARES = {
    "interactive": 50,
    "batch": 8,
    "http": 10,
    "cancel": 5,
    "malformed": 2,
    "feedback": 25,
}
MALFORMED = (
    b"",
    b"\xff\xfe\x00",
    b"[]",
    b'{"type": "GenerationRequest"',
    b'{"type": "GenerationRequest", "request_id": 7}',
    b'{"type": "Nothing", "request_id": "x"}',
    b'{"type": "GenerationRequest", "schema_version": "99.0", "request_id": "x"}',
)


class Traffic:
    """What is sent is drawn from ``seed``; when it is, follows ``rate`` (a second)."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._draw = random.Random(options.seed)
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._ledger = Path(options.ledger)
        self._answered: deque[str] = deque(maxlen=REMEMBERED)
        self._running: deque[str] = deque(maxlen=20)
        self.counts: Counter[str] = Counter()
        self._producer = confluent_kafka.Producer(
            {
                "bootstrap.servers": options.servers,
                "enable.idempotence": True,
                # With five, a record was once reported as delivered (without an offset, as a
                # duplicate is) that no log had, after its leader's disk had filled.
                "max.in.flight": 1,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "delivery.timeout.ms": int(GIVE_UP_S * 1000),
            }
        )

    def stop(self, *_: object) -> None:
        self._stop.set()

    def run(self) -> None:
        """Tells of its beginning and end in the ledger; SIGTERM is heeded from the first on."""
        self._write({"kind": "begin"})
        kinds, weights = list(SHARES), list(SHARES.values())
        if self._options.http is None:
            weights[kinds.index("http")] = 0
        with ThreadPoolExecutor(8) as pool, httpx.Client(timeout=GIVE_UP_S) as client:
            while not self._stop.wait(self._draw.expovariate(self._options.rate)):
                kind = self._draw.choices(kinds, weights)[0]
                if kind == "http":
                    body = self._completion()
                    pool.submit(self._call, client, body, self._draw.random() < 0.5)
                else:
                    getattr(self, f"_send_{kind}")()
                self._producer.poll(0)
            self._producer.flush(GIVE_UP_S)
        self._write({"kind": "end", "counts": dict(self.counts)})

    def _id(self) -> str:
        return str(uuid.UUID(int=self._draw.getrandbits(128), version=4))

    def _sampling(self) -> dict[str, Any]:
        return {
            "max_tokens": self._draw.randint(1, self._options.max_tokens),
            "temperature": 0.7,
            "ignore_eos": True,
        }

    def _prompt(self) -> str:
        return " ".join(self._draw.choice(SENTENCES) for _ in range(self._draw.randint(1, 4)))

    def _send_interactive(self, topic: str = "generation.requests") -> None:
        request_id = self._id()
        event = {
            "type": "GenerationRequest",
            "request_id": request_id,
            "submit_id": self._id(),
            "prompt": self._prompt(),
            "sampling": self._sampling(),
            "user": f"user-{self._draw.randrange(50)}",
        }
        self._running.append(request_id)
        self._send(topic, request_id, event, {"kind": "request", "id": request_id})

    def _send_batch(self) -> None:
        self._send_interactive("generation.requests.batch")

    def _send_cancel(self) -> None:
        if self._running:
            request_id = self._draw.choice(self._running)
            event = {"type": "GenerationCancellation", "request_id": request_id}
            self._send("generation.cancellations", request_id, event, {"kind": "cancel"})

    def _send_malformed(self) -> None:
        value = self._draw.choice(MALFORMED)
        self._send("generation.requests", self._id(), value, {"kind": "malformed"})

    def _send_feedback(self) -> None:
        if not self._answered:
            return
        request_id, word = self._draw.choice(self._answered), self._id()
        event: dict[str, Any] = {
            "type": "FeedbackReceived",
            "feedback_id": word,
            "request_id": request_id,
            "principal": f"person-{self._draw.randrange(1_000)}",
        }
        if self._draw.random() < 0.5:
            event["rating"] = self._draw.choice(("up", "down"))
        else:
            event["edited_text"] = f" {self._draw.choice(SENTENCES)} {self._draw.randrange(1_000)}"
        line = {"kind": "feedback", "id": word, "request": request_id}
        self._send("feedback.events", request_id, event, line)

    def _send(
        self, topic: str, key: str, event: dict[str, Any] | bytes, line: dict[str, Any]
    ) -> None:
        kind = line["kind"]
        if isinstance(event, bytes):
            value = event
        else:
            event |= {
                "schema_version": SCHEMA_VERSION,
                "created_at_ms": time.time_ns() // 1_000_000,
            }
            value = json.dumps(event).encode()

        def delivered(error: confluent_kafka.KafkaError | None, message: Any) -> None:
            if error is not None:
                self.counts[f"{kind} failed: {error.name()}"] += 1
                return
            if kind == "request":
                self._answered.append(key)
            place = [topic, message.partition(), message.offset()]
            self._write({**line, "place": place})

        self.counts[kind] += 1
        headers = {
            "ce_specversion": "1.0",
            "ce_id": self._id(),
            "ce_type": f"feedloom.{event['type'] if isinstance(event, dict) else 'Broken'}",
            "ce_source": "traffic",
            "content-type": "application/json",
        }
        self._producer.produce(
            self._options.prefix + topic,
            key=key.encode(),
            value=value,
            headers={name: text.encode() for name, text in headers.items()},
            on_delivery=delivered,
        )

    def _completion(self) -> dict[str, Any]:
        return {
            "model": "default",
            "prompt": self._prompt(),
            "max_tokens": self._draw.randint(1, self._options.max_tokens),
            "user": f"user-{self._draw.randrange(50)}",
        }

    def _call(self, client: httpx.Client, body: dict[str, Any], stream: bool) -> None:
        self._count("http")
        headers = {"Authorization": f"Bearer {self._options.key}"}
        try:
            answer = client.post(
                f"{self._options.http}/v1/completions",
                json={**body, "stream": stream},
                headers=headers,
            )
        except httpx.HTTPError as error:
            self._count(f"http failed: {type(error).__name__}")
            return
        if answer.status_code != 200:
            self._count(f"http failed: {answer.status_code}")
            return
        if not stream:
            self._write({"kind": "http", "id": answer.json()["id"]})
            return
        events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        if events[-1:] != ["[DONE]"]:
            self._count("http failed: a stream without its end")
            return
        self._write({"kind": "http", "id": json.loads(events[0])["id"]})

    def _count(self, what: str) -> None:
        with self._writing:
            self.counts[what] += 1

    def _write(self, line: dict[str, Any]) -> None:
        with self._writing, self._ledger.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("servers")
    parser.add_argument("prefix")
    parser.add_argument("ledger")
    parser.add_argument("--rate", type=float, default=4.0, help="actions a second, on average")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--http", help="the gateway's address; without it none goes over HTTP")
    parser.add_argument("--key", help="an API key")
    traffic = Traffic(parser.parse_args())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, traffic.stop)
    traffic.run()


if __name__ == "__main__":
    main()
