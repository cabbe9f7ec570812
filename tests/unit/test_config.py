"""Dynamic configuration: the catalogue, the fold, the watcher, the command."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from infra.contracts import catalogue, codec
from infra.contracts.bus import RecordPosition
from infra.contracts.codec import Headers
from infra.contracts.config_keys import (
    CATALOGUE,
    ConfigState,
    InvalidSetting,
    Value,
    as_json,
    parse,
    parse_value,
    setting,
)
from infra.contracts.config_sections import (
    RolloutConfig,
    SamplingConfig,
    TenantConfig,
    WorkerConfig,
)
from infra.contracts.errors import ContractError, FatalError
from infra.contracts.events.generation import SamplingParameters
from infra.contracts.events.platform import ConfigChanged
from infra.registry import commands
from infra.registry.config import ConfigOvertaken, ConfigWatcher, publish_config
from infra.testing import InMemoryBus, InMemoryPublisher

TOPIC = catalogue.CONFIG.name


def change(key: str, value: str, revision: int = 1, actor: str = "") -> ConfigChanged:
    return ConfigChanged(key=key, value=value, revision=revision, changed_at_ms=0, actor=actor)


# The catalogue.


def test_the_catalogue_is_what_was_agreed() -> None:
    assert {key: entry.default for key, entry in CATALOGUE.items()} == {
        "worker.chunk_interval_s": 0.05,
        "worker.chunk_max_tokens": 16,
        "worker.max_inflight_tokens": 65_536,
        "worker.max_waiting": 32,
        "worker.log_level": "INFO",
        "batch.enabled": True,
        "batch.ttft_factor": 1.2,
        "batch.ttft_slack_s": 0.008,
        "batch.max_kv_usage": 0.9,
        "trainer.min_examples": 32,
        "trainer.max_wait_s": 3600.0,
        "trainer.drift_drop": 0.1,
        "trainer.drift_window": 100,
        "trainer.num_train_epochs": 3,
        "trainer.per_device_train_batch_size": 16,
        "trainer.gradient_accumulation_steps": 1,
        "trainer.per_device_eval_batch_size": 32,
        "trainer.max_train_seconds": 1800.0,
        "trainer.learning_rate": 3e-4,
        "trainer.warmup_steps": 20,
        "trainer.weight_decay": 0.01,
        "trainer.max_grad_norm": 1.0,
        "trainer.bf16": True,
        "trainer.fp16": False,
        "trainer.save_total_limit": 20,
        "trainer.replay_fraction": 0.5,
        "trainer.adapt_replay": True,
        "trainer.ptx_weight": 1.0,
        "trainer.sft": True,
        "trainer.dpo_weight": 0.1,
        "trainer.kto_weight": 0.1,
        "trainer.beta": 0.1,
        "trainer.lora_rank": 16,
        "trainer.max_principal_share": 0.1,
        "trainer.max_tenant_share": 1.0,
        "trainer.heldout_fraction": 0.1,
        "trainer.max_forgetting": 0.01,
        "trainer.min_preference_accuracy": 0.5,
        "trainer.min_win_rate": 0.5,
        "trainer.max_violations": 0,
        "rollout.strategy": "direct",
        "rollout.weight": 0.1,
        "rollout.unit": "user",
        "rollout.auto": True,
        "rollout.metric": "rating",
        "rollout.confidence": 0.95,
        "rollout.min_samples": 100,
        "rollout.min_lift": 0.0,
        "rollout.effect": 0.05,
        "rollout.max_error_rise": 0.02,
        "rollout.max_ttft_rise": 0.25,
        "rollout.max_itl_rise": 0.25,
        "rollout.max_length_drift": 0.5,
        "rollout.max_edit_rise": 0.1,
        "rollout.per_user": 5,
        "rollout.max_hours": 336.0,
        "rollout.at_end": "hold",
        "sampling.max_tokens": 128,
        "sampling.temperature": 0.7,
        "sampling.top_p": 1.0,
        "sampling.top_k": 0,
        "sampling.repetition_penalty": 1.0,
        "tenants.<name>.weight": 1.0,
        "tenants.<name>.max_inflight_requests": None,
        "tenants.<name>.max_inflight_tokens": None,
        "tenants.<name>.max_tokens": None,
        "tenants.<name>.requests_per_minute": None,
        "tenants.<name>.tokens_per_minute": None,
        "tenants.<name>.concurrent_requests": None,
        "gateway.max_lag": 10_000,
        "tenants.<name>.rollout": "split",
    }
    for entry in CATALOGUE.values():
        assert entry.description.endswith(".")
        assert entry.accepts.startswith(
            ("true or false", "a number from", "a whole number from", "one of")
        )


def test_sampling_defaults_are_those_of_the_event() -> None:
    event = SamplingParameters()
    for field in msgspec.structs.fields(SamplingConfig):
        assert field.default == getattr(event, field.name)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("worker.chunk_interval_s", "0", 0.0),
        ("worker.max_waiting", " 7 ", 7),
        ("batch.enabled", "false", False),
        ("batch.max_kv_usage", "1", 1.0),
        ("tenants.acme.weight", "2.5", 2.5),
        ("tenants.acme.eu.max_inflight_requests", "3", 3),
        ("tenants.default.max_inflight_tokens", "4096", 4096),
        ("worker.max_waiting", "null", None),
        ("worker.log_level", '"DEBUG"', "DEBUG"),
        ("tenants.acme.rollout", '"candidate"', "candidate"),
        ("rollout.min_lift", "-0.5", -0.5),
        ("workers.host-1.example.com-77-ab12.max_waiting", "3", 3),
    ],
)
def test_a_value_is_json_of_the_settings_type(key: str, text: str, value: Value | None) -> None:
    found = parse(key, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("worker.max_waitin", "1", r"did you mean worker\.max_waiting\?"),
        ("worker", "1", "no setting 'worker'"),
        ("tenants..weight", "1", "no setting"),
        ("tenants.acme.weigth", "1", r"did you mean tenants\.<name>\.weight"),
        ("tenants." + "x" * 300 + ".weight", "1", "no setting"),
        ("tenants.a\nb.weight", "1", "no setting"),
        ("worker.max_waiting", "0", r"a whole number from 1 to 100000.*'0' is not"),
        ("worker.max_waiting", "1.5", "whole number"),
        ("worker.max_waiting", "true", "whole number"),
        ("worker.max_waiting", '"7"', "whole number"),
        ("worker.max_waiting", "", "whole number"),
        ("batch.enabled", "0", "true or false"),
        ("batch.max_kv_usage", "1.01", "a number from 0.0 to 1.0"),
        ("batch.ttft_factor", "1e999", "a number from"),
        ("batch.ttft_factor", "NaN", "a number from"),
        ("tenants.a.weight", "\udcff", "a number from"),
        ("worker.log_level", '"LOUD"', "one of DEBUG, INFO, WARNING, ERROR, or null"),
        ("worker.log_level", "DEBUG", "one of DEBUG, INFO"),
        ("worker.log_level", "10", "one of DEBUG, INFO"),
        ("workers..max_waiting", "1", "no setting"),
        ("workers.max_waiting", "1", "no setting"),
        ("workers.w-1.enabled", "true", "no setting"),
        ("workers.w-1.max_waitin", "1", r"did you mean workers\.<worker-id>\.max_waiting\?"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(key: str, text: str, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says) as caught:
        parse(key, text)
    assert isinstance(caught.value, ContractError)


@pytest.mark.parametrize(
    ("key", "text", "json_text"),
    [
        ("worker.log_level", "DEBUG", '"DEBUG"'),
        ("worker.log_level", ' "DEBUG"', ' "DEBUG"'),
        ("worker.log_level", "null", "null"),
        ("tenants.acme.rollout", "nobody", '"nobody"'),
        ("worker.max_waiting", "many", "many"),
    ],
)
def test_text_may_be_typed_without_quotes(key: str, text: str, json_text: str) -> None:
    assert as_json(key, text) == json_text
    if text not in ("nobody", "many", "null"):
        assert parse_value(key, text) == "DEBUG"
    with pytest.raises(InvalidSetting):
        as_json("worker.nothing", text)


@given(st.text(max_size=30), st.one_of(st.text(max_size=20), st.floats().map(str)))
def test_no_text_does_more_than_be_refused(key: str, text: str) -> None:
    for each in (key, f"tenants.{key}.weight", *CATALOGUE):
        try:
            value = parse(each, text)
        except InvalidSetting:
            continue
        assert value is None or parse(each, json.dumps(value)) == value
        assert value is None or parse_value(each, text) == value


# The fold.

KEYS = ("worker.max_waiting", "tenants.a.max_inflight_requests", "tenants.default.weight")
CHANGES = st.lists(
    st.builds(
        change,
        st.sampled_from(KEYS),
        st.sampled_from(["1", "2", "3", "null", "0", "oops"]),
        st.integers(0, 6),
        st.sampled_from("xy"),
    ),
    max_size=30,
)


def applied(state: ConfigState, event: ConfigChanged) -> bool:
    try:
        return state.apply(event)
    except InvalidSetting:
        return False


@given(CHANGES)
def test_the_last_valid_change_of_the_highest_revision_stands(events: list[ConfigChanged]) -> None:
    state = ConfigState()
    for event in events:
        applied(state, event)
    for key in KEYS:
        own = [event for event in events if event.key == key]
        valid = [event for event in own if event.value not in ("0", "oops")]
        standing = max(valid, key=lambda event: event.revision, default=None)
        if standing is not None:
            top = [event for event in valid if event.revision == standing.revision]
            standing = top[-1]
        assert state.change(key) == standing
        text = standing.value if standing else "null"
        assert state.value(key) == (setting(key).default if text == "null" else int(text))
        assert all(state.next_revision(key) > event.revision for event in own)


@given(CHANGES)
def test_a_compacted_topic_tells_the_same(events: list[ConfigChanged]) -> None:
    """Compaction keeps the last record of a key. Honest writers write ever higher revisions."""
    honest = []
    revisions = dict.fromkeys(KEYS, 0)
    for event in events:
        if event.value not in ("0", "oops"):
            revisions[event.key] += event.revision // 3  # a race gives one revision twice
            honest.append(msgspec.structs.replace(event, revision=revisions[event.key]))
    whole, compacted = ConfigState(), ConfigState()
    for event in honest:
        whole.apply(event)
    for event in {event.key: event for event in honest}.values():
        compacted.apply(event)
    assert whole.changes() == compacted.changes()
    assert [whole.value(key) for key in KEYS] == [compacted.value(key) for key in KEYS]


@given(CHANGES)
def test_a_change_applied_again_changes_nothing(events: list[ConfigChanged]) -> None:
    state = ConfigState()
    for event in events:
        applied(state, event)
        assert not applied(state, event)


def test_a_tenant_falls_back_to_the_default_tenant_and_that_to_the_catalogue() -> None:
    state = ConfigState()
    assert state.tenant("acme") is not None
    state.apply(change("tenants.default.weight", "2"))
    state.apply(change("tenants.default.max_inflight_requests", "8"))
    state.apply(change("tenants.acme.weight", "5"))
    assert state.tenant("acme") == TenantConfig(weight=5.0, max_inflight_requests=8)
    assert state.tenant("other") == TenantConfig(weight=2.0, max_inflight_requests=8)
    assert state.tenant(None) == state.tenant("default") == state.tenant("other")
    assert state.value("tenants.acme.max_inflight_requests") == 8
    assert state.value("tenants.acme.max_inflight_tokens") is None
    state.apply(change("tenants.acme.weight", "null", 2))
    assert state.tenant("acme") == state.tenant("other")


def test_a_worker_goes_by_its_own_settings_then_everybodys_then_its_static_ones() -> None:
    state = ConfigState({"worker.chunk_max_tokens": 8})
    name = "host-1.example.com-77-ab12cd"
    assert state.for_worker(name) == state.worker == WorkerConfig(chunk_max_tokens=8)
    state.apply(change("worker.chunk_max_tokens", "4"))
    state.apply(change(f"workers.{name}.max_waiting", "3"))
    state.apply(change(f"workers.{name}.log_level", '"DEBUG"'))
    state.apply(change(f"workers.{name}.chunk_max_tokens", "2"))
    own = WorkerConfig(chunk_max_tokens=2, max_waiting=3, log_level="DEBUG")
    assert state.for_worker(name) == own
    assert state.for_worker("host-1") == state.for_worker(None) == state.worker
    assert state.worker == WorkerConfig(chunk_max_tokens=4)
    assert state.value(f"workers.{name}.chunk_max_tokens") == 2
    assert state.value("workers.host-1.chunk_max_tokens") == 4
    assert state.value("workers.host-1.max_waiting") == 32
    state.apply(change(f"workers.{name}.chunk_max_tokens", "null", 2))
    assert state.for_worker(name).chunk_max_tokens == 4


def test_the_other_sections_are_read_typed() -> None:
    state = ConfigState()
    assert (state.rollout, state.sampling) == (RolloutConfig(), SamplingConfig())
    state.apply(change("rollout.strategy", '"canary"'))
    state.apply(change("sampling.temperature", "0"))
    state.apply(change("tenants.acme.rollout", '"stable"'))
    assert state.rollout == RolloutConfig(strategy="canary")
    assert state.sampling == SamplingConfig(temperature=0.0)
    assert state.tenant("acme").rollout == "stable"
    assert state.tenant("other").rollout == "split"


def test_the_newest_refusal_of_a_key_is_remembered_until_something_newer_is_valid() -> None:
    state, key = ConfigState(), "worker.max_waiting"
    applied(state, change(key, "5", 1))
    for text, revision in (("0", 4), ("-1", 3), ("0", 2)):
        assert not applied(state, change(key, text, revision))
    applied(state, change("nothing.known", "1"))
    assert state.value(key) == 5
    refusal = state.refusal(key)
    assert refusal is not None
    assert refusal.event == change(key, "0", 4)
    assert "a whole number from 1" in refusal.why
    assert [each.event.key for each in state.refusals()] == ["nothing.known", key]
    assert applied(state, change(key, "6", 3))
    assert state.refusal(key) == refusal
    assert applied(state, change(key, "7", 5))
    assert state.refusal(key) is None
    assert not applied(state, change(key, "0", 4))
    assert state.refusal(key) is None
    applied(state, change(key, "0", 6))
    state.forget(key)
    assert state.refusal(key) is None


def test_sections_are_read_typed_and_over_the_process_own_defaults() -> None:
    state = ConfigState({"worker.max_inflight_tokens": 1000, "batch.enabled": False})
    assert state.worker.max_inflight_tokens == 1000
    assert not state.batch.enabled
    state.apply(change("worker.max_inflight_tokens", "2000"))
    state.apply(change("batch.enabled", "true"))
    assert (state.worker.max_inflight_tokens, state.batch.enabled) == (2000, True)
    state.apply(change("worker.max_inflight_tokens", "null", 2))
    assert state.forget("batch.enabled")
    assert not state.forget("batch.enabled")
    assert (state.worker.max_inflight_tokens, state.batch.enabled) == (1000, False)
    with pytest.raises(InvalidSetting):
        ConfigState({"worker.max_inflight_tokens": 0})


def test_after_a_tombstone_any_revision_is_new() -> None:
    state = ConfigState()
    state.apply(change("worker.max_waiting", "5", 7))
    state.forget("worker.max_waiting")
    assert state.next_revision("worker.max_waiting") == 1
    assert state.apply(change("worker.max_waiting", "6", 1))


# The watcher.


def put(bus: InMemoryBus, event: ConfigChanged, key: str | None = None) -> None:
    bus.publisher().publish(TOPIC, key=(key or event.key).encode(), value=codec.encode(event))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[tuple[str, str], int]]]:
    """How many changes were refused, by setting and reason, as a meter has counted them."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    counter = provider.get_meter("feedloom").create_counter("feedloom.config.refused")
    monkeypatch.setattr("infra.registry.config.CONFIG_REFUSED", counter)

    def read() -> dict[tuple[str, str], int]:
        data = reader.get_metrics_data()
        assert data is not None
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        return {
            (point.attributes["feedloom.setting"], point.attributes["feedloom.reason"]): point.value
            for point in metric.data.data_points
        }

    yield read
    provider.shutdown()


def test_a_watcher_says_what_changed_and_warns_of_the_rest(
    caplog: pytest.LogCaptureFixture, refused: Callable[[], dict[tuple[str, str], int]]
) -> None:
    bus = InMemoryBus()
    watcher = ConfigWatcher(bus)
    put(bus, change("worker.max_waiting", "5", 2))
    put(bus, change("worker.max_waiting", "6", 1))  # stale
    put(bus, change("worker.max_waiting", "0", 3))
    put(bus, change("worker.min_waiting", "1"))
    put(bus, change("worker.max_waiting", "9", 9), key="elsewhere")
    bus.publisher().publish(TOPIC, key=b"worker.max_waiting", value=b"{")
    put(bus, change("batch.enabled", "false"))
    with caplog.at_level(logging.WARNING):
        assert watcher.poll(0) == ["worker.max_waiting", "batch.enabled"]
    assert watcher.state.worker.max_waiting == 5
    warnings = [record.getMessage() for record in caplog.records]
    assert refused() == {
        ("worker.max_waiting", "invalid"): 1,
        ("unknown", "invalid"): 2,
        ("worker.max_waiting", "unreadable"): 1,
    }
    assert [text.split(":")[0] for text in warnings] == [
        f"setting refused on {TOPIC}/0 at 2",
        f"setting refused on {TOPIC}/0 at 3",
        f"setting refused on {TOPIC}/0 at 4",
        f"unreadable record on {TOPIC}/0 at 5",
    ]
    bus.publisher().publish(TOPIC, key=b"worker.max_waiting", value=None)
    bus.publisher().publish(TOPIC, key=b"never.set", value=None)
    assert watcher.poll(0) == ["worker.max_waiting"]
    assert watcher.poll(0) == []
    assert watcher.state.worker.max_waiting == 32
    watcher.close()


def test_what_is_published_reaches_every_watcher_and_counts_on() -> None:
    bus = InMemoryBus()
    early = ConfigWatcher(bus)
    for revision, text in enumerate(["5", "null", "6"], start=1):
        event = publish_config(
            bus.publisher(), early, "worker.max_waiting", text, now_ms=7, actor="ann", reason="r"
        )
        assert (event.revision, event.actor, event.reason) == (revision, "ann", "r")
    late = ConfigWatcher(bus)
    late.catch_up(5)
    assert early.state.worker.max_waiting == late.state.worker.max_waiting == 6
    record = bus.records(TOPIC)[0]
    assert record.key == b"worker.max_waiting"
    assert codec.header(record.headers, "ce_type") == "feedloom.ConfigChanged"


def test_what_is_not_valid_is_not_published() -> None:
    bus = InMemoryBus()
    with pytest.raises(InvalidSetting):
        publish_config(bus.publisher(), ConfigWatcher(bus), "batch.enabled", "1", now_ms=0)
    assert bus.records(TOPIC) == []


class _Rival(InMemoryPublisher):
    """Somebody else's change of the same key comes just before or after each of ours."""

    def __init__(self, bus: InMemoryBus, event: ConfigChanged, *, before: bool) -> None:
        super().__init__(bus)
        self._rival, self._before = event, before

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        if topic != TOPIC:
            return super().publish(topic, key=key, value=value, headers=headers)
        ours = (value, headers)
        theirs: tuple[bytes | None, Headers] = (codec.encode(self._rival), ())
        futures = [
            super(_Rival, self).publish(topic, key=key, value=each, headers=head)
            for each, head in ([theirs, ours] if self._before else [ours, theirs])
        ]
        return futures[1 if self._before else 0]


@pytest.mark.parametrize(("revision", "before"), [(1, False), (2, True), (2, False)])
def test_a_writer_that_was_overtaken_is_told(revision: int, before: bool) -> None:
    bus = InMemoryBus()
    rival = change("worker.max_waiting", "9", revision)
    with pytest.raises(ConfigOvertaken, match="is now 9"):
        publish_config(
            _Rival(bus, rival, before=before),
            ConfigWatcher(bus),
            "worker.max_waiting",
            "5",
            now_ms=0,
        )


class _LaggingBus(InMemoryBus):
    """Promises a record that never comes."""

    def end_offsets(self, topic: str) -> dict:  # type: ignore[type-arg]
        return {position: end + 1 for position, end in super().end_offsets(topic).items()}


def test_catching_up_gives_up_in_the_end() -> None:
    watcher = ConfigWatcher(_LaggingBus())
    with pytest.raises(FatalError, match="could not be read"):
        watcher.catch_up(0)


# The command.


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> InMemoryBus:
    made = InMemoryBus()
    monkeypatch.setattr("infra.kafka.bus.connect", lambda settings: made)
    return made


def run(arguments: Sequence[str]) -> Result:
    return CliRunner().invoke(commands.config, arguments, catch_exceptions=True)


def test_set_get_list_and_unset(bus: InMemoryBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    assert run(["get", "worker.max_waiting"]).output == "32\n"
    assert run(["get", "tenants.acme.max_inflight_tokens"]).output == "null\n"
    said = run(["set", "tenants.acme.weight", "2", "--reason", "they pay"]).output
    assert said == "tenants.acme.weight is 2.0 (revision 1)\n"
    run(["set", "worker.max_waiting", "8"])
    assert run(["get", "worker.max_waiting"]).output == "8\n"
    listed = run(["list"]).output.splitlines()
    assert sum(line.startswith("* ") for line in listed) == 2
    (at,) = [index for index, line in enumerate(listed) if "tenants.acme.weight" in line]
    assert "set by ann, revision 1: they pay" in listed[at + 1]
    said = run(["unset", "worker.max_waiting"]).output
    assert said == "worker.max_waiting is 32 by default (revision 2)\n"
    assert not any(line.startswith("* worker") for line in run(["list"]).output.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "worker.max_waiting", "-1"],
        ["set", "worker.nothing", "1"],
        ["get", "worker.nothing"],
        ["unset", "worker.nothing"],
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    bus: InMemoryBus, arguments: list[str]
) -> None:
    assert isinstance(run(arguments).exception, InvalidSetting)
    assert bus.records(TOPIC) == []
