"""The page of a replay: figures, bars, and answers side by side. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from stream_workers.replay_figures import Pair
from stream_workers.replay_past import Answer

WIDTH = 640
HEIGHT = 22
_SQUARE = 'width="9" height="9"'

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --soft: #57606a;
  --rule: #d8dee4; --bad: #a40e26; --bad-page: #ffebe9;
  --p0: #0b63c5; --p1: #6e7781; --p2: #b35900; --p3: #8250df; --p4: #bf3989; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22; --ink: #e6edf3;
  --soft: #9ba5b0; --rule: #30363d; --bad: #ffaba8; --bad-page: #4a1517;
  --p0: #6cb6ff; --p1: #8b949e; --p2: #f0a35e; --p3: #c297ff; --p4: #f783ac; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; }
.soft { color: var(--soft); margin: .25rem 0 1rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem;
  padding: 1rem; margin: 0 0 1rem; overflow-x: auto; }
.marks { background: var(--bad-page); color: var(--bad); font-weight: 600; }
.marks ul, .notes { margin: 0; padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .25rem 1.5rem; }
dl { margin: 0; } dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--rule);
  text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; }
tr:last-child > * { border-bottom: 0; }
figure { margin: 0 0 1rem; } figcaption { font-weight: 600; } svg { width: 100%; height: auto; }
.p0 { fill: var(--p0); } .p1 { fill: var(--p1); } .p2 { fill: var(--p2); } .p3 { fill: var(--p3); }
.p4 { fill: var(--p4); }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0;
  font-size: .9rem; } .key svg { width: .8rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
  font: .88rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
.sides { display: grid; gap: .5rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.label { color: var(--soft); font-size: .85rem; margin: .5rem 0 0; }
"""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One whole and its parts, by name; at most five."""

    title: str
    parts: Sequence[tuple[str, int]]


def page(
    *,
    title: str,
    subtitle: str,
    marks: Sequence[str],
    facts: Sequence[tuple[str, str]],
    notes: Sequence[str],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    bars: Sequence[Bar],
    pairs: Sequence[Pair],
    columns: tuple[str, str],
) -> str:
    """The whole document. ``columns`` names the two versions whose answers ``pairs`` shows."""
    body = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(subtitle)}</p>']
    if marks:
        body += ['<div class="card marks">Look at this:<ul>', *_items(marks), "</ul></div>"]
    body += ['<dl class="card">']
    body += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts]
    body += ["</dl>", '<div class="card"><table><thead><tr>']
    body += [f'<th scope="col">{escape(cell)}</th>' for cell in header]
    body += ["</tr></thead><tbody>", *map(_row, rows), "</tbody></table></div>"]
    body += ['<div class="card">', *map(_bar, bars), "</div>"]
    if notes:
        body += ['<div class="card"><ul class="notes">', *_items(notes), "</ul></div>"]
    body += [f"<h2>The {len(pairs)} most different answers</h2>"]
    body += [_pair(pair, columns) for pair in pairs]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def _items(texts: Sequence[str]) -> Iterator[str]:
    return (f"<li>{escape(text)}</li>" for text in texts)


def _row(cells: Sequence[str]) -> str:
    first, *others = cells
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in others)
    return f'<tr><th scope="row">{escape(first)}</th>{rest}</tr>'


def _bar(bar: Bar) -> str:
    whole = sum(count for _, count in bar.parts)
    said = ", ".join(f"{name} {count}" for name, count in bar.parts)
    drawn, key, at = [], [], 0.0
    for number, (name, count) in enumerate(bar.parts):
        width = WIDTH * count / whole if whole else 0.0
        drawn.append(
            f'<rect class="p{number}" x="{at:.1f}" y="0" width="{width:.1f}" height="{HEIGHT}"/>'
        )
        swatch = f'<svg viewBox="0 0 9 9" aria-hidden="true"><rect class="p{number}" {_SQUARE}/>'
        key.append(f"<li>{swatch}</svg> {escape(name)} {count:,}</li>")
        at += width
    return (
        f"<figure><figcaption>{escape(bar.title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">'
        f'{"".join(drawn)}</svg><ul class="key">{"".join(key)}</ul></figure>'
    )


def _pair(pair: Pair, columns: tuple[str, str]) -> str:
    request, example = pair.case.request, pair.case.feedback
    sampling = request.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}"
    how += "" if sampling.seed is None else f", seed {sampling.seed}"
    how += "" if pair.case.repeatable else ", differs by chance too"
    changed = "" if pair.changed is None else f", {pair.changed:.0%} changed"
    asked = request.prompt or "\n".join(f"{one.role}: {one.content}" for one in request.messages)
    parts = [
        f'<article class="card"><p class="label">{escape(request.request_id)}: {how}{changed}</p>',
        _text(asked),
        '<div class="sides">',
        *(
            f'<div><p class="label">{escape(name)}, {_ended(answer)}</p>{_text(answer.text)}</div>'
            for name, answer in zip(columns, (pair.baseline, pair.candidate), strict=True)
        ),
    ]
    if example is not None and example.edited_text is not None:
        label = f'<p class="label">somebody wrote; the candidate is {pair.nearness}</p>'
        parts.append(f"<div>{label}{_text(example.edited_text)}</div>")
    return "".join([*parts, "</div></article>"])


def _ended(answer: Answer) -> str:
    if answer.error is not None:
        return f"failed: {escape(answer.error)}"
    return f"{answer.tokens} tokens, {escape(str(answer.finish_reason))}"


def _text(text: str) -> str:
    return f'<p class="text">{escape(text) if text.strip() else "<em>nothing</em>"}</p>'
