"""The console in a real browser on the running platform: a gateway and a worker, on the broker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from infra.contracts import catalogue, codec
from infra.contracts.events.feedback import FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from infra.contracts.events.model import RolloutChanged
from infra.kafka.bus import KafkaBus
from infra.settings import KafkaSettings
from tests.conftest import Weights

from .conftest import Gateways, Workers, publish_adapter

pytestmark = pytest.mark.kafka

WAIT_MS = 30_000


def ask(page: Page, text: str, version: str) -> None:
    """Ask in the playground; the answer comes from ``version``."""
    before = page.locator(".figures").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".figures")).to_have_count(before + 1)
    expect(page.locator(".figures").last).to_contain_text(f"Version{version}")


@pytest.fixture
def workers(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, weights: Weights, tmp_path: Path
) -> Iterator[Workers]:
    """Real weights, so that an adapter can be checked against them; the engine says words."""
    running = Workers(kafka_bus, kafka_settings, tmp_path, weights.first, engine="memory")
    try:
        yield running
    finally:
        running.close()


def test_an_operator_rates_an_answer_and_moves_everybody_to_a_candidate(
    workers: Workers, gateways: Gateways, weights: Weights, tmp_path: Path
) -> None:
    worker, gateway = workers.launch(max_adapters=2), gateways.launch()
    publish_adapter(workers.bus, tmp_path, weights.adapters[0], "2")
    key = gateways.key("acme", "caller", "feedback", "operator")
    workers.wait_ready(worker)
    url = gateways.wait_ready(gateway)
    path = shutil.which("chromium")
    assert path is not None, "no chromium on this machine: `make browser` says how to get it"
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"{url}/console")
        page.get_by_label("API key or token").fill(key)
        page.get_by_role("button", name="Sign in").click()
        ask(page, "the quick brown fox", "default@1")
        page.get_by_role("button", name="Thumbs up").click()
        expect(page.locator(".said.done")).to_have_text("Thumbs up sent")

        page.get_by_role("link", name="Rollout").click()
        page.get_by_label("Canary, share of units").fill("100")
        page.get_by_role("button", name="Start canary…").click()
        page.get_by_label("Reason, for whoever reads it later").fill("all of it")
        page.locator("#confirm").get_by_role("button", name="Start canary", exact=True).click()
        expect(page.locator(".now")).to_contain_text("canary, 100.0 %")
        workers.wait(
            "the candidate to be loaded",
            lambda: "2" in workers.watch.workers["worker-0"].loaded.get("default", ()),
        )
        page.get_by_role("link", name="Playground").click()
        ask(page, "jumps over the lazy dog", "default@2")
        browser.close()

    (up,) = [
        codec.decode(record.value or b"", FeedbackReceived)
        for record in workers.records(catalogue.FEEDBACK.name)
    ]
    finals = {
        one.request_id: one
        for record in workers.records(catalogue.RESULTS.name)
        for one in [codec.decode(record.value or b"", GenerationResult)]
    }
    assert up.rating == "up"
    assert finals[up.request_id].model_versions == ("default@1",)
    assert finals[up.request_id].assignment is None
    (moved,) = [one for one in finals.values() if one.request_id != up.request_id]
    assert moved.assignment is not None
    assert moved.assignment.arm == "candidate"
    rollout = codec.decode(
        workers.records(catalogue.ROLLOUTS.name)[-1].value or b"", RolloutChanged
    )
    assert (rollout.candidate, rollout.candidate_weight) == ("2", 1.0)
    assert rollout.actor == "acme/test"
    assert moved.assignment.experiment == rollout.experiment
