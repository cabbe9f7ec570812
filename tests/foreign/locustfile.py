"""What locust's users do: chat with the gateway, whole and streamed, ten times each."""

from __future__ import annotations

import json
import os

import gevent
from locust import HttpUser, task
from locust.exception import StopUser

CALLS = 10
TOKENS = 8
URL = "/v1/chat/completions"


class Chatter(HttpUser):
    """Ends after its calls. The key is in ``FEEDLOOM_KEY``."""

    ended = 0

    def on_start(self) -> None:
        self.left = CALLS
        self.client.headers["Authorization"] = f"Bearer {os.environ['FEEDLOOM_KEY']}"

    def on_stop(self) -> None:
        Chatter.ended += 1
        if Chatter.ended == self.environment.parsed_options.num_users:
            # Not from here, as this user is one of those that quitting waits for.
            gevent.spawn(self.environment.runner.quit)

    @task
    def chat(self) -> None:
        if self.left == 0:
            raise StopUser
        self.left -= 1
        if self.left % 2:
            self.whole()
        else:
            self.streamed()

    def whole(self) -> None:
        with self.client.post(URL, json=self.body(), name="whole", catch_response=True) as answer:
            if answer.status_code == 200:
                used = answer.json()["usage"]["completion_tokens"]
                if used != TOKENS:
                    answer.failure(f"{used} tokens")

    def streamed(self) -> None:
        body = {**self.body(), "stream": True}
        with self.client.post(
            URL, json=body, name="streamed", stream=True, catch_response=True
        ) as answer:
            if answer.status_code != 200:
                return
            data = [
                line.removeprefix(b"data: ")
                for line in answer.iter_lines()
                if line.startswith(b"data: ")
            ]
            if data[-1] != b"[DONE]":
                answer.failure("the stream broke off")
            deltas = [json.loads(one)["choices"][0]["delta"] for one in data[:-1]]
            words = "".join(delta.get("content") or "" for delta in deltas).split()
            if len(words) != TOKENS:
                answer.failure(f"{len(words)} words")

    def body(self) -> dict[str, object]:
        return {
            "model": "default",
            "messages": [{"role": "user", "content": "the quick brown fox jumps"}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
        }
