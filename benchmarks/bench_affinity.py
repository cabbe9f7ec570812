"""Prefix-cache hit rate of chat-like traffic: conversations kept together, over round-robin.

Measured: conversations of several turns through the platform with two vLLM workers. Each turn's
prompt is the whole conversation so far, and a conversation's next turn follows its last answer at
once. The hit rate is the share of prompt tokens that the engine found in its prefix cache, as the
results say, over all turns but the first. `affinity`: the SDK's `affinity_key` is the
conversation. `round-robin`: requests go to the partitions in turn. Both sides have the same
conversations in the same order, each with an opening of its own, so that neither finds what the
other left. The KV cache of one worker holds a little more than half of all conversations: a fleet
whose workers each see every conversation needs as many times the memory. Two engines share two
cores here, so latencies are given for comparison only.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import Broken, Report, command, table
from benchmarks.load import prompts
from benchmarks.models import embedded_model
from benchmarks.stage import Deployment, Stage
from benchmarks.stats import paired_ratio, percentile, spread
from benchmarks.turns import order_of
from infra.contracts.catalogue import REQUESTS
from infra.contracts.events.generation import GenerationResult, SamplingParameters
from producers.affinity import home_partition
from producers.aio import AsyncGenerationClient

WORKERS = 2
CONVERSATIONS, QUICK_CONVERSATIONS = 32, 16
TURNS = 6
SAID_CHARACTERS = 90
ANSWER_TOKENS = 24
ANSWER = SamplingParameters(max_tokens=ANSWER_TOKENS, ignore_eos=True)
TOKENS_A_CONVERSATION = 448
"""What a conversation takes at its end, in whole blocks; the embedded model's context is 512."""
SHARE_HELD = 0.6
"""Of all conversations, in one worker's KV cache."""
TIMEOUT_S = 180.0

Key = Callable[[str], str]


def measure(report: Report) -> None:
    """See the module."""
    rounds = 1 if report.quick else 3
    conversations = QUICK_CONVERSATIONS if report.quick else CONVERSATIONS
    model = embedded_model()
    kv_tokens = int(SHARE_HELD * conversations * TOKENS_A_CONVERSATION)
    rates: dict[str, list[float]] = {"affinity": [], "round-robin": []}
    ttfts: dict[str, list[float]] = {"affinity": [], "round-robin": []}
    with Stage() as stage:
        place = stage.deployment("affinity")
        place.publish_model(model)
        report.say(f"starting {WORKERS} workers with room for {kv_tokens} tokens each")
        for _ in range(WORKERS):
            place.worker(
                engine="vllm",
                pin_cores=False,
                kv_cache_gb=kv_tokens * kv_bytes_per_token(model) / 1024**3,
            )
        partitions = len(place.bus.end_offsets(REQUESTS.name))
        for number in range(rounds):
            keys: dict[str, Key] = {
                "affinity": lambda conversation: conversation,
                "round-robin": in_turn(partitions),
            }
            for name in order_of(keys, number):
                results = asyncio.run(
                    converse(place, f"{name}, round {number}", conversations, keys[name])
                )
                hit = sum(result.cached_tokens for result in results)
                rates[name].append(hit / sum(result.prompt_tokens for result in results))
                ttfts[name].append(
                    percentile([result.timings.ttft_ms or 0.0 for result in results], 0.5)
                )
                report.say(
                    f"round {number + 1}/{rounds} {name}: {100 * rates[name][-1]:.1f}% of the "
                    f"prompts' tokens were cached, TTFT p50 {ttfts[name][-1]:.0f} ms"
                )
    for name, found in rates.items():
        report.ratio(f"prefix-cache hit rate, {name}", median(found))
    report.ratio(
        "hit rate, affinity / round-robin", paired_ratio(rates["affinity"], rates["round-robin"])
    )
    report.figures = {
        "workers": WORKERS,
        "conversations": conversations,
        "turns": TURNS,
        "kv_tokens_a_worker": kv_tokens,
        **{
            name: {"hit_rate": spread(rates[name]), "ttft_p50_ms": spread(ttfts[name])}
            for name in rates
        },
    }
    table(
        "later turns",
        {"": "left", "tokens found cached": "right", "worker's TTFT p50 ms": "right"},
        [
            [name, f"{100 * median(rates[name]):.1f}%", f"{median(ttfts[name]):.0f}"]
            for name in rates
        ],
    )


def kv_bytes_per_token(model: Path) -> int:
    """Bytes of keys and values that a token takes, by the model's configuration."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text("utf-8"))
    heads = config.get("num_key_value_heads", config["num_attention_heads"])
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    size = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
    return int(2 * config["num_hidden_layers"] * heads * width * size)


def in_turn(partitions: int) -> Key:
    """Keys whose partitions are 0, 1, 2 ... and 0 again, whatever the conversation."""
    of_partition: dict[int, str] = {}
    for number in count():
        of_partition.setdefault(home_partition(f"turn-{number}".encode(), partitions), str(number))
        if len(of_partition) == partitions:
            break
    turns = count()
    return lambda conversation: f"turn-{of_partition[next(turns) % partitions]}"


async def converse(
    place: Deployment, title: str, conversations: int, key: Key
) -> list[GenerationResult]:
    """Hold all conversations at once; the results of every turn but the first."""
    texts = prompts()
    results: list[GenerationResult] = []

    async def hold(client: AsyncGenerationClient, number: int) -> None:
        name = f"{title}, conversation {number}"
        history = f"{name}.\n"
        for turn in range(TURNS):
            said = texts[(number * TURNS + turn) % len(texts)][:SAID_CHARACTERS]
            history += f"{said}\n"
            handle = await client.submit(history, sampling=ANSWER, affinity_key=key(name))
            result = await handle.result(TIMEOUT_S)
            if result.error is not None or result.output_tokens != ANSWER_TOKENS:
                raise Broken(f"{name}, turn {turn}: {result.finish_reason} {result.error}")
            history += f"{result.text}\n"
            if turn:
                results.append(result)

    async with (
        AsyncGenerationClient(place.bus, source="benchmark") as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(conversations):
            group.create_task(hold(client, number))
    return results


main = command(measure, name="bench_affinity", description=__doc__)

if __name__ == "__main__":
    main()
