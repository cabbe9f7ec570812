"""What a replay found: in words, as JSON lines, and as one page without network or scripts.

Everything on the page is escaped: prompts and answers are anybody's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from infra.files import whole_file
from stream_workers.replay_figures import RUN, Figures, Pair, Side
from stream_workers.replay_page import Bar, page
from stream_workers.replay_past import Past

REPORT = "report.html"
PAIRS = "pairs.jsonl"
SHOWN = 20
FEW = 30
"""Pairs below which figures say little."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """One run. ``against``: whose answers ``candidate`` was compared with.

    ``adapter_of``: the weights that an adapter was loaded beside. ``refused``: why no worker would
    serve the candidate. ``fresh``: both were answered here and now.
    """

    candidate: str
    against: str
    fresh: bool
    engine: str
    since_ms: int
    began_ms: int
    seconds: float
    past: Past
    pairs: Sequence[Pair]
    figures: Figures
    adapter_of: str | None = None
    refused: str | None = None


Row = tuple[str, str]


def facts(replay: Replay) -> Iterator[Row]:
    """Name and value, for people."""
    past, figures = replay.past, replay.figures
    kept = f"{past.fit:,} can be compared, {len(replay.pairs):,} replayed"
    looked = f"{past.looked_at:,} of the model looked at"
    yield "requests", f"{past.requests:,} since {_moment(replay.since_ms)}, {looked}: {kept}"
    if past.skipped:
        yield "skipped", ", ".join(f"{count:,} {why}" for why, count in past.skipped.items())
    recorded = Counter(version for pair in replay.pairs for version in pair.case.recorded.versions)
    yield "recorded from", ", ".join(f"{name} {n:,}" for name, n in recorded.most_common())
    if figures.repeatable:
        yield (
            "the same",
            f"{figures.same:,} of {figures.repeatable:,} greedy or seeded "
            f"({figures.same / figures.repeatable:.0%})",
        )
        yield "alike until they part", f"{_share(figures.lead)} of the text"
        yield "changed", f"{_share(figures.changed)} of the text"
    if figures.length_ratio is not None:
        yield "length", f"{figures.length_ratio:.2f} times as many tokens"
    spoken = sum(pair.case.feedback is not None for pair in replay.pairs)
    if spoken:
        yield (
            "feedback",
            f"on {spoken:,} of {len(replay.pairs):,} ({spoken / len(replay.pairs):.0%}): "
            f"{figures.liked:,} liked, {figures.disliked:,} disliked, {figures.edited:,} edited",
        )
    if figures.distances is not None:
        before, after = figures.distances
        yield (
            "nearer to what people wrote",
            f"{figures.nearer:,} of {figures.edited:,} ({figures.as_near:,} as near, "
            f"{figures.farther:,} farther; mean distance {before:.2f} before, {after:.2f} now)",
        )


def notes(replay: Replay) -> Iterator[str]:
    """What to keep in mind when reading the figures."""
    figures = replay.figures
    if replay.refused is not None:
        yield f"{replay.candidate} may not serve: {replay.refused}. This only looks at it."
    if replay.adapter_of is not None:
        yield f"{replay.candidate} is an adapter of {replay.adapter_of}."
    if len(replay.pairs) < FEW:
        yield f"Only {len(replay.pairs)} pairs: the figures say little."
    chance = sum(not pair.case.repeatable for pair in replay.pairs)
    if chance:
        yield (
            f"{chance} of the requests were sampled without a seed of their own: their answers "
            "differ by chance, and they do not count for what is the same, alike or changed."
        )
    mixed = sum(len(pair.case.recorded.versions) > 1 for pair in replay.pairs)
    if mixed:
        yield f"{mixed} of the recorded answers were begun by one version and ended by another."
    if not replay.fresh:
        yield (
            "The recorded times were taken by workers under load, the candidate's here: they are "
            "no comparison. --against stable measures both here."
        )
    if figures.edited:
        yield (
            "People edit the answer that they are shown, so the version that gave it starts "
            "nearer: an equally good one is nearer in fewer than half."
        )


COLUMNS: Sequence[str] = (
    "failed",
    "empty",
    "ended by themselves",
    "cut off at the limit",
    "tokens, mean",
    f"runs of {RUN} words said again",
    "first token, ms, median and p95",
    "later tokens, ms each, median and p95",
)


def sides(side: Side) -> tuple[str, ...]:
    """One version's figures, in the order of COLUMNS."""
    return (
        f"{side.errors:,}",
        f"{side.empty:,} ({side.empty_share:.1%})",
        f"{side.stop:,}",
        f"{side.length:,} ({side.length_share:.0%})",
        "-" if side.tokens is None else f"{side.tokens:.1f}",
        _share(side.repetition),
        _spread(side.ttft_ms),
        _spread(side.itl_ms),
    )


def summary(replay: Replay) -> str:
    """For a terminal."""
    figures = replay.figures
    lines = [f"{replay.candidate} against {replay.against}"]
    lines += [f"  {name:28} {value}" for name, value in facts(replay)]
    lines += ["", f"  {'':38} {_column(replay):>20} {replay.candidate:>20}"]
    both = zip(COLUMNS, sides(figures.baseline), sides(figures.candidate), strict=True)
    lines += [f"  {name:38} {before:>20} {after:>20}" for name, before, after in both]
    lines += ["", *(f"  LOOK: {mark}" for mark in figures.marks)] if figures.marks else []
    lines += ["", *(f"  {note}" for note in notes(replay))]
    return "\n".join(lines)


def write(folder: Path, replay: Replay) -> None:
    """REPORT and PAIRS, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / PAIRS) as stream:
        for pair in replay.pairs:
            stream.write(msgspec.json.encode(_line(pair)) + b"\n")
    figures = replay.figures
    rows = zip(COLUMNS, sides(figures.baseline), sides(figures.candidate), strict=True)
    text = page(
        title=f"{replay.candidate} on past requests",
        subtitle=(
            f"Against {replay.against}. {_moment(replay.began_ms)}, {replay.seconds:.0f} s, "
            f"{replay.engine} engine."
        ),
        marks=figures.marks,
        facts=[*facts(replay)],
        notes=[*notes(replay)],
        header=("", _column(replay), replay.candidate),
        rows=[*rows],
        bars=[*_bars(replay)],
        pairs=most_different(replay.pairs, SHOWN),
        columns=(_column(replay), replay.candidate),
    )
    with whole_file(folder / REPORT) as stream:
        stream.write(text.encode())


def most_different(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Failed and empty answers, then those that differ and not by chance, then the others."""

    def order(pair: Pair) -> tuple[bool, bool, float]:
        wrong = pair.candidate.error is not None or pair.candidate.empty
        return wrong, pair.case.repeatable and not pair.same, pair.changed or 0.0

    return sorted(pairs, key=order, reverse=True)[:most]


def _bars(replay: Replay) -> Iterator[Bar]:
    figures = replay.figures
    if figures.edited:
        yield Bar(
            title="Nearer to what people wrote",
            parts=(
                ("nearer", figures.nearer),
                ("as near", figures.as_near),
                ("farther", figures.farther),
            ),
        )
    if figures.repeatable:
        changes = [
            pair.changed
            for pair in replay.pairs
            if pair.changed is not None and pair.case.repeatable and not pair.same
        ]
        tenths = Counter(min(3, int(change * 4)) for change in changes)
        names = ("up to a quarter", "up to a half", "up to three quarters", "more")
        yield Bar(
            title="How much of a greedy or seeded answer changed",
            parts=(
                ("nothing", figures.same),
                *((name, tenths[at]) for at, name in enumerate(names)),
            ),
        )
    for name, side in ((_column(replay), figures.baseline), (replay.candidate, figures.candidate)):
        yield Bar(
            title=f"How answers end: {name}",
            parts=(
                ("by themselves", side.stop),
                ("at the limit", side.length),
                ("failed", side.errors),
            ),
        )


def _line(pair: Pair) -> dict[str, object]:
    request, example = pair.case.request, pair.case.feedback
    return {
        "request_id": request.request_id,
        "submit_id": request.submit_id,
        "created_at_ms": request.created_at_ms,
        "prompt": request.prompt,
        "messages": request.messages,
        "sampling": request.sampling,
        "repeatable": pair.case.repeatable,
        "same": pair.same,
        "lead": pair.lead,
        "changed": pair.changed,
        "recorded": pair.case.recorded,
        "baseline": pair.baseline,
        "candidate": pair.candidate,
        "ups": example.ups if example is not None else 0,
        "downs": example.downs if example is not None else 0,
        "edited_text": example.edited_text if example is not None else None,
        "distances": pair.distances,
        "nearness": pair.nearness,
    }


def _column(replay: Replay) -> str:
    return replay.against if replay.fresh else "recorded"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _spread(values: tuple[float, float] | None) -> str:
    return "-" if values is None else f"{values[0]:.1f}, {values[1]:.1f}"
