"""The demo's steps, in order, against a running platform."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, read_to_end
from infra.contracts.events.generation import GenerationResult
from infra.local.platform import LocalPlatform
from infra.local.watch import PlatformSilent
from infra.settings import DemoSettings
from producers.client import GenerationClient
from producers.demo.judge import judge
from producers.demo.prompts import DemoPrompt, openings, questions
from producers.demo.report import BeforeAfter, DemoReport, Quantiles, Trace
from producers.demo.scoring import percentile, score, win_rate
from producers.demo.traffic import Answer, Traffic
from producers.feedback import FeedbackClient

TRAINING_TIMEOUT_S = 420.0
SWITCH_TIMEOUT_S = 60.0
SWITCH_IN_FLIGHT = 8
SWITCH_MAX_TOKENS = 160
SWITCH_LIMIT = 1000

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Stage:
    """Where the demo shows what happens: steps, live tokens, seconds by step."""

    say: Say
    on_start: Callable[[DemoPrompt], None]
    on_text: Callable[[int, str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, line: str) -> Iterator[None]:
        """Announce a step and time it."""
        self.say(line)
        start = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - start


@dataclass(frozen=True, kw_only=True)
class Finals:
    """What stands on the results topic for the requests that were sent."""

    answered: int
    duplicates: int
    failed: int
    versions: dict[str, int]


def play(
    platform: LocalPlatform, demo: DemoSettings, prompts_file: Path, stage: Stage, *, seed: int
) -> DemoReport:
    """Run every step; the trace's hops are left for the caller, once all spans are written.

    Raises FatalError when a step does not happen in time.
    """
    model = platform.settings.worker.model
    asked = questions()
    feedback_prompts = asked[: demo.prompts // 4]
    feedback_prompts += openings(prompts_file, "feedback", demo.prompts - len(feedback_prompts))
    heldout = openings(prompts_file, "heldout", demo.heldout_prompts)
    with GenerationClient(platform.bus, source="feedloom-demo") as client:
        traffic = Traffic(client, model=model, seed=seed)
        with stage.step("publish", f"publishing {len(feedback_prompts)} prompts"):
            answers = traffic.paced(
                feedback_prompts,
                rate_per_s=demo.rate_per_s,
                max_tokens=demo.max_tokens,
                on_start=stage.on_start,
                on_text=stage.on_text,
            )
        with stage.step("sample", f"version 1 on {len(heldout)} held-out prompts, twice"):
            reference, tokens_per_s = traffic.burst(heldout, max_tokens=demo.max_tokens)
            again, _ = traffic.burst(heldout, max_tokens=demo.max_tokens)
        parent = platform.watch.rollouts[model].stable
        with stage.step("feedback", "publishing feedback on the results"):
            given = publish_feedback(platform.bus, answers)
        with stage.step("train", "the trainer fine-tunes on the feedback, with Pile replay"):
            child = _wait_for_child(platform, model, parent)
        with stage.step("switch", f"version {child} published; the worker switches under load"):
            traffic.pump(
                heldout,
                in_flight=SWITCH_IN_FLIGHT,
                max_tokens=SWITCH_MAX_TOKENS,
                until=_switched(platform, model, child),
                limit=SWITCH_LIMIT,
            )
        with stage.step("compare", f"version {child} on the held-out prompts"):
            after, _ = traffic.burst(heldout, max_tokens=demo.max_tokens)
        sent = dict(traffic.sent)
        finals = count_finals(platform.bus, sent)
    metrics = platform.watch.versions[model, child].metrics
    switch = next(
        report.last_switch
        for report in platform.watch.workers.values()
        if report.last_switch is not None and report.last_switch.to_version == child
    )
    base = _scores(reference)
    ttft = [answer.ttft_ms for answer in answers if answer.ttft_ms is not None]
    itl = [gap for answer in answers for gap in answer.itl_ms]
    return DemoReport(
        sent=len(sent),
        answered=finals.answered,
        lost=len(sent) - finals.answered,
        duplicate_finals=finals.duplicates,
        failed=finals.failed,
        ttft_ms=Quantiles(p50=percentile(ttft, 0.5), p95=percentile(ttft, 0.95)),
        itl_ms=Quantiles(p50=percentile(itl, 0.5), p95=percentile(itl, 0.95)),
        output_tokens_per_s=tokens_per_s,
        heldout_loss=BeforeAfter(
            before=metrics["heldout_loss_before"], after=metrics["heldout_loss_after"]
        ),
        win_rate=BeforeAfter(
            before=win_rate(_scores(again), base), after=win_rate(_scores(after), base)
        ),
        swap_pause_ms=switch.pause_ms,
        swap_in_flight=switch.in_flight,
        versions=finals.versions,
        feedback=given,
        trace=Trace(id=answers[-1].trace_id),
        seconds=stage.seconds,
    )


def publish_feedback(bus: Bus, answers: Sequence[Answer]) -> dict[str, int]:
    """Send the verdicts; returns how many of each kind."""
    given: Counter[str] = Counter()
    with FeedbackClient(bus, source="feedloom-demo") as feedback:
        for verdict in judge(answers):
            request_id = verdict.answer.result.request_id
            feedback.rate(request_id, verdict.rating)
            given["ratings"] += 1
            if verdict.edit is not None:
                feedback.edit(request_id, verdict.edit)
                given["edits"] += 1
            if verdict.pair is not None:
                feedback.prefer(request_id, *verdict.pair)
                given["pairs"] += 1
    return dict(given)


def count_finals(bus: Bus, sent: dict[str, str]) -> Finals:
    """Read the results topic from the beginning to its present end."""
    finals: Counter[str] = Counter()
    versions: Counter[str] = Counter()
    failed = 0
    for record in read_to_end(bus, catalogue.RESULTS.name):
        if record.value is None:
            continue
        result = codec.decode(record.value, GenerationResult)
        if sent.get(result.request_id) != result.submit_id:
            continue
        finals[result.request_id] += 1
        failed += result.error is not None
        if finals[result.request_id] == 1:
            versions.update(result.model_versions[-1:])
    return Finals(
        answered=len(finals),
        duplicates=sum(count - 1 for count in finals.values()),
        failed=failed,
        versions=dict(versions),
    )


def _wait_for_child(platform: LocalPlatform, model: str, parent: str) -> str:
    """The version that the trainer published with ``parent`` as its parent."""

    def children() -> list[str]:
        return [
            version
            for (name, version), published in platform.watch.versions.items()
            if name == model and published.lineage.parent == parent
        ]

    platform.watch.wait_for(
        f"a version trained from {model}@{parent}",
        lambda: bool(children()),
        timeout_s=TRAINING_TIMEOUT_S,
        check=platform.check,
    )
    return children()[0]


def _switched(platform: LocalPlatform, model: str, child: str) -> Callable[[], bool]:
    """A condition that polls: a worker serves ``child``. Raises PlatformSilent in the end."""
    deadline = time.monotonic() + SWITCH_TIMEOUT_S

    def switched() -> bool:
        platform.check()
        platform.watch.poll(0.02)
        if time.monotonic() > deadline:
            raise PlatformSilent(f"no worker serves {model}@{child} after {SWITCH_TIMEOUT_S:.0f} s")
        return platform.watch.serving(model, child)

    return switched


def _scores(answers: Sequence[Answer]) -> list[float]:
    return [score(answer.result.text, answer.prompt.continuation or "") for answer in answers]
