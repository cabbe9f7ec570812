"""Preparing text: sources, what is malformed, steps, copies, contamination, mixture, resuming."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.errors import ConfigurationError
from trainer.pile import CorruptShard, PileMeta, PileRow, read_shards, shard_paths, write_shards
from trainer.pile_commands import STEP_NAMES, pile
from trainer.preparation import prepare as preparation
from trainer.preparation import stages
from trainer.preparation.duplicates import (
    Contamination,
    digest,
    exact_copies,
    near_copies,
    sign,
)
from trainer.preparation.mixture import PILE_WEIGHTS, interleave, quotas, shares
from trainer.preparation.prepare import Plan, TooManyMalformed, prepare
from trainer.preparation.report import Report
from trainer.preparation.sources import Malformed, parts_of, read_source, sources_of
from trainer.preparation.steps import STEPS, build_steps

# fmt: off
WORDS = [
    "river", "garden", "engine", "window", "letter", "mountain", "teacher", "market", "signal",
    "harbor", "orchard", "lantern", "village", "bridge", "archive", "compass", "kitchen",
    "meadow", "painter", "violin", "forest", "castle", "thunder", "needle", "pocket", "ladder",
    "museum", "feather", "pepper", "saddle", "tunnel", "valley", "walnut", "yellow", "zephyr",
    "anchor", "basket", "candle", "dragon", "empire", "fabric", "glacier", "hammer", "island",
    "jacket", "kettle", "lizard", "marble", "napkin", "oyster",
]
# fmt: on


LINKS = ["of the", "and the", "in a", "to be", "that have", "with the", "for a", "on the", "was a"]


def prose(seed: int, sentences: int = 12) -> str:
    """English enough for every rule, and unlike that of another seed."""
    draw = random.Random(seed)

    def sentence() -> str:
        words = [draw.choice(LINKS if n % 2 else WORDS) for n in range(12)]
        return "The " + " ".join([*words, draw.choice(WORDS)]) + "."

    return " ".join(sentence() for _ in range(sentences))


def code(seed: int) -> str:
    """A function that no rule for prose would pass."""
    draw = random.Random(seed)
    lines = [f"    {draw.choice(WORDS)}_{n} = {{{draw.random()}}}" for n in range(20)]
    return "\n".join([f"def f{seed}(x):", *lines, "    return x"]) + "\n"


def row(text: str, name: str = "Wikipedia (en)") -> PileRow:
    return PileRow(text=text, meta=PileMeta(pile_set_name=name))


def line(text: str, name: str = "Wikipedia (en)") -> str:
    return json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n"


def read(path: Path | str) -> tuple[list[PileRow], list[Malformed]]:
    bad: list[Malformed] = []
    (source,) = sources_of([str(path)])
    return list(read_source(source, bad.append)), bad


# The mixture.

SETS = st.dictionaries(
    st.sampled_from(["Github", "ArXiv", "Wikipedia (en)", "own", "other"]),
    st.integers(0, 5_000),
    max_size=5,
)


def test_the_weights_are_those_published_and_make_a_whole() -> None:
    assert len(PILE_WEIGHTS) == 22
    assert sum(PILE_WEIGHTS.values()) == pytest.approx(100.0)


@given(available=SETS)
def test_shares_make_a_whole_and_sets_without_a_weight_keep_their_own(
    available: Mapping[str, int],
) -> None:
    found = shares(available, PILE_WEIGHTS)
    total = sum(available.values())
    if not total:
        assert found == {}
        return
    assert sum(found.values()) == pytest.approx(1.0)
    for name in ("own", "other"):
        assert found.get(name, 0.0) == pytest.approx(available.get(name, 0) / total)
    named = [name for name in found if name in PILE_WEIGHTS]
    for name in named[1:]:
        expected = PILE_WEIGHTS[name] / PILE_WEIGHTS[named[0]]
        assert found[name] / found[named[0]] == pytest.approx(expected)


def test_a_weight_of_nothing_leaves_a_set_out() -> None:
    assert shares({"a": 10, "b": 30}, {"a": 0.0}) == {"b": 1.0}
    assert quotas({"a": 10, "b": 30}, {"a": 0.0}) == {"a": 0, "b": 30}
    assert shares({"a": 10}, {"a": 0.0}) == {}


@given(available=SETS, total=st.none() | st.integers(0, 20_000))
def test_quotas_take_nothing_twice_and_as_much_as_asked(
    available: Mapping[str, int], total: int | None
) -> None:
    taken = quotas(available, PILE_WEIGHTS, total)
    there = sum(available[name] for name in shares(available, PILE_WEIGHTS))
    wanted = there if total is None else min(total, there)
    assert all(taken[name] <= available[name] for name in available)
    assert wanted - len(available) <= sum(taken.values()) <= wanted
    # Those that are not used up have their weights' proportions.
    part = shares(available, PILE_WEIGHTS)
    scarce = [name for name in part if 0 < taken[name] < available[name]]
    for name in scarce[1:]:
        assert abs(taken[name] / part[name] - taken[scarce[0]] / part[scarce[0]]) <= max(
            1 / part[name], 1 / part[scarce[0]]
        )


@given(
    sizes=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(1, 50), max_size=30), max_size=3
    ),
    wanted=st.dictionaries(st.sampled_from("abc"), st.integers(0, 800), max_size=3),
)
def test_interleaving_takes_what_is_wanted_and_at_most_one_document_more(
    sizes: dict[str, list[int]], wanted: dict[str, int]
) -> None:
    counts = Counter(interleave(sizes, wanted))
    for name in "abc":
        there, want = sizes.get(name, []), wanted.get(name, 0)
        took = sum(there[: counts[name]])
        if sum(there) <= want:
            assert took == sum(there)
        else:
            assert took >= want
            assert counts[name] == 0 or took - there[counts[name] - 1] < want


def test_every_stretch_of_a_mixture_has_its_proportions() -> None:
    sizes = {"much": [10] * 900, "little": [10] * 100}
    order = list(interleave(sizes, {"much": 9_000, "little": 1_000}))
    for start in range(0, 1_000, 100):
        assert abs(order[start : start + 100].count("little") - 10) <= 1


# Sources.


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [(f"text {n} \u00e9\u4e2d", name) for n, name in enumerate(["Github", "ArXiv"] * 3)]
    data = "".join(line(*one) for one in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.compress(data))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(data))
    rows = [{"text": text, "meta": {"pile_set_name": name}} for text, name in texts]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    flat = [{"text": text, "pile_set_name": name} for text, name in texts]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(flat), tmp_path / "e.parquet")
    expected = [row(*one) for one in texts]
    for source in sources_of([str(tmp_path)]):
        bad: list[Malformed] = []
        assert list(read_source(source, bad.append)) == expected
        assert bad == []


def test_malformed_lines_are_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(
        line("one").encode()
        + b"{broken\n\n"
        + b'{"meta": {}}\n'
        + b'{"text": "\xff\xfe"}\n'
        + b'{"text": "  "}\n'
        + b'{"text": 7}\n'
        + line("two").encode()
    )
    rows, bad = read(path)
    assert [one.text for one in rows] == ["one", "two"]
    assert [one.line for one in bad] == [2, 4, 5, 6, 7]
    assert {one.file for one in bad} == {str(path)}
    assert bad[0].excerpt.startswith("{broken")
    assert "text" in bad[1].reason
    assert bad[3].reason == "the text is empty"


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz"])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, suffix: str) -> None:
    data = "".join(line(prose(n)) for n in range(50)).encode()
    whole = zstandard.compress(data) if suffix.endswith("zst") else gzip.compress(data)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptShard, match="cut"):
        read(path)


def test_a_gzip_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(line(prose(1)).encode())
    path = tmp_path / "damaged.jsonl.gz"
    path.write_bytes(whole[:10] + b"\x07" + whole[11:])  # no such kind of block
    with pytest.raises(CorruptShard, match="damaged"):
        read(path)


def test_parquet_without_text_is_refused_and_rows_without_it_are_malformed(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["one", None, " "]})
    pyarrow.parquet.write_table(table, tmp_path / "gaps.parquet")
    rows, bad = read(tmp_path / "gaps.parquet")
    assert [one.text for one in rows] == ["one"]
    assert [(one.line, one.reason) for one in bad] == [
        (2, "there is no text"),
        (3, "the text is empty"),
    ]
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigurationError, match="no column 'text' but body"):
        read(tmp_path / "other.parquet")
    (tmp_path / "not.parquet").write_bytes(b"PAR0")
    with pytest.raises(ConfigurationError, match="no Parquet"):
        read(tmp_path / "not.parquet")


def test_a_hub_data_set_is_streamed_and_read_on_from_where_it_was(tmp_path: Path) -> None:
    # What the hub client calls a data set may be a folder: the same code, without the network.
    data = "".join(line(f"text {n}", "HackerNews") for n in range(10))
    (tmp_path / "train.jsonl").write_text(data)
    (source,) = sources_of([f"hub:{tmp_path}:train"])
    bad: list[Malformed] = []
    assert list(read_source(source, bad.append)) == [
        row(f"text {n}", "HackerNews") for n in range(10)
    ]
    assert [one.text for one in read_source(source, bad.append, skip=7)] == [
        f"text {n}" for n in (7, 8, 9)
    ]
    assert bad == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "does not exist"),
        ("notes.txt", r"does not end in .jsonl, .json, .jsonl.zst"),
        ("empty", "holds no file"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=message):
        sources_of([str(tmp_path / name)])


@given(count=st.integers(0, 30), size=st.integers(1, 10))
def test_a_stream_in_parts_is_the_stream(count: int, size: int) -> None:
    rows = [row(str(n)) for n in range(count)]
    parts = [list(part) for part in parts_of(rows, size)]
    assert [one for part in parts for one in part] == rows
    assert all(len(part) == size for part in parts[:-1])


# Steps over one document.


def through(step: str, *rows: PileRow, languages: Sequence[str] = ("en",)) -> Any:
    (one,) = build_steps([step], languages)
    return list(one.run(iter(rows))), one.counts


@pytest.mark.parametrize(
    ("step", "text", "reason"),
    [
        ("gopher-quality", "Too short to be of use.", "gopher_short_doc"),
        ("gopher-quality", "# " * 200 + prose(1), "gopher_too_many_hashes"),
        ("gopher-repetition", (prose(1, 3) + "\n") * 9, "dup_para_char_frac|dup_line_frac"),
        ("c4", prose(1, 2), "too_few_sentences"),
        ("c4", prose(1) + " { }.", "curly_bracket"),
        ("language", "Der Hund l\u00e4uft durch den Garten und die Katze schl\u00e4ft. " * 9, "de"),
    ],
)
def test_a_step_drops_what_breaks_its_rule_and_says_which(
    step: str, text: str, reason: str
) -> None:
    kept, counts = through(step, row(text), row(prose(2)))
    assert kept == [row(prose(2))]
    assert len(counts.dropped) == 1
    assert next(iter(counts.dropped)) in reason.split("|")
    assert (counts.documents_in, counts.documents_out) == (2, 1)
    assert counts.bytes_in == len((text + prose(2)).encode())
    assert counts.bytes_out == len(prose(2).encode())


@pytest.mark.parametrize("step", ["gopher-quality", "gopher-repetition", "c4", "language"])
def test_code_is_not_judged_as_prose(step: str) -> None:
    file = row("if (x) { return y; }\n" * 3, "Github")
    assert through(step, file)[0] == [file]


def test_a_language_is_asked_for_by_name_and_parliament_speaks_many() -> None:
    german = "Der Hund l\u00e4uft durch den Garten und die Katze schl\u00e4ft im Haus. " * 9
    assert through("language", row(german), languages=("en", "de"))[0] == [row(german)]
    parliament = row(german, "EuroParl")
    assert through("language", parliament)[0] == [parliament]


def test_addresses_are_replaced_the_same_whatever_came_before() -> None:
    text = "Write to jane.doe@corp.example.net or to 8.8.8.8, not to 10.0.0.1."
    (first, second), counts = through("pii", row(text), row(text))
    assert first == second
    assert "jane" not in first.text
    assert "8.8.8.8" not in first.text
    assert "10.0.0.1" in first.text  # private: it is nobody's
    assert counts.changed == 2


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there are language, gopher-quality"):
        build_steps(["gopher"], ("en",))
    assert tuple(STEPS) == STEP_NAMES


# Copies and contamination.


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=4))
def test_of_exact_copies_the_first_stays(parts: list[list[int]]) -> None:
    digests = [b"".join(digest(f" text {n} ") for n in part) for part in parts]
    copies = exact_copies(digests)
    kept = [
        n
        for part, gone in zip(parts, copies, strict=True)
        for i, n in enumerate(part)
        if i not in gone
    ]
    assert kept == list(dict.fromkeys(n for part in parts for n in part))


def test_of_near_copies_one_stays_and_others_are_left_alone(tmp_path: Path) -> None:
    original = prose(1, 40)
    changed = original.replace("The", "One", 1)
    parts = [[prose(2), original, prose(3)], [prose(4), changed, prose(5)], [], [prose(6)]]
    signatures, scratch = tmp_path / "signatures", tmp_path / "scratch"
    for number, part in enumerate(parts):
        sign(map(row, part), signatures, number)
    gone = near_copies(signatures, scratch, len(parts))
    assert sorted(map(len, gone)) == [0, 0, 0, 1]
    assert (gone[0], gone[1]) in (({1}, set()), (set(), {1}))


def test_text_of_an_evaluation_set_is_found_in_a_longer_document(tmp_path: Path) -> None:
    from datatrove.data import Document

    secret = prose(7, 2)
    Contamination(tmp_path, {"exam": [secret], "short": ["four words are here"]})
    other = Contamination(tmp_path, {})  # as another process opens it
    hidden = prose(8) + " " + secret.upper().replace(",", "") + " " + prose(9)
    assert other.judge(Document(text=hidden, id="")) == "exam"
    assert other.judge(Document(text=prose(8) + " four words are here", id="")) is None


# The whole.


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes take seconds to import: most tests run their stages here instead."""

    class Here(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - as a pool does
                future.set_exception(error)
            return future

    @contextmanager
    def pool(workers: int) -> Any:
        yield Here()

    monkeypatch.setattr(preparation, "_pool", pool)


def raw(folder: Path) -> Path:
    """Three files: prose of two sets and code, copies within and across, and bad lines."""
    folder.mkdir()
    secret = prose(5_000, 3)
    one = [line(prose(n)) for n in range(40)]
    one += [
        line(prose(3)),
        "no json\n",
        line("This is a text that is much too short to be of any use."),
        line(prose(50) + " " + secret),
    ]
    two = [line(prose(100 + n), "Enron Emails") for n in range(40)]
    two += [line(prose(7)), line(prose(8).replace("The", "One", 1)), '{"text": ""}\n']
    code_lines = [line(code(n), "Github") for n in range(20)]
    for name, lines in (("a", one), ("b", two), ("c", code_lines)):
        (folder / f"{name}.jsonl").write_text("".join(lines))
    write_shards(folder.parent / "exam", [row(secret)])
    return folder


def plan_of(folder: Path, out: Path, **changes: Any) -> Plan:
    out.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "sources": sources_of([str(folder)]),
        "directory": out,
        "heldout_share": 0.1,
        "max_malformed": 0.1,
        "evaluation": {"exam": shard_paths(folder.parent / "exam")},
    }
    return Plan(**(options | changes))


def texts(directory: Path) -> list[str]:
    return [one.text for one in read_shards(shard_paths(directory))]


def snapshot(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


@pytest.mark.usefixtures("_in_process")
def test_what_goes_in_comes_out_or_is_accounted_for(tmp_path: Path) -> None:
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    report = prepare(plan_of(folder, out))
    written = msgspec.json.decode((out / "report.json").read_bytes(), type=Report)
    assert report == written
    # Every step begins with what the one before left.
    for before, after in zip(report.steps, report.steps[1:], strict=False):
        assert (before.documents_out, before.bytes_out) == (after.documents_in, after.bytes_in)
    for one in report.steps:
        assert one.documents_in - one.documents_out == sum(one.dropped.values()), one
    by_name = {one.name: one for one in report.steps}
    assert by_name["gopher-quality"].dropped == {"gopher_short_doc": 1}
    assert by_name["exact-copies"].dropped == {"copy": 2}
    assert by_name["near-copies"].documents_out == by_name["near-copies"].documents_in - 1
    assert by_name["decontamination"].dropped["exam"] == 1
    train, heldout = texts(out / "train"), texts(out / "heldout")
    assert len(train) == report.steps[-1].documents_out
    assert len(heldout) == report.heldout_documents > 0
    assert len(set(train) | set(heldout)) == len(train) + len(heldout)
    secret = set(runs(prose(5_000, 3)))
    assert not any(secret & set(runs(text)) for text in train)
    held = {run for text in heldout for run in runs(text)}
    assert not any(held & set(runs(text)) for text in train)
    bad = [json.loads(one) for one in (out / "malformed.jsonl").read_text().splitlines()]
    assert [(Path(one["file"]).name, one["line"]) for one in bad] == [
        ("a.jsonl", 42),
        ("b.jsonl", 43),
    ]
    assert report.malformed == 2
    assert not (out / ".work").exists()


def runs(text: str, size: int = 12) -> Iterable[str]:
    """An own measure of contamination."""
    words = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    return (" ".join(words[n : n + size]) for n in range(len(words) - size + 1))


@pytest.mark.usefixtures("_in_process")
def test_a_limited_mixture_follows_the_weights(tmp_path: Path) -> None:
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    weights = {"Wikipedia (en)": 3.0, "Enron Emails": 1.0, "Github": 0.0}
    report = prepare(plan_of(folder, out, weights=weights, size_bytes=20_000))
    taken = {name: one.bytes for name, one in report.sets.items()}
    assert taken["Github"] == 0
    assert taken["Wikipedia (en)"] / taken["Enron Emails"] == pytest.approx(3.0, rel=0.15)
    assert 20_000 <= sum(taken.values()) <= 23_000
    assert report.steps[-1].dropped == {
        "more than its share": sum(
            one.documents_available - one.documents for one in report.sets.values()
        )
    }


@pytest.mark.usefixtures("_in_process")
def test_too_much_that_is_malformed_ends_the_run_and_is_listed(tmp_path: Path) -> None:
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    with pytest.raises(TooManyMalformed, match=r"2 of 107 lines .* --max-malformed"):
        prepare(plan_of(folder, out, max_malformed=0.01))
    assert len((out / "malformed.jsonl").read_text().splitlines()) == 2
    assert not (out / "train").exists()
    # With more allowed the cleaning is not done again.
    before = (out / ".work" / "clean" / "00000.json").stat().st_mtime_ns
    seen: list[int] = []

    def progress(stage: str, done: int, total: int) -> None:
        if (path := out / ".work" / "clean" / "00000.json").is_file():
            seen.append(path.stat().st_mtime_ns)

    prepare(plan_of(folder, out, max_malformed=0.05), progress)
    assert set(seen) == {before}


@pytest.mark.usefixtures("_in_process")
def test_a_run_that_was_broken_off_goes_on_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw(tmp_path / "raw")
    prepare(plan_of(folder, tmp_path / "whole"))
    expected = snapshot(tmp_path / "whole")
    out = tmp_path / "broken"
    for function in ("clean_source", "sign_part", "sort_part"):
        original = getattr(preparation, function)
        calls = 0

        def failing(*arguments: Any, original: Any = original) -> Any:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError("no space left on device")
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(preparation, function, failing)
            with pytest.raises(OSError, match="no space"):
                prepare(plan_of(folder, out))
        assert not (out / "report.json").exists()
    prepare(plan_of(folder, out))
    assert snapshot(out) == expected


@pytest.mark.usefixtures("_in_process")
def test_a_changed_source_is_cleaned_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = raw(tmp_path / "raw"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(preparation, "sign_part", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(plan_of(folder, out))
    (folder / "a.jsonl").write_text(line(prose(999)))
    report = prepare(plan_of(folder, out, heldout_share=0.0))
    assert report.sources[0].documents == 1
    assert prose(999) in texts(out / "train")


@pytest.mark.usefixtures("_in_process")
def test_a_stream_goes_on_at_the_piece_that_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "train.jsonl").write_text("".join(line(prose(n)) for n in range(25)))
    monkeypatch.setattr(preparation, "parts_of", lambda rows: parts_of(rows, 10))
    options = {"sources": sources_of([f"hub:{hub}"]), "evaluation": {}}
    prepare(plan_of(tmp_path, tmp_path / "whole", **options))
    cleaned: list[int] = []

    def failing(work: Path, part: int, *rest: Any) -> Any:
        cleaned.append(part)
        if len(cleaned) == 2:
            raise OSError("connection lost")
        return stages.clean(work, part, *rest)

    monkeypatch.setattr(preparation, "clean", failing)
    with pytest.raises(OSError, match="connection lost"):
        prepare(plan_of(tmp_path, tmp_path / "broken", **options))
    report = prepare(plan_of(tmp_path, tmp_path / "broken", **options))
    assert cleaned == [0, 1, 1, 2]
    assert sum(part.documents for part in report.sources) == 25
    assert snapshot(tmp_path / "broken") == snapshot(tmp_path / "whole")


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize("documents", [0, 2])
def test_rows_of_a_stream_that_are_no_documents_count_behind_the_last_one_too(
    tmp_path: Path, documents: int
) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    rows = [line(prose(n)) for n in range(documents)] + [line("")] * 3
    (hub / "train.jsonl").write_text("".join(rows))
    plan = plan_of(tmp_path, tmp_path / "out", sources=sources_of([f"hub:{hub}"]), evaluation={})
    with pytest.raises(TooManyMalformed, match=f"3 of {documents + 3} lines"):
        prepare(plan)
    # Read on from where it was, they are there once.
    with pytest.raises(TooManyMalformed, match=f"3 of {documents + 3} lines"):
        prepare(plan)


def test_two_processes_give_what_one_gives_and_the_commands_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw(tmp_path / "raw")
    monkeypatch.setenv("FEEDLOOM_HOME", str(tmp_path / "home"))
    runner = CliRunner()
    common = [str(folder), "--max-malformed", "0.1", "--eval", str(tmp_path / "exam")]
    for workers in ("1", "2"):
        out = ["--out", str(tmp_path / workers), "--workers", workers]
        result = runner.invoke(pile, ["prepare", *common, *out], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    assert "gopher-quality" in result.output
    assert "2 malformed lines" in result.output

    shown = runner.invoke(pile, ["inspect", str(folder), "--set", "Github", "-n", "1"])
    assert "Github" in shown.output
    assert "def f0" in shown.output
    counted = runner.invoke(pile, ["stats", str(folder), "--json"])
    found = json.loads(counted.output)
    assert found["malformed"] == 2
    assert found["sets"]["Github"]["documents"] == 20
    assert "mean bytes" in runner.invoke(pile, ["stats", str(folder)]).output
