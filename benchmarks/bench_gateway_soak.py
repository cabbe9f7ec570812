"""What the gateway makes of bodies that are none, of other tenants' ids, and of many requests.

Measured on a gateway process in front of Kafka and a worker whose engine is in memory. 10,000
bodies, most of them broken: valid ones with fields of other types, values out of range, cut or
flipped bytes, deep nesting, other encodings, from a fixed seed. No answer may be a 5xx other than
503 and 504. Then every id that one tenant was given is asked for by another one, and by ids that
differ in one letter: nothing may be found. Then 20,000 requests, a half of them streamed, while the
resident memory of the gateway is looked at every 1,000: it is compared over the last 15,000.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import psutil

from benchmarks.gateway_side import Gateway, key_for
from benchmarks.harness import Broken, Report, Target, command
from benchmarks.stage import Stage

BODIES, QUICK_BODIES = 10_000, 1_000
REQUESTS, QUICK_REQUESTS = 20_000, 2_000
WARM_SHARE = 0.25
CONCURRENCY = 32
SEED = 4_242
ALLOWED_5XX = {503, 504}
CHAT = {
    "model": "default",
    "messages": [{"role": "user", "content": "the quick brown fox"}],
    "max_tokens": 4,
}
COMPLETION = {"model": "default", "prompt": "the quick brown fox", "max_tokens": 4}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    1.5,
    -1e308,
    "",
    "x" * 5_000,
    "\x00",
    "\u202e\U0001f600",
    [],
    {},
    [[[[]]]],
    {"type": "json_schema"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}},
    [{"role": "user", "content": None}],
    [{"role": 1, "content": [{"type": "image_url"}]}],
)
FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature"),
    *("top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty", "stream"),
    *("stream_options", "user", "metadata", "response_format", "logprobs", "top_logprobs"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"),
    *("structured_outputs", "background", "timeout_s", "tools", "logit_bias", "unheard_of"),
)


def measure(report: Report) -> None:
    """See the module."""
    bodies = QUICK_BODIES if report.quick else BODIES
    requests = QUICK_REQUESTS if report.quick else REQUESTS
    with Stage() as stage:
        place = stage.deployment("soak")
        place.publish_model()
        report.say("starting the gateway and its worker")
        gateway = Gateway(place, engine="memory")
        rival = key_for(place, "rival")
        report.say(f"{bodies} bodies")
        statuses, ids = asyncio.run(fuzz(gateway, bodies))
        report.figures["statuses"] = {str(status): n for status, n in sorted(statuses.items())}
        bad = sum(
            n for status, n in statuses.items() if status >= 500 and status not in ALLOWED_5XX
        )
        report.ratio(f"5xx other than 503 and 504, of {bodies} bodies", bad, Target("<=", 0.0))
        report.say(f"{len(ids)} ids of another tenant's")
        found = asyncio.run(guess(gateway, rival, ids))
        report.ratio("requests of another tenant found", found, Target("<=", 0.0))
        report.say(f"{requests} requests")
        memory = asyncio.run(soak(gateway, requests, report.say))
        report.figures["memory, MB"] = {str(at): round(mb, 1) for at, mb in memory.items()}
        warm = memory[int(requests * WARM_SHARE)]
        report.ratio(
            f"memory after {requests} requests / after a quarter of them",
            max(memory.values()) / warm,
            Target("<=", 1.05),
        )
        gateway.child.check()


def broken(random_: random.Random) -> tuple[str, bytes]:
    """A path and a body, most often one that is wrong somewhere."""
    path, document = random_.choice(
        [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
    )
    changed: dict[str, Any] = dict(document)
    for _ in range(random_.randint(0, 3)):
        changed[random_.choice(FIELDS)] = random_.choice(VALUES)
    if random_.random() < 0.2:
        changed.pop(random_.choice(list(changed)))
    body = json.dumps(changed).encode()
    kind = random_.random()
    if kind < 0.1:
        body = body[: random_.randrange(len(body))]
    elif kind < 0.2:
        spoilt = bytearray(body)
        for _ in range(random_.randint(1, 8)):
            spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
        body = bytes(spoilt)
    elif kind < 0.23:
        depth = random_.choice([30, 300, 100_000])
        body = b'{"model":' + b"[" * depth + b"]" * depth + b"}"
    elif kind < 0.25:
        body = json.dumps(changed).encode(random_.choice(["utf-16", "utf-32"]))
    return path, body


async def fuzz(gateway: Gateway, count: int) -> tuple[Counter[int], list[str]]:
    """Statuses, and the ids of those that were answered."""
    random_ = random.Random(SEED)
    statuses: Counter[int] = Counter()
    ids: list[str] = []

    async def one(session: aiohttp.ClientSession) -> None:
        path, body = broken(random_)
        async with session.post(gateway.url + path, data=body) as answer:
            await answer.read()
            statuses[answer.status] += 1
            if answer.status < 300:
                ids.append(answer.headers["X-Request-Id"])

    headers = {**gateway.headers, "Content-Type": "application/json"}
    await _many(count, headers, one)
    return statuses, ids


async def guess(gateway: Gateway, key: str, ids: list[str]) -> int:
    """How many of another tenant's requests are found."""
    random_ = random.Random(SEED)
    sample = random_.sample(ids, min(len(ids), 500))
    found = 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal found
        text = sample.pop()
        place = random_.randrange(10, len(text))
        near = text[:place] + random_.choice("abcdefghijklmnopqrstuvwxyz234567") + text[place + 1 :]
        for asked in (text, near):
            async with session.get(f"{gateway.url}/v1/requests/{asked}") as answer:
                found += answer.status != 404

    await _many(len(sample), {"Authorization": f"Bearer {key}"}, one)
    return found


async def soak(gateway: Gateway, count: int, say: Callable[[str], None]) -> dict[int, float]:
    """Resident memory, MB, by the number of requests that were answered."""
    process = psutil.Process(gateway.child.pid)
    memory: dict[int, float] = {}
    done = 0

    async def one(session: aiohttp.ClientSession) -> None:
        nonlocal done
        body: Mapping[str, Any] = {**COMPLETION, "stream": done % 2 == 0}
        async with session.post(f"{gateway.url}/v1/completions", json=body) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise Broken(f"HTTP {answer.status}: {text[:300]}")
        done += 1
        if done % (count // 20) == 0:
            memory[done] = process.memory_info().rss / 1e6
            say(f"{done} requests: {memory[done]:.0f} MB")

    await _many(count, gateway.headers, one)
    return memory


async def _many(count: int, headers: Mapping[str, str], one: Callable[..., Any]) -> None:
    left = count

    async def caller(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one(session)

    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2.0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await asyncio.gather(*(caller(session) for _ in range(CONCURRENCY)))


main = command(measure, name="bench_gateway_soak", description=__doc__)

if __name__ == "__main__":
    main()
