"""The HTTP API as its callers see it: the official client, and bare HTTP where it hides things."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from infra.contracts import catalogue, codec
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.feedback import FeedbackReceived
from infra.contracts.events.generation import GenerationError, GenerationRequest, SamplingParameters
from infra.kafka.offsets import OffsetsUnknown
from infra.testing import InMemoryBus
from tests.gateway import (
    KnownKeys,
    Running,
    Script,
    ScriptedWorker,
    principal,
    running_gateway,
    seed,
    set_config,
)

ASK = {"model": "default", "messages": [{"role": "user", "content": "one two three"}]}


class Platform:
    """A bus, a worker, and a gateway that takes the keys of two tenants."""

    def __init__(self, stack: ExitStack, **settings: Any) -> None:
        self.bus = InMemoryBus()
        seed(self.bus)
        self.worker = ScriptedWorker(self.bus)
        stack.callback(self.worker.close)
        self.keys = KnownKeys.of("acme", "rival")
        self.stack = stack
        self.gateway = self.replica(**settings)

    def replica(self, **settings: Any) -> Running:
        return self.stack.enter_context(running_gateway(self.bus, self.keys, **settings))

    def client(self, tenant: str = "acme", gateway: Running | None = None) -> openai.OpenAI:
        client = openai.OpenAI(
            base_url=f"{(gateway or self.gateway).url}/v1", api_key=f"key-{tenant}", max_retries=0
        )
        self.stack.callback(client.close)
        return client

    def http(self, tenant: str | None = "acme", gateway: Running | None = None) -> httpx.Client:
        headers = {} if tenant is None else {"Authorization": f"Bearer key-{tenant}"}
        return self.stack.enter_context(
            httpx.Client(base_url=(gateway or self.gateway).url, headers=headers, timeout=30)
        )

    def post(self, document: Any, *, path: str = "/v1/chat/completions", **headers: str) -> Any:
        return self.http().post(path, json=document, headers=headers)


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with ExitStack() as stack:
        yield Platform(stack)


@pytest.fixture
def own() -> Iterator[Platform]:
    """One whose worker and settings a test may change."""
    with ExitStack() as stack:
        yield Platform(stack)


def events_of(text: str) -> list[tuple[int | None, Any]]:
    """Ids and documents of a stream, its end as ``[DONE]``."""
    found: list[tuple[int | None, Any]] = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in lines:
            data = lines["data"]
            number = int(lines["id"]) if "id" in lines else None
            found.append((number, data if data == "[DONE]" else json.loads(data)))
    return found


def content(events: list[tuple[int | None, Any]]) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for _, event in events
        if event != "[DONE]"
        for choice in event["choices"]
        if choice["index"] == 0
    )


# The official client.


def test_a_conversation_is_answered(platform: Platform) -> None:
    answer = platform.client().chat.completions.create(**ASK)  # type: ignore[call-overload]
    assert answer.choices[0].message.content == "three two one "
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 7
    assert answer.usage.total_tokens == 10
    assert answer.model == "default"
    assert answer.system_fingerprint == "1"


def test_a_conversation_is_streamed(platform: Platform) -> None:
    stream = platform.client().chat.completions.create(
        **ASK,
        stream=True,
        stream_options={"include_usage": True},
    )  # type: ignore[call-overload]
    events = list(stream)
    assert "".join(e.choices[0].delta.content or "" for e in events if e.choices) == (
        "three two one "
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert events[-2].choices[0].finish_reason == "stop"
    assert events[-1].choices == []
    assert events[-1].usage.completion_tokens == 3
    assert len({event.id for event in events}) == 1


def test_a_prompt_is_continued_whole_and_streamed(platform: Platform) -> None:
    client = platform.client()
    whole = client.completions.create(model="default", prompt="a b", logprobs=1)
    assert whole.choices[0].text == "b a "
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.text_offset == [0, 2]
    stream = client.completions.create(model="default", prompt="a b", logprobs=1, stream=True)
    pieces = [event.choices[0] for event in stream]
    assert "".join(piece.text for piece in pieces) == "b a "
    assert [piece.logprobs.text_offset for piece in pieces if piece.logprobs] == [[0], [2]]
    assert pieces[-1].finish_reason == "stop"


def test_several_answers_are_told_apart(platform: Platform) -> None:
    client = platform.client()
    answer = client.chat.completions.create(**ASK, n=3)  # type: ignore[call-overload]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = {0: "", 1: "", 2: ""}
    ends = set()
    stream = client.chat.completions.create(**ASK, n=3, stream=True)  # type: ignore[call-overload]
    for event in stream:
        for choice in event.choices:
            texts[choice.index] += choice.delta.content or ""
            ends |= {choice.index} if choice.finish_reason else set()
    assert set(texts.values()) == {"three two one "}
    assert ends == {0, 1, 2}


def test_log_probabilities_are_in_the_clients_form(platform: Platform) -> None:
    client = platform.client()
    answer = client.chat.completions.create(  # type: ignore[call-overload]
        **ASK, logprobs=True, top_logprobs=2
    )
    tokens = answer.choices[0].logprobs.content
    assert [one.token for one in tokens] == ["three ", "two ", "one "]
    assert tokens[0].bytes == list(b"three ")
    assert len(tokens[0].top_logprobs) == 2
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        **ASK, logprobs=True, stream=True
    )
    streamed = [e.choices[0].logprobs.content[0].token for e in stream if e.choices[0].logprobs]
    assert streamed == ["three ", "two ", "one "]


def test_what_is_asked_reaches_the_worker(own: Platform) -> None:
    own.client().chat.completions.create(
        model="default",
        messages=[
            {"role": "system", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}],
            },
        ],
        max_completion_tokens=9,
        temperature=0.25,
        top_p=0.5,
        seed=7,
        stop=["END"],
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        user="ada",
        metadata={"job": "x"},
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True},
        },
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": False},
    )
    (request,) = own.worker.requests
    assert [(one.role, one.content) for one in request.messages] == [
        ("system", "be brief"),
        ("user", "one two"),
    ]
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (9, 0.25, 0.5)
    assert (sampling.seed, sampling.stop, sampling.top_k) == (7, ("END",), 5)
    assert sampling.structured is not None
    assert json.loads(sampling.structured.json_schema or "") == {"type": "object"}
    assert (request.tenant, request.user, request.metadata) == ("acme", "ada", {"job": "x"})
    assert request.deadline_ms is not None


def test_fields_left_out_are_left_to_the_platform(own: Platform) -> None:
    own.client().chat.completions.create(**ASK, temperature=0.5)  # type: ignore[call-overload]
    document = json.loads(own.worker.raw[0].value or b"")
    assert document["sampling"] == {"temperature": 0.5}
    assert own.worker.requests[0].sampling == SamplingParameters(temperature=0.5)


def test_the_models_that_serve_are_listed(platform: Platform) -> None:
    client = platform.client()
    assert [model.id for model in client.models.list()] == ["default"]
    assert client.models.retrieve("default").owned_by == "feedloom"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


# Bad input.


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 0}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "name": "n"}]}, "messages.0.name"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 2, "temperature": 0}, "n"),
    ],
)
def test_a_400_names_what_is_wrong(platform: Platform, change: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        platform.client().chat.completions.create(**{**ASK, "extra_body": change})
    assert caught.value.param == param
    assert param.rpartition(".")[2] in str(caught.value)


def test_what_asks_for_nothing_is_passed_over(platform: Platform) -> None:
    nothing = {"tools": [], "store": False, "logit_bias": None, "service_tier": "auto"}
    answer = platform.client().chat.completions.create(**ASK, extra_body=nothing)  # type: ignore[call-overload]
    again = answer.choices[0].message.model_dump()
    messages = [*ASK["messages"], again, {"role": "user", "content": "four"}]
    platform.client().chat.completions.create(model="default", messages=messages)  # type: ignore[call-overload,arg-type]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"model": NaN}', 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"model":' + b"[" * 40 + b"]" * 40 + b"}", 400),
        (b'{"model": "' + b"x" * 1_000_000 + b'"}', 413),
    ],
    ids=["empty", "cut", "list", "bytes", "nan", "surrogate", "very deep", "deep", "large"],
)
def test_bodies_that_are_none(platform: Platform, body: bytes, status: int) -> None:
    answer = platform.http().post(
        "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_a_body_without_a_length_is_bounded_too(platform: Platform) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    answer = platform.http().post(
        "/v1/chat/completions", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413


def test_other_media_paths_and_methods(platform: Platform) -> None:
    http = platform.http()
    form = http.post("/v1/chat/completions", data={"x": "1"})
    assert form.status_code == 415
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert http.put("/v1/models").status_code == 405


def test_a_model_that_is_not_there_is_a_404(platform: Platform) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        platform.client().chat.completions.create(**{**ASK, "model": "other"})  # type: ignore[call-overload]
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("error", "status"),
    [("prompt_too_long", 400), ("unknown_model", 404), ("engine_error", 503)],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_workers_error_has_its_status(
    own: Platform, error: str, status: int, stream: bool
) -> None:
    own.worker.script = lambda request: Script(
        (),
        finish_reason="error",
        error=GenerationError(code=error, message="as it is"),
        chunks=False,
    )
    answer = own.post({**ASK, "stream": stream})
    assert answer.status_code == status
    assert "as it is" in answer.json()["error"]["message"]
    assert answer.headers["content-type"] == "application/json"


# Who may do what.


def test_without_a_good_credential_there_is_a_401(platform: Platform) -> None:
    anonymous = platform.http(None)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a2V5"}):
        answer = anonymous.post("/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        platform.client("nobody").models.list()


def test_a_role_and_a_model_are_needed(own: Platform) -> None:
    own.keys.principals["key-acme"] = principal("acme", "feedback")
    assert own.post(ASK).status_code == 403
    own.keys.principals["key-acme"] = principal("acme", "caller", models=frozenset({"other"}))
    assert own.post(ASK).status_code == 403
    assert own.http().get("/v1/models").json()["data"] == []
    own.keys.principals["key-acme"] = principal("acme", "caller")
    request_id = own.post(ASK).json()["id"]
    feedback = own.post({"request_id": request_id, "rating": "up"}, path="/v1/feedback")
    assert feedback.status_code == 403


def test_another_tenants_request_is_not_there(platform: Platform) -> None:
    request_id = platform.post(ASK).json()["id"]
    rival = platform.http("rival")
    for answer in (
        rival.get(f"/v1/requests/{request_id}"),
        rival.get(f"/v1/requests/{request_id}", params={"stream": "true"}),
        rival.delete(f"/v1/requests/{request_id}"),
        rival.post("/v1/feedback", json={"request_id": request_id, "rating": "down"}),
        rival.get("/v1/requests/chatcmpl-guess"),
    ):
        assert answer.status_code == 404
        assert "three" not in answer.text
    assert request_id not in platform.worker.cancelled


# Feedback.


def test_feedback_is_on_its_topic_when_the_call_returns(own: Platform) -> None:
    request_id = own.post(ASK).json()["id"]
    document = {"request_id": request_id, "edited_text": "better", "user": "ada"}
    answer = own.post(document, path="/v1/feedback")
    assert answer.status_code == 201
    (record,) = own.bus.records(catalogue.FEEDBACK.name)
    event = codec.decode(record.value or b"", FeedbackReceived)
    assert (event.feedback_id, event.edited_text) == (answer.json()["id"], "better")
    assert (event.request_id, event.principal) == (request_id, "acme/ada")
    assert own.post({"request_id": request_id}, path="/v1/feedback").status_code == 400


# Time, load and loss.


def test_a_request_that_is_not_answered_in_time_is_a_504(own: Platform) -> None:
    own.worker.script = lambda request: Script((), finish_reason="deadline_exceeded", chunks=False)
    for stream in (False, True):
        answer = own.post({**ASK, "stream": stream, "timeout_s": 5})
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"


def test_a_worker_that_says_nothing_is_not_waited_for_beyond_the_deadline(own: Platform) -> None:
    gone = threading.Event()
    own.worker.script = lambda request: Script(
        ("x",), before_piece=lambda place: gone.wait(60) and None
    )
    try:
        assert own.post({**ASK, "timeout_s": 0.2}).status_code == 504
        assert own.gateway.service.open_requests == 0
    finally:
        gone.set()


def test_a_request_that_cannot_be_looked_up_is_a_503(
    own: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"/v1/requests/{own.post(ASK).json()['id']}"

    def no_reader(*_: object, **__: object) -> None:
        raise ConfigurationError("no broker answers")

    monkeypatch.setattr(own.bus, "reader", no_reader)
    for answer in (own.http().get(where), own.http().delete(where)):
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "broker_gone"


def test_without_a_worker_there_is_a_503() -> None:
    with ExitStack() as stack:
        bus = InMemoryBus()
        seed(bus, worker=False)
        gateway = stack.enter_context(running_gateway(bus, KnownKeys.of("acme")))
        headers = {"Authorization": "Bearer key-acme"}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_worker"
        assert int(answer.headers["retry-after"]) >= 1
        ready = httpx.get(f"{gateway.url}/readyz")
        assert ready.status_code == 503
        assert "worker" in ready.json()["reason"]
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200


def test_workers_that_are_silent_as_kafka_is_gone_are_not_blamed() -> None:
    def lag() -> int:
        raise OffsetsUnknown("no broker")

    with ExitStack() as stack:
        bus = InMemoryBus()
        seed(bus, worker=False)
        gateway = stack.enter_context(running_gateway(bus, KnownKeys.of("acme"), lag=lag))
        wait_until(lambda: not gateway.views.kafka_answers)
        headers = {"Authorization": "Bearer key-acme"}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "broker_gone"
        assert "Kafka" in httpx.get(f"{gateway.url}/readyz").json()["reason"]


def test_too_much_lag_is_a_429() -> None:
    with ExitStack() as stack:
        bus = InMemoryBus()
        seed(bus)
        set_config(bus, "gateway.max_lag", "5")
        gateway = stack.enter_context(running_gateway(bus, KnownKeys.of("acme"), lag=lambda: 6))
        deadline = time.monotonic() + 10
        while gateway.views.lag != 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        headers = {"Authorization": "Bearer key-acme"}
        answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=ASK, headers=headers)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "overloaded"
        assert answer.headers["retry-after"]


def test_a_quota_holds_over_all_replicas() -> None:
    with ExitStack() as stack:
        platform = Platform(stack)
        set_config(platform.bus, "tenants.acme.requests_per_minute", "6")
        replicas = [platform.gateway, platform.replica(), platform.replica()]
        for replica in replicas:
            wait_until(
                lambda r=replica: r.views.config.tenant("acme").requests_per_minute == 6  # type: ignore[misc]
            )
        clients = [platform.http(gateway=replica) for replica in replicas]
        with ThreadPoolExecutor(12) as pool:
            answers = list(
                pool.map(
                    lambda place: clients[place % 3].post("/v1/chat/completions", json=ASK),
                    range(24),
                )
            )
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) == 6
        assert statuses.count(429) == 18
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert platform.http("rival").post("/v1/chat/completions", json=ASK).status_code == 200


def test_requests_at_once_are_bounded_and_freed(own: Platform) -> None:
    set_config(own.bus, "tenants.acme.concurrent_requests", "1")
    wait_until(lambda: own.gateway.views.config.tenant("acme").concurrent_requests == 1)
    go = threading.Event()
    own.worker.script = lambda request: Script(
        ("x",), before_piece=lambda place: go.wait(30) and None
    )
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(own.post, ASK)
        wait_until(lambda: len(own.worker.requests) == 1)
        assert own.post(ASK).status_code == 429
        go.set()
        assert first.result().status_code == 200
    wait_until(lambda: own.post(ASK).status_code == 200)


def test_what_is_larger_than_the_quota_is_a_400(own: Platform) -> None:
    set_config(own.bus, "tenants.acme.tokens_per_minute", "50")
    wait_until(lambda: own.gateway.views.config.tenant("acme").tokens_per_minute == 50)
    answer = own.post({**ASK, "max_tokens": 60})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "request_exceeds_quota"
    assert own.post({**ASK, "max_tokens": 10}).status_code == 200


# Once, and from where it broke off.


def test_an_idempotency_key_gives_one_generation(own: Platform) -> None:
    other = own.replica()
    answers = [
        own.http(gateway=gateway).post(
            "/v1/chat/completions", json=ASK, headers={"Idempotency-Key": "k1"}
        )
        for gateway in (own.gateway, other, own.gateway)
    ]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1
    assert len(own.worker.requests) == 1
    assert answers[1].headers["idempotent-replayed"] == "true"
    changed = own.post({**ASK, "seed": 5}, **{"Idempotency-Key": "k1"})
    assert changed.status_code == 422
    rival = own.http("rival").post(
        "/v1/chat/completions", json=ASK, headers={"Idempotency-Key": "k1"}
    )
    assert rival.json()["id"] != answers[0].json()["id"]


def test_calls_with_one_key_at_once_give_one_generation(own: Platform) -> None:
    other = own.replica()
    clients = [own.http(gateway=gateway) for gateway in (own.gateway, other)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda place: clients[place % 2].post(
                    "/v1/chat/completions", json=ASK, headers={"Idempotency-Key": "race"}
                ),
                range(8),
            )
        )
    assert [answer.status_code for answer in answers] == [200] * 8
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(own.worker.requests) == 1


def test_a_stream_goes_on_at_another_replica(own: Platform) -> None:
    other = own.replica()
    half = threading.Event()
    words = tuple(f"w{place} " for place in range(8))

    def pause(place: int) -> None:
        if place == 4:
            half.wait(30)

    own.worker.script = lambda request: Script(words, before_piece=pause)
    key = {"Idempotency-Key": "stream"}
    body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
    received = ""
    with own.http().stream("POST", "/v1/chat/completions", json=body, headers=key) as answer:
        for line in answer.iter_lines():
            received += line + "\n"
            if len(events_of(received)) == 3 and line == "":
                break
    before = events_of(received)
    last = before[-1][0]
    request_id = before[0][1]["id"]
    half.set()
    again = own.http(gateway=other).post(
        "/v1/chat/completions", json=body, headers={**key, "Last-Event-ID": str(last)}
    )
    after = events_of(again.text)
    assert content(before) + content(after) == "".join(words)
    assert [number for number, _ in before + after] == [*range(10), None]
    by_id = own.http(gateway=other).get(
        f"/v1/requests/{request_id}",
        params={"stream": "true", "starting_after": last, "include_usage": "true"},
    )
    assert events_of(by_id.text) == after
    assert request_id not in own.worker.cancelled


def test_a_client_that_reads_only_data_gets_no_ids(own: Platform) -> None:
    body = {**ASK, "stream": True}
    answer = own.http().post(
        "/v1/chat/completions", json=body, headers={"Feedloom-Event-Ids": "off"}
    )
    events = answer.text.split("\n\n")
    assert all(event.startswith("data: ") for event in events if event)
    assert events[-2:] == ["data: [DONE]", ""]
    refused = own.http().post(
        "/v1/chat/completions", json=body, headers={"Feedloom-Event-Ids": "perhaps"}
    )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "Feedloom-Event-Ids"
    # Nothing was asked for a call that is refused.
    assert len(own.worker.requests) == 1
    assert own.gateway.service.open_requests == 0


def test_a_caller_that_goes_away_cancels_its_generation(own: Platform) -> None:
    go = threading.Event()
    own.worker.script = lambda request: Script(
        ("a ", "b ", "c "), before_piece=lambda place: place and go.wait(30) and None
    )
    http = own.http()
    with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
        request_id = answer.headers["x-request-id"]
        next(answer.iter_lines())
    wait_until(lambda: request_id in own.worker.cancelled)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=ASK, timeout=0.5)
    wait_until(lambda: own.worker.requests[-1].request_id in own.worker.cancelled)
    go.set()
    wait_until(lambda: own.gateway.service.open_requests == 0)


def test_a_request_in_the_background_is_polled_resumed_and_cancelled(own: Platform) -> None:
    go = threading.Event()
    own.worker.script = lambda request: Script(
        ("a ", "b ", "c "), before_piece=lambda place: place == 2 and go.wait(30) and None
    )
    http = own.http()
    made = http.post("/v1/chat/completions", json={**ASK, "background": True})
    assert made.status_code == 202
    assert made.json()["status"] == "queued"
    where = f"/v1/requests/{made.json()['id']}"
    wait_until(lambda: http.get(where).json()["output_text"] == "a b ")
    assert http.get(where).json()["status"] == "in_progress"
    go.set()
    wait_until(lambda: http.get(where).json()["status"] == "completed")
    done = http.get(where).json()
    assert done["response"]["choices"][0]["message"]["content"] == "a b c "
    assert content(events_of(http.get(where, params={"stream": "true"}).text)) == "a b c "
    assert http.delete(where).json()["status"] == "completed"

    go.clear()
    made = http.post("/v1/chat/completions", json={**ASK, "background": True})
    where = f"/v1/requests/{made.json()['id']}"
    assert http.delete(where).json()["status"] == "cancelling"
    wait_until(lambda: made.json()["id"] in own.worker.cancelled)
    go.set()
    wait_until(lambda: http.get(where).json()["status"] == "cancelled")


def test_an_answer_begun_anew_with_other_words_ends_the_stream_with_an_error(
    own: Platform,
) -> None:
    def restart(request: GenerationRequest) -> Script:
        own.worker.chunk(request, 0, 0, "one ")
        own.worker.chunk(request, 0, 0, "other ", epoch=1)
        own.worker.chunk(request, 1, 1, "words ", epoch=1, final=True)
        return Script(("other ", "words "), chunks=False)

    own.worker.script = restart
    events = events_of(own.post({**ASK, "stream": True}).text)
    assert content([event for event in events if "choices" in event[1]]) == "one "
    assert events[-1][1]["error"]["code"] == "stream_restarted"
    whole = own.post(ASK).json()
    assert whole["choices"][0]["message"]["content"] == "other words "


def test_an_answer_continued_by_another_worker_is_one_stream(own: Platform) -> None:
    def takeover(request: GenerationRequest) -> Script:
        own.worker.chunk(request, 0, 0, "one ")
        own.worker.chunk(request, 1, 1, "two ")
        own.worker.chunk(request, 0, 1, "two ", epoch=1)
        own.worker.chunk(request, 1, 2, "three ", epoch=1, final=True)
        return Script(("one ", "two ", "three "), chunks=False)

    own.worker.script = takeover
    events = events_of(own.post({**ASK, "stream": True}).text)
    assert content(events) == "one two three "
    assert [number for number, _ in events] == [0, 1, 3, 4, None]


def test_silence_keeps_a_stream_open(own: Platform) -> None:
    own.worker.script = lambda request: Script(
        ("a ", "b "), before_piece=lambda place: time.sleep(1.5 * place)
    )
    answer = own.post({**ASK, "stream": True})
    assert ": waiting\n\n" in answer.text
    assert content(events_of(answer.text)) == "a b "


def test_nothing_is_left_of_requests_that_are_over(own: Platform) -> None:
    for stream in (False, True):
        assert own.post({**ASK, "stream": stream}).status_code == 200
    assert own.gateway.service.open_requests == 0
    assert not own.gateway.service._client._open


def test_the_description_is_complete(platform: Platform) -> None:
    document = platform.http(None).get("/openapi.json").json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert "messages" in document["components"]["schemas"][name]["properties"]
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]


def wait_until(holds: Any, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)
