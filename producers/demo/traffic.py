"""The demo's requests: paced ones shown live, bursts, and a pump that keeps some in flight."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

from infra.contracts.events.generation import GenerationResult, SamplingParameters
from producers.client import GenerationClient
from producers.demo.prompts import DemoPrompt
from producers.handle import GenerationHandle

ANSWER_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A prompt, its result, and what the client saw of its timing (milliseconds)."""

    prompt: DemoPrompt
    result: GenerationResult
    trace_id: str
    ttft_ms: float | None
    itl_ms: tuple[float, ...]


class Traffic:
    """Sends prompts through one client and remembers every request id it sent."""

    def __init__(self, client: GenerationClient, *, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._seed = seed
        self.sent: dict[str, str] = {}
        """Submit id by request id."""

    def submit(self, prompt: DemoPrompt, *, max_tokens: int) -> GenerationHandle:
        """Send one, sampled at temperature 0.7 under a seed of its own."""
        sampling = SamplingParameters(
            max_tokens=max_tokens, temperature=0.7, seed=self._seed + len(self.sent)
        )
        handle = self._client.submit(prompt.prompt, model=self._model, sampling=sampling)
        self.sent[handle.request.request_id] = handle.request.submit_id
        return handle

    def paced(
        self,
        prompts: Sequence[DemoPrompt],
        *,
        rate_per_s: float,
        max_tokens: int,
        on_start: Callable[[DemoPrompt], None],
        on_text: Callable[[int, str], None],
    ) -> list[Answer]:
        """Send at a steady rate; meanwhile show, one answer at a time, the tokens that arrive.

        A thread of its own sends, so that a slow answer on show never delays the next request.
        """
        handles: list[GenerationHandle] = []
        changed = threading.Condition()

        def send() -> None:
            start = time.monotonic()
            for index, prompt in enumerate(prompts):
                time.sleep(max(0.0, start + index / rate_per_s - time.monotonic()))
                handle = self.submit(prompt, max_tokens=max_tokens)
                with changed:
                    handles.append(handle)
                    changed.notify_all()

        def wake(_: Future[None]) -> None:
            with changed:
                changed.notify_all()

        with ThreadPoolExecutor(1, thread_name_prefix="demo-sender") as pool:
            sending = pool.submit(send)
            sending.add_done_callback(wake)
            shown = 0
            while shown < len(prompts):
                with changed:
                    while len(handles) <= shown and not sending.done():
                        changed.wait()
                    if len(handles) <= shown:
                        break
                    shown = len(handles)
                on_start(prompts[shown - 1])
                for chunk in handles[shown - 1].stream(timeout_s=ANSWER_TIMEOUT_S):
                    on_text(shown - 1, chunk.text)
            sending.result()
        return self.collect(prompts, handles)

    def burst(
        self, prompts: Sequence[DemoPrompt], *, max_tokens: int
    ) -> tuple[list[Answer], float]:
        """Send all at once; returns the answers and output tokens per second of the whole burst."""
        start = time.monotonic()
        handles = [self.submit(prompt, max_tokens=max_tokens) for prompt in prompts]
        answers = self.collect(prompts, handles)
        elapsed = time.monotonic() - start
        return answers, sum(a.result.output_tokens for a in answers) / elapsed

    def pump(
        self,
        prompts: Sequence[DemoPrompt],
        *,
        in_flight: int,
        max_tokens: int,
        until: Callable[[], bool],
        limit: int,
    ) -> list[Answer]:
        """Keep ``in_flight`` requests running until ``until`` holds, at most ``limit`` in all."""
        waiting: deque[tuple[DemoPrompt, GenerationHandle]] = deque()
        answers: list[Answer] = []
        count = 0
        while not until():
            while len(waiting) < in_flight and count < limit:
                prompt = prompts[count % len(prompts)]
                waiting.append((prompt, self.submit(prompt, max_tokens=max_tokens)))
                count += 1
            if not waiting:
                break
            for _ in range(len(waiting)):
                prompt, handle = waiting.popleft()
                if handle.done:
                    answers.append(_answer(prompt, handle))
                else:
                    waiting.append((prompt, handle))
        for prompt, handle in waiting:
            answers.append(_answer(prompt, handle))
        return answers

    def collect(
        self, prompts: Sequence[DemoPrompt], handles: Sequence[GenerationHandle]
    ) -> list[Answer]:
        """Wait for each final result."""
        return [_answer(prompt, handle) for prompt, handle in zip(prompts, handles, strict=True)]


def _answer(prompt: DemoPrompt, handle: GenerationHandle) -> Answer:
    result = handle.result(timeout_s=ANSWER_TIMEOUT_S)
    arrivals = handle.arrivals
    gaps: list[float] = []
    for (earlier, _), (later, tokens) in pairwise(arrivals):
        # A chunk of n tokens after a gap g counts as n tokens g/n apart.
        gaps.extend([1000 * (later - earlier) / tokens] * tokens)
    return Answer(
        prompt=prompt,
        result=result,
        trace_id=handle.trace_id,
        ttft_ms=1000 * (arrivals[0][0] - handle.submitted_at) if arrivals else None,
        itl_ms=tuple(gaps),
    )
