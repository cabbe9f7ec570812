"""Callers of several gateways, as a load balancer connects them: each call goes to one replica.

A replica that is taken out gets no new call; the calls it already has are its own to answer.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx

CALL_TIMEOUT_S = 120


@dataclass
class Replicas:
    """The addresses that calls go to, in turns."""

    urls: list[str]
    _unsent: Counter[str] = field(default_factory=Counter)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _turn: Any = field(default_factory=count)

    def pick(self) -> str:
        """For a call, which is to be reported as :meth:`sent`."""
        with self._changed:
            url = self.urls[next(self._turn) % len(self.urls)]
            self._unsent[url] += 1
            return url

    def sent(self, url: str) -> None:
        """The whole call is with the replica."""
        with self._changed:
            self._unsent[url] -= 1
            self._changed.notify_all()

    def add(self, url: str) -> None:
        """Take a replica in."""
        with self._changed:
            self.urls.append(url)

    def remove(self, url: str) -> None:
        """Take it out; returns when it has begun each call that was sent to it.

        A connection that waits to be accepted is reset when its process stops listening. They are
        accepted in turn: once a later one is answered, none waits.
        """
        with self._changed:
            self.urls.remove(url)
            assert self._changed.wait_for(lambda: self._unsent[url] == 0, timeout=CALL_TIMEOUT_S)
        httpx.get(f"{url}/healthz", timeout=CALL_TIMEOUT_S).raise_for_status()


class Callers:
    """Threads that call until they are stopped. ``answers``: status and text by question."""

    def __init__(self, replicas: Replicas, key: str, *, threads: int, max_tokens: int) -> None:
        self.answers: dict[int, tuple[int, str]] = {}
        self.errors: list[str] = []
        self._replicas = replicas
        self._key = key
        self._max_tokens = max_tokens
        self._numbers = count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_on) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Once every call has its answer."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _call_on(self) -> None:
        while not self._stop.is_set():
            number = next(self._numbers)
            url = self._replicas.pick()
            try:
                self.answers[number] = self._call(url, number)
            except httpx.HTTPError as error:
                self.errors.append(f"{number} at {url}: {type(error).__name__} {error}")

    def _call(self, url: str, number: int) -> tuple[int, str]:
        sent = _once(lambda: self._replicas.sent(url))

        def trace(event: str, _: dict[str, Any]) -> None:
            if event == "http11.send_request_body.complete":
                sent()

        body = {"model": "default", "prompt": f"question {number}", "seed": number}
        try:
            with httpx.Client(timeout=CALL_TIMEOUT_S) as client:
                answer = client.post(
                    f"{url}/v1/completions",
                    json={**body, "max_tokens": self._max_tokens},
                    headers={"Authorization": f"Bearer {self._key}"},
                    extensions={"trace": trace},
                )
        finally:
            sent()
        if answer.status_code != 200:
            return answer.status_code, answer.text
        return 200, answer.json()["id"]


def _once(action: Callable[[], None]) -> Callable[[], None]:
    pending = [action]

    def run() -> None:
        if pending:
            pending.pop()()

    return run
