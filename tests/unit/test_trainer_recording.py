"""What a round leaves: run folders, TensorBoard's numbers, metrics, and a report that is safe."""

from __future__ import annotations

import math
import re
import runpy
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import observability.instruments
from infra.contracts.config_sections import TrainerConfig
from infra.contracts.events.feedback import FeedbackExample
from infra.settings import Settings
from tests.learning import feedback, prepare, settings_at
from trainer import recording
from trainer.charts import Chart, Line, plotted, thinned, ticks
from trainer.curation import Curated
from trainer.pile import read_shards, shard_paths
from trainer.recording import RoundRecord
from trainer.report import REPORT, Report, Sample, Table, charts_of, render
from trainer.rounds import Inputs, Trained, curated_feedback, run_round
from trainer.run_folders import forget, new_run, note_shown, prune, runs_of
from trainer.training import TrainingDiverged, TrainingStopped

NASTY = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"
VOID = {"meta", "link", "br", "img", "input", "line", "circle", "polyline"}
Numbers = Callable[[], dict[str, dict[str, float]]]


class Page(HTMLParser):
    """Tags, texts, and whether all is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Numbers]:
    """What the instruments of a round have measured: by name, by the attributes' values."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    with monkeypatch.context() as patch:
        patch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
        fresh = runpy.run_path(observability.instruments.__file__)
    for name in [name for name in vars(recording) if name in fresh and name.isupper()]:
        monkeypatch.setattr(recording, name, fresh[name])

    def read() -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        data = reader.get_metrics_data()
        assert data is not None
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in metric.data.data_points:
                where = ",".join(
                    f"{value}" for _, value in sorted((point.attributes or {}).items())
                )
                value = point.sum if hasattr(point, "sum") else point.value
                found.setdefault(metric.name, {})[where] = value
        return found

    yield read
    provider.shutdown()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("home")
    prepare(settings_at(path))
    return path


def config_of(settings: Settings) -> TrainerConfig:
    return TrainerConfig(**settings.trainer.config)  # type: ignore[arg-type]


def nasty_examples(count: int, *, start: int = 0) -> list[FeedbackExample]:
    return [
        msgspec.structs.replace(one, prompt=f"{NASTY} {one.prompt}")
        for one in feedback(count, model="default", start=start)
    ]


def recorded(settings: Settings, version: str = "2") -> tuple[RoundRecord, Trained, Curated]:
    """A round as the service runs it."""
    config = config_of(settings)
    shards = settings.shards
    inputs = Inputs(
        parent=settings.home / "first",
        feedback=[*nasty_examples(12), *nasty_examples(2)],
        measuring=nasty_examples(9, start=40),
        replay=list(read_shards(shard_paths(shards / "train"))),
        heldout=list(read_shards(shard_paths(shards / "heldout"))),
    )
    curated = curated_feedback(inputs, config, settings.trainer, now_ms=1)
    with RoundRecord(
        settings, config, curated, model="default", version=version, parent="1"
    ) as record:
        trained = run_round(
            inputs,
            curated,
            config,
            settings.trainer,
            progress=record.progress,
            stop=threading.Event(),
        )
        assert trained is not None
        record.finish(trained)
    return record, trained, curated


def test_a_round_leaves_numbers_curves_and_a_report(
    home: Path, tmp_path: Path, numbers: Numbers
) -> None:
    settings = settings_at(
        home, logging_dir=tmp_path / "runs", num_train_epochs=3, per_device_train_batch_size=4
    )
    record, trained, curated = recorded(settings)
    assert trained.steps >= 5

    # Metrics.
    found = numbers()
    assert found["feedloom.trainer.steps"] == {"default": trained.steps}
    tokens = found["feedloom.trainer.tokens"]["default"]
    assert tokens == trained.metrics["train_tokens"] > 0
    assert set(found["feedloom.trainer.step.loss"]) == {
        f"default,{name}" for name in ("all", "sft", "replay", "dpo")
    }
    assert found["feedloom.trainer.examples"] == {
        "default,sft": len(curated.completions),
        "default,dpo": len(curated.preferences),
    }
    assert found["feedloom.trainer.dropped_examples"] == {
        f"default,{reason}": count for reason, count in curated.dropped.items()
    }
    assert curated.dropped
    heldout = found["feedloom.trainer.heldout.loss"]
    for moment in ("before", "after"):
        assert heldout[f"default,{moment},2"] == trained.metrics[f"heldout_loss_{moment}"]
    assert found["feedloom.trainer.win_rate"]["default,2"] == trained.metrics["win_rate"]
    (ended,) = found["feedloom.trainer.rounds"].items()
    assert ended == (f"default,{'passed' if trained.gate.passed else 'rejected'}", 1)
    assert found["feedloom.trainer.round.duration"][ended[0]] > 0
    for name in ("learning_rate", "gradient_norm", "throughput"):
        assert found[f"feedloom.trainer.{name}"]["default"] > 0

    # TensorBoard.
    (folder,) = runs_of(tmp_path / "runs", "default")
    assert folder == record.folder
    read = EventAccumulator(str(folder))
    read.Reload()
    for name in ("loss", "learning_rate", "grad_norm"):
        assert len(read.Scalars(f"train/{name}")) == trained.steps, name
    # Not every small step holds some of each.
    for name in ("loss_sft", "loss_dpo", "loss_replay"):
        assert 0 < len(read.Scalars(f"train/{name}")) <= trained.steps, name
    for name in ("heldout_loss", "heldout_bits_per_byte", "bits_per_byte/Github"):
        assert [one.step for one in read.Scalars(f"eval/{name}")] == [0, trained.steps]
    assert [one.step for one in read.Scalars("eval/win_rate")] == [trained.steps]

    # The report.
    page = (folder / REPORT).read_text("utf-8")
    seen = Page(page)
    for title in ("Loss", "Loss of text", "Loss of pairs", "Learning rate", "Held-out text"):
        assert f'<desc id="chart-{titles(page).index(title)}-text">' in page
    assert "script" not in seen.tags
    assert "img" not in seen.tags
    assert NASTY in seen.text
    assert all(check.reason in seen.text for check in trained.gate.checks)
    assert all(f"Left out: {reason}" in seen.text for reason in curated.dropped)

    # What is published holds nobody's prompt.
    published = record.write(tmp_path)
    assert published == tmp_path / REPORT
    text = Page(published.read_text("utf-8")).text
    assert "script" not in text
    assert trained.safety_samples[0].prompt in text


def titles(page: str) -> list[str]:
    return re.findall(r'<title id="chart-\d+-title">([^<]*)</title>', page)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "default,empty"),
        (TrainingStopped(), "default,stopped"),
        (TrainingDiverged("the loss is nan"), "TrainingDiverged,default,failed"),
    ],
)
def test_a_round_that_makes_no_version_is_counted_too(
    error: Exception | None, outcome: str, tmp_path: Path, numbers: Numbers
) -> None:
    settings = settings_at(tmp_path)
    record = RoundRecord(
        settings, TrainerConfig(), Curated(), model="default", version="2", parent="1"
    )

    def round_of_nothing() -> None:
        with record:
            if error is not None:
                raise error

    if error is None:
        round_of_nothing()
    else:
        with pytest.raises(type(error)):
            round_of_nothing()
    found = {
        ",".join(sorted(where.split(","))): count
        for where, count in numbers()["feedloom.trainer.rounds"].items()
    }
    assert found == {outcome: 1}
    assert record.folder.parent == settings.home / "runs" / "default"
    assert record.folder.exists() == ("failed" in outcome)


def test_only_the_newest_runs_stay_and_only_runs_go(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    made = [
        new_run(tmp_path, model="a", version=f"{n}", now=now + timedelta(seconds=n))
        for n in range(12)
    ]
    other = new_run(tmp_path, model="b", version="1", now=now)
    mine = tmp_path / "a" / "notes"
    mine.mkdir()
    (tmp_path / "a" / "20200101T000000.000000Z-file").write_text("not a folder")
    assert runs_of(tmp_path, "a") == made
    assert prune(tmp_path, "a", keep=0) == []
    assert prune(tmp_path, "a", keep=3) == made[:9]
    assert runs_of(tmp_path, "a") == made[9:]
    assert other.is_dir()
    assert mine.is_dir()
    assert prune(tmp_path, "a", keep=20) == []
    assert prune(tmp_path, "nothing", keep=1) == []


def test_reports_that_show_what_is_to_be_forgotten_go(tmp_path: Path) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    runs = [
        new_run(tmp_path, model="a", version=str(n), now=start + timedelta(days=n))
        for n in range(3)
    ]
    for run, shown in zip(runs, (["r1", "r2"], ["r2"], []), strict=True):
        note_shown(run, shown)
        (run / REPORT).write_text("a page")
        (run / "events").write_text("curves")
    assert forget(tmp_path, "a", set()) == []
    assert forget(tmp_path, "a", {"r1", "r9"}) == [runs[0] / REPORT]
    assert [(run / REPORT).exists() for run in runs] == [False, True, True]
    assert all((run / "events").exists() for run in runs)
    assert forget(tmp_path, "a", {"r1"}) == []
    assert forget(tmp_path, "b", {"r2"}) == []


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc", "/etc"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = new_run(tmp_path / "runs", model=name, version=name, now=datetime.now(UTC))
    assert folder.resolve().parent.parent == (tmp_path / "runs").resolve()
    assert runs_of(tmp_path / "runs", name) == [folder]


def test_rounds_remove_what_is_older(home: Path, tmp_path: Path) -> None:
    settings = settings_at(home, logging_dir=tmp_path, save_total_limit=1, sft=False)
    first, *_ = recorded(settings)
    second, *_ = recorded(settings, version="3")
    assert runs_of(tmp_path, "default") == [second.folder]
    assert first.folder != second.folder
    assert (second.folder / REPORT).is_file()


def test_everything_in_a_report_is_text() -> None:
    page = render(
        Report(
            title=NASTY,
            facts=[(NASTY, NASTY)],
            charts=[
                Chart(
                    title=NASTY,
                    x_label=NASTY,
                    y_label=NASTY,
                    lines=[
                        Line(name=NASTY, points=[(0.0, 1.0), (1.0, 2.0)]),
                        Line(name="b", points=[(0.0, 1.0)]),
                    ],
                )
            ],
            tables=[Table(caption=NASTY, header=(NASTY, NASTY), rows=[[NASTY, NASTY]])],
            samples=[Sample(prompt=NASTY, before=NASTY, after=NASTY, wanted=NASTY)],
        )
    )
    found = Page(page)
    assert {"script", "img"}.isdisjoint(found.tags)
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert found.text.count(NASTY) >= 12
    assert "49" not in found.text
    # Nothing is fetched.
    assert {"src", "href", "xlink:href"}.isdisjoint(name for name, _ in found.attributes)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_a_log_of_transformers_becomes_charts() -> None:
    history = [
        {"step": 1, "loss": 3.0, "learning_rate": 0.1, "grad_norm": math.nan},
        {"step": 5, "eval_loss": 2.5},
        {"step": 5, "loss": 2.0, "learning_rate": 0.0, "grad_norm": math.inf},
        {"step": 5, "train_runtime": 1.0},
    ]
    loss, rate = charts_of(history)
    assert [line.name for line in loss.lines] == ["training", "held-out text"]
    assert loss.lines[0].points == [(1, 3.0), (5, 2.0)]
    assert loss.rows == [["1", "3", ""], ["5", "2", "2.5"]]
    assert "training from 3 to 2" in loss.description
    assert rate.title == "Learning rate"
    assert charts_of([]) == []


@pytest.mark.parametrize("points", [1, 2, 299, 300, 301, 5000])
def test_a_plot_stays_within_its_picture(points: int) -> None:
    values = [(float(step), math.sin(step / 50) * 1e-4) for step in range(points)]
    plot = plotted(
        Chart(title="t", x_label="x", y_label="y", lines=[Line(name="n", points=values)])
    )
    (line,) = plot.lines
    assert len(line) == min(points, 300)
    for x, y in line:
        assert 58 <= x <= 466
        assert 10 <= y <= 210
    assert 2 <= len(plot.y_ticks) <= 9


def test_ticks_are_round_and_enclose() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for low, high in ((4.51, 4.59), (-3.0, 1e6), (2.0, 2.0), (0.0, 0.0), (1e-9, 3e-9)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 9


def test_what_is_thinned_keeps_its_ends_and_mean() -> None:
    points = [(float(n), float(n % 7)) for n in range(1000)]
    found = thinned(points, 50)
    assert len(found) == 50
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert sum(y for _, y in found) / 50 == pytest.approx(3.0, abs=0.3)


def test_dynamic_names_reach_the_settings(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "gradient_accumulation_steps": 4,
        "per_device_eval_batch_size": 2,
        "max_train_seconds": 0,
        "save_total_limit": 5,
    }
    settings = settings_at(tmp_path, logging_dir=tmp_path / "elsewhere", **values)
    assert values.items() <= settings.trainer.config.items()
    assert settings.runs == tmp_path / "elsewhere"
    assert settings_at(tmp_path).runs == tmp_path / "runs"
