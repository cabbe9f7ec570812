"""Dead letters as the console shows and settles them.

What a letter holds is a person's text: it is given out one letter at a time, when asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import msgspec
from pydantic import Field

from infra.contracts.bus import Record
from infra.contracts.dead_letters import TOPICS, Letter, LetterId, Selection
from infra.kafka.dead_letters import DeadLetters
from producers.gateway.bodies import Body, Name
from producers.gateway.console.rollout import Reason

LISTED = 500
SHOWN_BYTES = 64 * 1024
HEX_BYTES = 1024


class LettersBody(Body):
    """``again``: replay what was replayed or dropped before, too."""

    ids: Annotated[list[Name], Field(min_length=1, max_length=LISTED)]
    reason: Reason
    again: bool = False


def listed(dead_letters: DeadLetters) -> dict[str, Any]:
    """Counts by source topic, and the newest letters. Raises DeadLettersUnreadable."""
    found = dead_letters.letters(list(TOPICS))
    counts = {topic: {"open": 0, "replayed": 0, "dropped": 0} for topic in TOPICS}
    for letter in found:
        counts[letter.id.topic][letter.state] += 1
    newest = sorted(found, key=lambda letter: (letter.state != "open", -letter.at_ms))
    return {
        "topics": [{"topic": topic, **count} for topic, count in counts.items()],
        "letters": [_summary(letter) for letter in newest[:LISTED]],
        "left_out": max(0, len(found) - LISTED),
    }


def shown(dead_letters: DeadLetters, text: str) -> dict[str, Any]:
    """All of one letter, its content too. Raises DeadLetterRefused."""
    selection = Selection(ids=(LetterId.parse(text),), again=True)
    (letter,) = selection.pick(dead_letters.letters(selection.topics))
    return {**_summary(letter), **_content(dead_letters.record(letter.id))}


def replay(dead_letters: DeadLetters, asked: LettersBody, *, by: str) -> list[str]:
    """Where each went. Raises DeadLetterRefused and SettlingIncomplete."""
    ids = _chosen(dead_letters, asked.ids, again=asked.again)
    written = dead_letters.replay(ids, by=by, reason=asked.reason)
    return [f"{letter} to {to.topic}/{to.partition}/{to.offset}" for letter, to in written]


def drop(dead_letters: DeadLetters, asked: LettersBody, *, by: str) -> list[str]:
    """Which were dropped. Raises DeadLetterRefused and SettlingIncomplete."""
    ids = _chosen(dead_letters, asked.ids, again=False)
    dead_letters.drop(ids, by=by, reason=asked.reason)
    return [str(letter) for letter in ids]


def _chosen(dead_letters: DeadLetters, ids: Collection[str], *, again: bool) -> list[LetterId]:
    selection = Selection(ids=tuple(LetterId.parse(one) for one in ids), again=again)
    return [letter.id for letter in selection.pick(dead_letters.letters(selection.topics))]


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "id": str(letter.id),
        "topic": letter.id.topic,
        "state": letter.state,
        "at_ms": letter.at_ms,
        "bytes": letter.size,
        "source_partition": letter.source_partition,
        "source_offset": letter.source_offset,
        "error": letter.error,
        "exception": letter.exception,
        "message": letter.message,
        "replayed_from": letter.replayed_from,
        "history": [str(settlement) for settlement in letter.history],
    }


def _content(record: Record) -> dict[str, Any]:
    return {
        "key": None if record.key is None else _text(record.key)[0],
        "headers": [[name, _text(value)[0]] for name, value in record.headers],
        "value": None if record.value is None else _value(record.value[:SHOWN_BYTES]),
        "value_cut": record.value is not None and len(record.value) > SHOWN_BYTES,
    }


def _value(value: bytes) -> dict[str, str]:
    text, form = _text(value)
    if form == "text":
        try:
            # Formats the text as it stands: a number's digits and a field given twice both stay.
            return {"form": "json", "text": msgspec.json.format(text, indent=2)}
        except msgspec.DecodeError:
            return {"form": form, "text": text}
    return {"form": form, "text": text}


def _text(data: bytes) -> tuple[str, str]:
    try:
        return data.decode(), "text"
    except UnicodeDecodeError:
        return data[:HEX_BYTES].hex(" "), "hex"
