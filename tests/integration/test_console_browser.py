"""The operators' console in a real browser, over a gateway on the bus in memory."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackReceived
from infra.contracts.events.generation import GenerationRequest
from infra.contracts.events.model import (
    GateCheck,
    GateDecision,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
    RolloutChanged,
)
from infra.contracts.events.platform import ConfigChanged
from infra.kafka.bus import KafkaBus
from infra.kafka.dead_letters import DeadLetters, blank_spans
from infra.registry.client import read_registry
from infra.settings import GatewaySettings, KafkaSettings
from infra.testing import InMemoryBus
from producers.gateway.app import create_app
from producers.gateway.console.desk import Console
from producers.gateway.service import GatewayService
from producers.gateway.views import Views
from tests.gateway import KnownKeys, Script, ScriptedWorker, principal, publish, seed, served

KEY, LIMITED_KEY = "fl-operator-of-the-night", "fl-operator-without-more"
CHROMIUM_MISSING = (
    "no chromium on this machine, which the console's tests drive: "
    "apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core"
)
WAIT_MS = 15_000
E = TypeVar("E", bound=Event)


def version(name: str, *, passed: bool = True) -> ModelVersionPublished:
    """One that was trained on feedback, and its gate's word on it."""
    check = GateCheck(
        name="win_rate",
        passed=passed,
        value=0.61 if passed else 0.41,
        low=0.55 if passed else 0.33,
        high=0.67 if passed else 0.49,
        limit=0.5,
        samples=240,
        reason="answers are preferred to the parent's" if passed else "answers are worse",
    )
    return ModelVersionPublished(
        model="default",
        version=name,
        kind="full",
        artifact_uri="file:///nowhere",
        manifest=(),
        created_at_ms=time.time_ns() // 1_000_000,
        metrics={
            "heldout_loss_after": 2.1,
            "heldout_bits_per_byte_after": 0.9123,
            "win_rate": check.value,
        },
        gate=GateDecision(passed=passed, confidence=0.95, checks=(check,)),
        lineage=Lineage(
            parent="1",
            objective="sft+dpo",
            feedback=(OffsetRange(topic=catalogue.EXAMPLES.name, partition=0, start=0, end=64),),
            feedback_examples=64,
            replay_fraction=0.5,
            steps=120,
        ),
    )


def write_spans(directory: Path, request_id: str) -> None:
    """Two spans of one trace."""
    start = time.time_ns()
    rows = [
        ("gateway", "send generation.requests", "a" * 16, None, 0, 40),
        ("worker", "chat default", "b" * 16, "a" * 16, 6, 38),
    ]
    lines = [
        json.dumps(
            {
                "service": service,
                "name": name,
                "kind": "internal",
                "trace_id": "c" * 32,
                "span_id": span,
                "parent_id": parent,
                "start_ns": start + first * 1_000_000,
                "end_ns": start + last * 1_000_000,
                "status": "unset",
                "attributes": {"feedloom.request.id": request_id},
                "links": [],
            }
        )
        for service, name, span, parent, first, last in rows
    ]
    (directory / "spans.jsonl").write_text("\n".join(lines) + "\n")


@dataclass
class Platform:
    """A bus with versions on it, a worker that answers by words, and a gateway that listens."""

    bus: InMemoryBus
    worker: ScriptedWorker
    spans: Path
    url: str = ""
    hold: threading.Event = field(default_factory=threading.Event)
    """While it is not set, an answer to a question with "wait" stops after its first word."""

    def events(self, topic: str, kind: type[E]) -> list[E]:
        return [codec.decode(record.value or b"", kind) for record in self.bus.records(topic)]

    def last(self, topic: str, kind: type[E], wanted: Callable[[E], bool]) -> E:
        """The newest event that is wanted, which the page says was written."""
        return [event for event in self.events(topic, kind) if wanted(event)][-1]


def _script(hold: threading.Event) -> Callable[[GenerationRequest], Script]:
    def script(request: GenerationRequest) -> Script:
        asked = request.messages[-1].content if request.messages else request.prompt
        waits = "wait" in asked

        def before(index: int) -> None:
            if waits and index == 1:
                hold.wait(60)

        words = ("An", " answer", " to:", *(f" {word}" for word in asked.split()))
        return Script(words, before_piece=before)

    return script


@contextmanager
def running_platform(spans: Path) -> Iterator[Platform]:
    with ExitStack() as stack:
        bus = InMemoryBus()
        seed(bus)
        for name, passed in (("2", True), ("3", False)):
            publish(bus, catalogue.REGISTRY.name, f"default/{name}", version(name, passed=passed))
        hold = threading.Event()
        worker = ScriptedWorker(bus, script=_script(hold))
        stack.callback(worker.close)
        stack.callback(hold.set)
        platform = Platform(bus, worker, spans, hold=hold)
        platform.url = stack.enter_context(gateway_on(bus, spans))
        yield platform


@contextmanager
def gateway_on(bus: Bus, spans: Path, *, dead_letters: DeadLetters | None = None) -> Iterator[str]:
    """A gateway that listens; its address."""
    with ExitStack() as stack:
        keys = KnownKeys(
            {KEY: principal("acme"), LIMITED_KEY: principal("acme", "caller", "operator")}
        )
        settings = GatewaySettings(keep_alive_s=0.5)
        views = Views(bus)
        stack.callback(views.close)
        service = GatewayService(bus, views, settings, source="gateway-test")
        console = Console(
            bus, service, source="gateway-test", span_directory=spans, dead_letters=dead_letters
        )
        app = create_app(bus, service, keys, settings, source="gateway-test", console=console)
        yield stack.enter_context(served(app))


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with running_platform(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.fail(CHROMIUM_MISSING)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 800})
    made.set_default_timeout(WAIT_MS)
    yield made
    made.close()


@pytest.fixture
def page(platform: Platform, context: BrowserContext) -> Iterator[Page]:
    """The console's page; any complaint of the browser fails the test, a refused load too."""
    expect.set_options(timeout=WAIT_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on(
        "console",
        lambda said: said.type in ("error", "warning") and complaints.append(said.text),
    )
    page.on(
        "request",
        lambda request: (
            request.url.startswith((platform.url, "data:"))
            or complaints.append(f"request to {request.url}")
        ),
    )
    page.goto(f"{platform.url}/console")
    yield page
    expected = ("status of 401", "status of 403", "status of 400", "status of 409")
    assert [said for said in complaints if not any(code in said for code in expected)] == []


def sign_in(page: Page, key: str = KEY) -> None:
    page.get_by_label("API key or token").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#shell")).to_be_visible()


def go(page: Page, panel: str) -> None:
    page.get_by_role("link", name=panel).click()
    expect(page.get_by_role("heading", name=panel, exact=True, level=1)).to_be_visible()


def give_reason(page: Page, yes: str, reason: str) -> None:
    page.get_by_label("Reason, for whoever reads it later").fill(reason)
    page.locator("#confirm").get_by_role("button", name=yes, exact=True).click()


def test_a_key_opens_the_console_and_is_kept_in_the_tab_alone(
    page: Page, platform: Platform
) -> None:
    page.get_by_label("API key or token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert").first).to_have_text("the API key is not valid")
    sign_in(page)
    expect(page.locator("#strip")).to_contain_text("1 ready")
    page.reload()
    expect(page.locator("#shell")).to_be_visible()
    assert page.evaluate("JSON.stringify(localStorage) + document.cookie") == "{}"
    assert page.context.cookies() == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("#signin")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    other = page.context.new_page()
    other.goto(f"{platform.url}/console/")
    expect(other.locator("#signin")).to_be_visible()


def test_an_answer_streams_in_and_is_rated_and_edited(page: Page, platform: Platform) -> None:
    sign_in(page)
    message = page.get_by_label("Message", exact=True)
    expect(message).to_be_focused()
    message.fill("<b>bold</b> wait for it")
    message.press("Control+Enter")
    answer = page.locator(".answer").last
    # The first word is there while the rest has not been written yet.
    expect(answer).to_have_text("An")
    platform.hold.set()
    expect(answer).to_have_text("An answer to: <b>bold</b> wait for it")
    assert page.locator(".log b").count() == 0
    figures = page.locator(".figures").last
    expect(figures).to_contain_text("Finishstop")
    expect(figures).to_contain_text("Tokens7")
    expect(figures).to_contain_text("Version1")
    page.get_by_role("button", name="Thumbs up").click()
    expect(page.locator(".said.done")).to_have_text("Thumbs up sent")
    (asked,) = platform.worker.requests
    (up,) = platform.events(catalogue.FEEDBACK.name, FeedbackReceived)
    assert (up.request_id, up.rating) == (asked.request_id, "up")
    assert up.principal == "acme/somebody"
    page.get_by_role("button", name="Edit the answer").click()
    page.get_by_label("The answer as it should be").fill("Better")
    page.get_by_role("button", name="Send edit").click()
    expect(page.locator(".said.done")).to_have_text("Edit sent")
    edit = platform.last(
        catalogue.FEEDBACK.name, FeedbackReceived, lambda one: one.edited_text is not None
    )
    assert (edit.request_id, edit.edited_text) == (asked.request_id, "Better")
    message.fill("and again")
    message.press("Control+Enter")
    expect(page.locator(".answer").last).to_have_text("An answer to: and again")
    said = platform.worker.requests[-1].messages
    assert [one.role for one in said] == ["user", "assistant", "user"]


def test_escape_stops_an_answer_for_the_worker_too(page: Page, platform: Platform) -> None:
    sign_in(page)
    page.get_by_label("Message", exact=True).fill("wait")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer").last).to_have_text("An")
    page.keyboard.press("Escape")
    expect(page.locator(".figures").last).to_contain_text("stopped here")
    (asked,) = platform.worker.requests
    deadline = time.monotonic() + 15
    while asked.request_id not in platform.worker.cancelled and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert asked.request_id in platform.worker.cancelled
    expect(page.get_by_role("button", name="Thumbs up")).to_be_enabled()


def test_a_key_that_may_not_rate_says_so(page: Page) -> None:
    sign_in(page, LIMITED_KEY)
    page.get_by_label("Message", exact=True).fill("hello")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".said")).to_contain_text("lacks the role feedback")
    expect(page.get_by_role("button", name="Thumbs up")).to_be_disabled()


def test_a_canary_is_started_by_slider_and_a_stale_page_is_refused(
    page: Page, platform: Platform, context: BrowserContext
) -> None:
    sign_in(page)
    go(page, "Rollout")
    late = context.new_page()
    late.goto(f"{platform.url}/console/")
    sign_in(late)
    go(late, "Rollout")
    expect(late.locator(".now")).to_contain_text("no candidate")
    # Version 3 was refused by its gate, version 1 is stable: neither can be tried.
    choices = page.get_by_label("Version", exact=True).locator("option")
    expect(choices).to_have_text(["2 (gated, full)"])
    page.get_by_label("Canary, share of units").fill("25")
    expect(page.get_by_label("Canary, per cent")).to_have_value("25")
    page.get_by_role("button", name="Start canary…").click()
    # The other page is about to decide on what it still sees.
    late.get_by_role("button", name="Pin…").click()
    expect(late.locator("#confirm")).to_be_visible()
    give_reason(page, "Start canary", "try it at night")
    expect(page.locator(".now")).to_contain_text("canary, 25.0 %")
    expect(page.get_by_role("button", name="Change canary…")).to_be_visible()
    changed = platform.events(catalogue.ROLLOUTS.name, RolloutChanged)[-1]
    assert (changed.candidate, changed.candidate_weight, changed.unit) == ("2", 0.25, "user")
    assert (changed.actor, changed.reason) == ("acme/somebody", "try it at night")
    give_reason(late, "Pin", "quiet night")
    expect(late.get_by_role("alert").filter(has_text="moved on")).to_contain_text(
        "revision 2 by acme/somebody"
    )
    expect(late.locator(".now")).to_contain_text("canary, 25.0 %")
    assert platform.events(catalogue.ROLLOUTS.name, RolloutChanged)[-1] == changed
    page.get_by_role("button", name="Roll back…").click()
    give_reason(page, "Roll back", "worse")
    expect(page.locator(".now")).to_contain_text("no candidate")
    assert platform.events(catalogue.ROLLOUTS.name, RolloutChanged)[-1].rolled_back == ("2",)


def test_a_setting_is_changed_refused_and_reverted(page: Page, platform: Platform) -> None:
    sign_in(page)
    go(page, "Configuration")
    page.keyboard.press("/")
    expect(page.get_by_label("Filter")).to_be_focused()
    page.get_by_label("Filter").fill("max_waiting")
    page.get_by_role("button", name="Edit worker.max_waiting").click()
    value = page.get_by_label("Value of worker.max_waiting")
    expect(value).to_have_value("32")
    for text, reason in (("64", "more of them"), ("0", "none")):
        value.fill(text)
        page.get_by_role("button", name="Set…", exact=True).click()
        give_reason(page, "Change", reason)
        if text == "64":
            expect(page.locator("tr.set")).to_contain_text("more of them")
    expect(page.get_by_role("alert").filter(has_text="worker.max_waiting takes")).to_be_visible()
    value.fill("128")
    page.get_by_role("button", name="Set…", exact=True).click()
    give_reason(page, "Change", "still more")
    page.get_by_role("button", name="Revert to revision 1").click()
    give_reason(page, "Change", "too many")
    expect(page.locator("tr.set")).to_contain_text("revert to revision 1: too many")
    changes = platform.events(catalogue.CONFIG.name, ConfigChanged)
    assert [(one.value, one.revision) for one in changes] == [("64", 1), ("128", 2), ("64", 3)]
    assert {one.actor for one in changes} == {"acme/somebody"}


def test_a_dead_letter_is_shown_when_asked_and_dropped(page: Page, platform: Platform) -> None:
    headers = codec.dead_letter_headers(
        [],
        topic=catalogue.REQUESTS.name,
        partition=3,
        offset=7,
        error=ValueError("no <i>prompt</i> in it"),
    )
    publisher = platform.bus.publisher()
    publisher.publish(
        f"{catalogue.REQUESTS.name}.dlq", key=b"k", value=b'{"secret": "words"}', headers=headers
    )
    sign_in(page)
    go(page, "Dead letters")
    row = page.get_by_role("row").filter(has_text="ValueError")
    expect(row).to_contain_text("no <i>prompt</i> in it")
    expect(page.locator("body")).not_to_contain_text("secret")
    letter = f"{catalogue.REQUESTS.name}/0"
    page.get_by_role("button", name=f"Show {letter}").click()
    expect(page.locator("#sheet .value")).to_contain_text('"secret": "words"')
    page.keyboard.press("Escape")
    page.get_by_label(f"Select {letter}").check()
    page.get_by_role("button", name="Drop 1…").click()
    give_reason(page, "Drop", "a test")
    expect(page.get_by_role("cell").filter(has_text="No open dead letter")).to_be_visible()
    assert len(platform.bus.records(f"{catalogue.REQUESTS.name}.dlq")) == 2


def test_figures_versions_and_traces_are_shown(page: Page, platform: Platform) -> None:
    sign_in(page)
    page.get_by_label("Message", exact=True).fill("one two three")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".figures").last).to_contain_text("Finishstop")
    (asked,) = platform.worker.requests
    write_spans(platform.spans, asked.request_id)
    page.get_by_role("button", name="Trace").click()
    expect(page.locator(".spans li")).to_have_count(2)
    page.get_by_role("button", name="worker: chat default").click()
    expect(page.locator(".facts-of-span")).to_contain_text(asked.request_id)
    page.get_by_label("Filter").blur()
    page.keyboard.press("2")
    expect(page.locator(".plot canvas")).to_have_count(5)
    expect(page.locator(".plot .now b").first).not_to_have_text("\N{EN DASH}")
    expect(page.get_by_role("cell", name="w1", exact=True)).to_be_visible()
    expect(page.get_by_role("row").filter(has_text="w1")).to_contain_text("ready")
    page.keyboard.press("3")
    row = page.get_by_role("row").filter(has_text="default@3")
    expect(row).to_contain_text("rejected")
    expect(row).to_contain_text("41.0 %")
    page.get_by_role("button", name="Details of default@3").click()
    expect(page.locator("tr.details")).to_contain_text("May not serve: its gate rejected it")
    expect(page.locator("tr.details")).to_contain_text("64 answers")
    page.get_by_role("button", name="Roll out default@2").click()
    expect(page.get_by_label("Version", exact=True)).to_have_value("2")


def test_it_works_by_keyboard_in_either_theme_and_on_a_narrow_screen(
    page: Page, platform: Platform
) -> None:
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#shell")).to_be_visible()
    page.get_by_label("Message", exact=True).blur()
    page.keyboard.press("?")
    expect(page.locator("#sheet")).to_be_visible()
    page.keyboard.press("Escape")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate(ground) != before
    page.set_viewport_size({"width": 420, "height": 800})
    for number in range(1, 8):
        page.keyboard.press(str(number))
        if number == 1:
            page.get_by_label("Message", exact=True).blur()
        overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert overflow <= 0, f"panel {number} is {overflow} px wider than the screen"


@pytest.mark.kafka
def test_the_data_routes_work_on_a_real_broker(
    kafka_settings: KafkaSettings, kafka_bus: KafkaBus, tmp_path: Path
) -> None:
    seed(kafka_bus)
    publish(kafka_bus, catalogue.REGISTRY.name, "default/2", version("2"))
    letters = DeadLetters(kafka_bus, blank=partial(blank_spans, kafka_settings))
    publisher = kafka_bus.publisher()
    publisher.publish(f"{catalogue.REQUESTS.name}.dlq", key=b"k", value=b"{}").result(30)
    publisher.close()
    with ExitStack() as stack:
        worker = ScriptedWorker(kafka_bus)
        stack.callback(worker.close)
        url = stack.enter_context(gateway_on(kafka_bus, tmp_path, dead_letters=letters))
        client = stack.enter_context(
            httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)
        )

        def get(path: str) -> Any:
            return client.get(f"/console/api/{path}").raise_for_status().json()

        def post(path: str, body: dict[str, Any]) -> Any:
            return client.post(f"/console/api/{path}", json=body).raise_for_status().json()

        asked = {"model": "default", "messages": [{"role": "user", "content": "one two"}]}
        client.post("/v1/chat/completions", json=asked).raise_for_status()
        deadline = time.monotonic() + 60
        while not any(get("live")["series"]["requests_per_s"]):
            assert time.monotonic() < deadline, "the request was never counted"
        canary = {"action": "canary", "version": "2", "weight": 0.1, "unit": "user"}
        changed = post("rollouts/default", {**canary, "revision": 1, "reason": "try"})
        assert changed["rollout"]["candidate_weight"] == 0.1
        body = {"value": "64", "revision": 0, "reason": "more"}
        assert post("settings/worker.max_waiting", body)["value"] == 64
        (past,) = get("settings/worker.max_waiting/history")["changes"]
        assert (past["revision"], past["outcome"]) == (1, "in force")
        body = {"ids": ["generation.requests/0"], "reason": "no use"}
        assert post("dead-letters/drop", body) == {"dropped": ["generation.requests/0"]}
        assert get("dead-letters")["topics"][0]["dropped"] == 1
    registry = read_registry(kafka_bus).rollout("default")
    assert registry is not None
    assert (registry.candidate, registry.actor) == ("2", "acme/somebody")
