"""What must hold of a platform at rest, whatever happened to it: each broken rule is a line.

Told from its topics and from a ledger of what the brokers acknowledged to those who sent it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.proof.journal import REQUEST_TOPICS, Place, Seen, newest

Records = Mapping[str, Sequence[Seen]]

WHOLE = {"stop", "length"}
SHOWN = 5


@dataclass(kw_only=True)
class Ledger:
    """What was acknowledged: ids of requests, of feedback with its request, malformed records."""

    requests: set[str] = field(default_factory=set)
    feedback: dict[str, str] = field(default_factory=dict)
    malformed: set[Place] = field(default_factory=set)


def broken(records: Records, ledger: Ledger) -> list[str]:
    """All rules that the topics alone can tell of."""
    return [
        *requests_are_answered_once(records, ledger),
        *streams_say_what_results_say(records),
        *malformed_records_are_kept(records, ledger),
        *feedback_becomes_examples(records, ledger),
        *examples_are_trained_on_once(records),
    ]


def requests_are_answered_once(records: Records, ledger: Ledger) -> list[str]:
    """Every request on a topic has one final result, and each acknowledged one is on a topic."""
    asked = {
        record.event["request_id"]
        for topic in REQUEST_TOPICS
        for record in records[topic]
        if record.event is not None and "request_id" in record.event
    }
    finals = Counter(
        record.event["request_id"] for record in records["generation.results"] if record.event
    )
    refused = {
        record.event["request_id"]
        for topic in REQUEST_TOPICS
        for record in records[f"{topic}.dlq"]
        if record.event is not None and "request_id" in record.event
    }
    return [
        *_line("acknowledged requests are on no topic", ledger.requests - asked),
        *_line("requests have no result", asked - finals.keys() - refused),
        *_line("requests have several results", (one for one, n in finals.items() if n > 1)),
        *_line("results answer no request", finals.keys() - asked),
    ]


def streams_say_what_results_say(records: Records) -> list[str]:
    """The chunks of an answer, put together as the topic's reference says, are its result."""
    chunks: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records["generation.chunks"]:
        if record.event is not None and record.event.get("index", 0) == 0:
            chunks[record.event["request_id"]].append(record.event)
    differing = []
    for record in records["generation.results"]:
        result = record.event
        if result is None or result["finish_reason"] not in WHOLE or result["error"] is not None:
            continue
        text = streamed(chunks[result["request_id"]])
        if text != result["text"]:
            differing.append(f"{result['request_id']}: {text!r} is not {result['text']!r}")
    return _line("streams differ from their results", differing)


def streamed(chunks: Iterable[Mapping[str, Any]]) -> str | None:
    """The text of one completion. ``None`` where a token is missing or the end is.

    Runs are ordered by (epoch, attempt). One overrides what older ones said from its first token
    on. Within a run, chunks are numbered from 0; a repeated number is a repeated record.
    """
    runs: dict[tuple[int, int], dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for chunk in chunks:
        runs[chunk.get("epoch", 0), chunk["attempt"]].setdefault(chunk["seq"], chunk)
    kept: list[Mapping[str, Any]] = []
    for _, run in sorted(runs.items()):
        ordered = [run[seq] for seq in sorted(run)]
        if [chunk["seq"] for chunk in ordered] != list(range(len(ordered))):
            return None
        begin = ordered[0]["first_token"]
        kept = [chunk for chunk in kept if chunk["first_token"] < begin] + ordered
    place = 0
    for chunk in kept:
        if chunk["first_token"] != place:
            return None
        place += len(chunk["token_ids"])
    return "".join(chunk["text"] for chunk in kept) if kept and kept[-1]["final"] else None


def malformed_records_are_kept(records: Records, ledger: Ledger) -> list[str]:
    """Each is among the dead letters, once, with where it came from."""
    head = "__streams.errors."
    kept = Counter(
        (
            topic,
            int(record.headers[f"{head}partition"]),
            int(record.headers[f"{head}offset"]),
        )
        for topic in REQUEST_TOPICS
        for record in records[f"{topic}.dlq"]
    )
    return [
        *_line("malformed records are no dead letters", map(str, ledger.malformed - kept.keys())),
        *_line("dead letters are there twice", (str(one) for one, n in kept.items() if n > 1)),
    ]


def feedback_becomes_examples(records: Records, ledger: Ledger) -> list[str]:
    """Each acknowledged word on an answer is in the newest example of that answer."""
    on_topic = {
        record.event["feedback_id"]
        for record in records["feedback.events"]
        if record.event is not None and "feedback_id" in record.event
    }
    answered = {
        record.event["request_id"]
        for record in records["generation.results"]
        if record.event is not None and record.event["finish_reason"] != "error"
    }
    forgotten = {record.key for record in records["feedback.forgotten"]}
    examples = newest(records["feedback.examples"])

    def joined(word: str, request: str) -> bool:
        example = examples.get(request)
        return example is not None and word in example["feedback_ids"]

    return [
        *_line("acknowledged feedback is on no topic", ledger.feedback.keys() - on_topic),
        *_line(
            "feedback is in no example",
            (
                word
                for word, request in ledger.feedback.items()
                if request in answered - forgotten and not joined(word, request)
            ),
        ),
    ]


def examples_are_trained_on_once(records: Records) -> list[str]:
    """What a version and its ancestors learnt from is, of each partition, all of its first part.

    Nothing twice, and nothing left out but what versions learnt from that the gate refused. What
    comes later waits for the next round, or again, once a version serves no more.
    """
    versions = {
        (one["model"], one["version"]): one
        for one in newest(records["model.registry"]).values()
        if one is not None
    }
    refused = [
        one for one in versions.values() if one["gate"] is not None and not one["gate"]["passed"]
    ]
    wrong = []
    for (model, version), one in versions.items():
        line, ancestor = [one], one["lineage"]["parent"]
        while ancestor is not None:
            found = versions[model, ancestor.rpartition("@")[2]]
            line.append(found)
            ancestor = found["lineage"]["parent"]
        own = _spans(line)
        others = _spans(other for other in refused if other["model"] == model)
        for partition, spans in own.items():
            learnt = sorted(spans)
            for (_, end), (start, _) in pairwise([(0, 0), *learnt]):
                if start < end or not _covered(end, start, others.get(partition, set())):
                    wrong.append(f"{version} of {model} in {partition}: {end} to {start}")
    return _line("feedback was left out of a lineage or is in it twice", wrong)


def _spans(versions: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], set[tuple[int, int]]]:
    found: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
    for version in versions:
        for span in version["lineage"]["feedback"]:
            if span["start"] != span["end"]:
                found[span["topic"], span["partition"]].add((span["start"], span["end"]))
    return found


def _covered(start: int, end: int, spans: Iterable[tuple[int, int]]) -> bool:
    for low, high in sorted(spans):
        if low <= start < high:
            start = high
    return start >= end


def registry_is_one(records: Records, model: str, views: Mapping[str, str | None]) -> list[str]:
    """Every reader serves what the topic says is stable. ``views``: by reader."""
    rollout = newest(records["model.rollouts"]).get(model)
    stable = None if rollout is None else rollout["stable"]
    return [
        f"{reader} has {version} of {model}, the topic says {stable}"
        for reader, version in views.items()
        if version != stable
    ]


def serving(records: Records, model: str, workers: Iterable[str]) -> dict[str, str | None]:
    """What workers say that they serve."""
    said = newest(records["platform.workers"])
    return {
        worker: ((said.get(worker) or {}).get("versions") or {}).get(model) for worker in workers
    }


def _line(what: str, which: Iterable[str]) -> list[str]:
    found = sorted(which)
    if not found:
        return []
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return [f"{len(found)} {what}: {', '.join(found[:SHOWN])}{more}"]
