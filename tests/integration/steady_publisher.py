"""Asks over Kafka until SIGTERM, so many questions at a time; then waits for what is outstanding.

Writes a JSON line an answer, as it comes. ``steady.Publisher`` runs it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import deque
from itertools import count

from infra.contracts.events.generation import SamplingParameters
from infra.settings import load_settings
from infra.stacks import tell_stacks_when_asked
from producers.client import GenerationClient
from producers.handle import GenerationHandle

ANSWER_TIMEOUT_S = 120.0


def main(in_flight: int, max_tokens: int) -> None:
    tell_stacks_when_asked()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    waiting: deque[GenerationHandle] = deque()
    sampling = SamplingParameters(max_tokens=max_tokens)
    with GenerationClient.connect(load_settings(), source="steady") as client:
        for number in count():
            if stop.is_set():
                break
            waiting.append(client.submit(f"question {number}", sampling=sampling))
            if len(waiting) == in_flight:
                write(waiting.popleft())
        while waiting:
            write(waiting.popleft())


def write(handle: GenerationHandle) -> None:
    result = handle.result(ANSWER_TIMEOUT_S)
    row = {
        "request_id": handle.request.request_id,
        "text": result.text,
        "output_tokens": result.output_tokens,
        "error": None if result.error is None else str(result.error),
    }
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
