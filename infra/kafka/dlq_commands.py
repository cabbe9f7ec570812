"""``feedloom dlq``: what became unprocessable, why, and what to do with it.

Everything printed came from outside: characters that could steer a terminal are escaped.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from infra.contracts.bus import Record
    from infra.contracts.dead_letters import Letter, Selection

HEXDUMP_BYTES = 256
# Where there is no terminal to fit: enough of a message to tell letters apart, lines still short.
MESSAGE_WIDTH = 80

F = TypeVar("F", bound=Callable[..., None])


@click.group()
def dlq() -> None:
    """List, show, replay and drop dead letters: records that could not be processed.

    A letter's ID is SOURCE_TOPIC/OFFSET, as `list` prints it. Nothing is deleted: a letter that
    was replayed or dropped is marked so, and goes when the topic's retention ends.
    """


@dlq.command(name="list")
@click.option("--topic", metavar="SOURCE_TOPIC", help="Of this topic only.")
@click.option("--all", "everything", is_flag=True, help="Replayed and dropped ones too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array, with whole messages.")
def show_list(topic: str | None, everything: bool, as_json: bool) -> None:
    """List the open letters of every topic, and how many there are of each error."""
    from infra.contracts.dead_letters import checked_topics
    from infra.kafka.dead_letters import open_dead_letters
    from infra.settings import load_settings

    topics = checked_topics(topic)
    with open_dead_letters(load_settings()) as dead_letters:
        found = dead_letters.letters(topics)
    shown = [letter for letter in found if everything or letter.state == "open"]
    if as_json:
        click.echo(json.dumps([_json(letter) for letter in shown], indent=2))
        return
    if not shown:
        settled = f" ({len(found)} settled: --all shows them)" if found else ""
        click.echo(f"no dead letters{settled}")
        return
    for line in _table(shown, states=everything):
        click.echo(line)
    still_open = sum(letter.state == "open" for letter in shown)
    click.echo(_summary(shown) + (f"; {still_open} open" if everything else ""))


@dlq.command()
@click.argument("letter_id", metavar="ID")
@click.option("--raw", type=click.File("wb", lazy=True), help="Write the exact bytes there, only.")
def show(letter_id: str, raw: IO[bytes] | None) -> None:
    """Show all about one letter: where from, why, headers, key, value, what became of it."""
    from infra.contracts.dead_letters import DeadLetterRefused, LetterId, Selection
    from infra.kafka.dead_letters import open_dead_letters
    from infra.settings import load_settings

    selection = Selection(ids=(LetterId.parse(letter_id),), again=True)
    with open_dead_letters(load_settings()) as dead_letters:
        (letter,) = selection.pick(dead_letters.letters(selection.topics))
        record = dead_letters.record(letter.id)
    if raw is None:
        for line in _details(letter, record):
            click.echo(line)
        return
    if record.value is None:
        raise DeadLetterRefused(f"{letter.id} has no value (it is a tombstone): nothing to write")
    raw.write(record.value)
    click.echo(f"wrote {len(record.value)} bytes to {raw.name}", err=True)


def _selecting(command: F) -> F:
    """The arguments by which replay and drop choose letters."""
    for decorate in (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--error", metavar="CLASS", help="With --all: of this error class only."),
        click.option("--topic", metavar="SOURCE_TOPIC", help="With --all: of this topic only."),
        click.option("--all", "everything", is_flag=True, help="All open letters."),
        click.option("--reason", default="", metavar="TEXT", help="Kept with the mark."),
        click.argument("ids", nargs=-1, metavar="[ID]..."),
    ):
        command = decorate(command)
    return command


def _selection(
    ids: Sequence[str], everything: bool, topic: str | None, error: str | None, again: bool = False
) -> Selection:
    from infra.contracts.dead_letters import LetterId, Selection

    return Selection(
        ids=tuple(LetterId.parse(each) for each in ids),
        everything=everything,
        topic=topic,
        error=error,
        again=again,
    )


@dlq.command()
@_selecting
@click.option("--value", type=click.File("rb"), help="Send these bytes instead (one ID only).")
@click.option("--again", is_flag=True, help="Also if the letter was replayed or dropped before.")
@click.option("--dry-run", is_flag=True, help="Say what would be replayed; publish nothing.")
def replay(
    ids: tuple[str, ...],
    everything: bool,
    topic: str | None,
    error: str | None,
    reason: str,
    value: IO[bytes] | None,
    again: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Publish letters to their source topics again, unchanged, and mark them as replayed.

    A letter is marked once the broker has its copy. After a crash between the two, a letter may
    be replayed twice; it is never lost.
    """
    from infra.contracts.dead_letters import DeadLetterRefused
    from infra.kafka.dead_letters import open_dead_letters
    from infra.settings import load_settings

    selection = _selection(ids, everything, topic, error, again)
    repaired = None if value is None else value.read()
    if repaired is not None and len(set(selection.ids)) != 1:
        raise DeadLetterRefused("--value repairs one letter: give its id, and no other")
    with open_dead_letters(load_settings()) as dead_letters:
        chosen = selection.pick(dead_letters.letters(selection.topics))
        if repaired is not None:
            _warn_of_unreadable(chosen[0].id.topic, repaired)
        if dry_run:
            for line in _table(chosen, states=again):
                click.echo(line)
            click.echo(f"would replay {_summary(chosen)}; nothing was published")
            return
        if not yes:
            click.confirm(f"Replay {_summary(chosen)}?", abort=True)
        written = dead_letters.replay(
            [letter.id for letter in chosen], by=_user(), reason=reason, value=repaired
        )
    for letter, to in written:
        click.echo(f"{letter} replayed to {to.topic}/{to.partition}/{to.offset}")


@dlq.command()
@_selecting
def drop(
    ids: tuple[str, ...],
    everything: bool,
    topic: str | None,
    error: str | None,
    reason: str,
    yes: bool,
) -> None:
    """Mark letters as not worth replaying; they stay readable until retention ends."""
    from infra.kafka.dead_letters import open_dead_letters
    from infra.settings import load_settings

    selection = _selection(ids, everything, topic, error)
    with open_dead_letters(load_settings()) as dead_letters:
        chosen = selection.pick(dead_letters.letters(selection.topics))
        if not yes:
            click.confirm(f"Drop {_summary(chosen)}?", abort=True)
        dead_letters.drop([letter.id for letter in chosen], by=_user(), reason=reason)
    for letter in chosen:
        click.echo(f"{letter.id} dropped")


def _warn_of_unreadable(topic: str, value: bytes) -> None:
    """A warning only: the worker that reads it may be newer than this command."""
    from infra.contracts.catalogue import CATALOGUE
    from infra.contracts.codec import decode
    from infra.contracts.errors import ContractError

    (event,) = (spec.event for spec in CATALOGUE if spec.name == topic)
    try:
        if event is not None:
            decode(value, event)
    except ContractError as error:
        click.echo(f"warning: these bytes are unreadable too: {_printable(str(error))}", err=True)


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # In a container the user may have no name.
        return f"uid {os.getuid()}"


def _summary(letters: Sequence[Letter]) -> str:
    counts = Counter(_printable(letter.error) for letter in letters).most_common()
    errors = ", ".join(f"{name} {count}" for name, count in counts)
    return f"{len(letters)} letter{'s' if len(letters) > 1 else ''} ({errors})"


def _table(letters: Sequence[Letter], *, states: bool) -> Iterator[str]:
    """A header and a line a letter, in columns. FROM: partition/offset on the source topic."""
    from infra.contracts.moments import utc

    rows = [("ID", *(["STATE"] if states else []), "WHEN", "FROM", "BYTES", "ERROR", "MESSAGE")]
    rows += [
        (
            str(letter.id),
            *([letter.state] if states else []),
            utc(letter.at_ms),
            f"{_or_dash(letter.source_partition)}/{_or_dash(letter.source_offset)}",
            _or_dash(letter.size),
            _printable(letter.error),
            _printable(letter.message),
        )
        for letter in letters
    ]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]) - 1)]
    room = MESSAGE_WIDTH
    if sys.stdout.isatty():
        room = max(20, shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths))
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        message = row[-1] if len(row[-1]) <= room else row[-1][: room - 3] + "..."
        yield "  ".join([*cells, message]).rstrip()


def _or_dash(number: int | None) -> str:
    return "-" if number is None else str(number)


def _json(letter: Letter) -> dict[str, object]:
    from infra.contracts.moments import utc

    fields = {**asdict(letter), "id": str(letter.id), "topic": letter.id.topic}
    fields |= {"dlq_partition": letter.id.partition, "dlq_offset": letter.id.offset}
    fields |= {"state": letter.state, "at": utc(letter.at_ms)}
    return fields


def _details(letter: Letter, record: Record) -> Iterator[str]:
    from infra.contracts.moments import utc

    place = f"partition {_or_dash(letter.source_partition)}, offset "
    yield f"letter     {letter.id}"
    yield f"state      {letter.state}"
    for settlement in letter.history:
        yield f"           {_printable(str(settlement))}"
    yield f"since      {utc(letter.at_ms)}"
    yield f"from       {letter.id.topic}, {place}{_or_dash(letter.source_offset)}"
    if letter.replayed_from is not None:
        yield f"           a replay of {_printable(letter.replayed_from)}, which failed again"
    yield f"error      {_printable(letter.exception)}"
    yield f"message    {_printable(letter.message)}"
    yield f"key        {'none' if record.key is None else _text(record.key)}"
    yield f"headers    {len(record.headers)}"
    for name, value in record.headers:
        yield f"  {_printable(name)}: {_text(value)}"
    yield from _value(record.value)


def _value(value: bytes | None) -> Iterator[str]:
    import msgspec

    if value is None:
        yield "value      none (a tombstone)"
        return
    yield f"value      {len(value)} bytes"
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        yield f"           not UTF-8 from byte {error.start} on"
        yield from _hexdump(value[:HEXDUMP_BYTES])
        if len(value) > HEXDUMP_BYTES:
            yield f"... {len(value) - HEXDUMP_BYTES} more bytes; --raw FILE writes all"
        return
    with suppress(msgspec.DecodeError):
        # Formats the text as it stands: a number's digits and a field given twice both stay.
        text = msgspec.json.format(text, indent=2)
    yield _printable(text, keep="\n\t")


def _hexdump(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {row.hex(' '):47}  |{text}|"


def _text(data: bytes) -> str:
    try:
        return _printable(data.decode())
    except UnicodeDecodeError:
        return f"hex {data.hex(' ')}"


def _printable(text: str, keep: str = "") -> str:
    """Control, format and unassigned characters as escapes, so that none reaches the terminal."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape").decode()
        for each in text
    )
