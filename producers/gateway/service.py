"""A call's way through the platform: admitted, submitted, followed, ended.

Knows requests and answers; nothing of HTTP but the errors that a caller is told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.contracts.bus import Bus
from infra.contracts.config_sections import TenantConfig
from infra.contracts.errors import FeedloomError
from infra.contracts.events.generation import GenerationResult
from infra.identity.principal import Forbidden, Principal
from infra.settings import GatewaySettings
from observability.instruments import GATEWAY_ADMISSIONS, OUTCOME, TENANT, bounded_tenant
from producers.aio import AsyncGenerationHandle
from producers.client import GenerationClient
from producers.gateway import identifiers, quotas
from producers.gateway.admissions import Admissions
from producers.gateway.delivery import WRITTEN_S, acknowledged
from producers.gateway.errors import ApiError, not_found, timed_out, unavailable, unknown_model
from producers.gateway.identifiers import Kind, RequestId
from producers.gateway.questions import Question
from producers.gateway.token_log import Item, TokenLog
from producers.gateway.views import Views

log = logging.getLogger(__name__)

GRACE_S = 2.0
"""A worker says itself that a deadline has passed; only after this is it said for it."""
LEASE_MARGIN_S = 10.0
IDEMPOTENCY_KEY_LIMIT = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One accepted call. ``items`` yields chunks in order, ``None`` in silence, then the result."""

    request: RequestId
    items: AsyncIterator[Item]
    replayed: bool


class GatewayService:
    """One replica. Made in a thread (it connects); used in one event loop."""

    def __init__(self, bus: Bus, views: Views, settings: GatewaySettings, *, source: str) -> None:
        self.views = views
        self._settings = settings
        self._client = GenerationClient(
            bus, source=source, reply_partition=settings.reply_partition
        )
        self._admissions = Admissions(bus, source=source)
        self._bus = bus
        self._token_log: TokenLog | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> GatewaySettings:
        """As this replica was started with."""
        return self._settings

    @property
    def token_log(self) -> TokenLog:
        """Lookups by id."""
        if self._token_log is None:
            self._token_log = TokenLog(self._bus)
        return self._token_log

    @property
    def reply_partition(self) -> int:
        """Where the workers write the chunks of what this replica asks."""
        return self._client.reply_partition

    @property
    def open_requests(self) -> int:
        """Requests of this replica that have no result yet."""
        return self._client.outstanding

    def fault(self) -> str | None:
        """Why this replica cannot serve; ``None`` when it can."""
        if self.views.fault is not None:
            return self.views.fault
        if not self._client.alive:
            return "answers can no longer be read"
        if not self._admissions.alive:
            return "the admission log can no longer be read"
        if not any(self.views.serving(model) for model in self.views.registry.models()):
            if not self.views.kafka_answers:
                return "Kafka does not answer"
            return "no worker serves a model"
        return None

    async def ask(
        self, principal: Principal, kind: Kind, question: Question, *, idempotency_key: str | None
    ) -> Call:
        """Admit and submit. Raises ApiError, or Forbidden, with what stands against it."""
        try:
            call = await self._ask(principal, kind, question, idempotency_key=idempotency_key)
        except ApiError as error:
            _count(principal, error.code or str(error.status))
            raise
        except Forbidden:
            _count(principal, "insufficient_permissions")
            raise
        _count(principal, "replayed" if call.replayed else "admitted")
        return call

    async def _ask(
        self, principal: Principal, kind: Kind, question: Question, *, idempotency_key: str | None
    ) -> Call:
        self._check(principal, question)
        request = identifiers.mint(
            kind,
            tenant=principal.tenant,
            model=question.model,
            partition=self._client.reply_partition,
            created_at_ms=time.time_ns() // 1_000_000,
        )
        timeout_s = question.timeout_s or self._settings.request_timeout_s
        limits = self.views.config.tenant(principal.tenant)
        counted = idempotency_key is not None or quotas.limited(limits)
        if counted:
            first = await self._admit(
                principal, request, question, limits, timeout_s, idempotency_key
            )
            if first is not None:
                return await self._again(principal, first, question, timeout_s)
        handle, written = await self._submit(
            principal, request, question, timeout_s, keyed=idempotency_key is not None
        )
        if question.background:
            self._settle(principal, request, handle, counted=counted)
            await acknowledged(written)
            return Call(request=request, items=_nothing(), replayed=False)
        return Call(
            request=request,
            items=self._live(
                principal,
                request,
                handle,
                written,
                timeout_s,
                counted=counted,
                cancel=idempotency_key is None,
            ),
            replayed=False,
        )

    def find(self, principal: Principal, text: str) -> RequestId:
        """A request of this tenant. Raises ApiError 404, also for another tenant's."""
        request = identifiers.parse(text)
        if (
            request is None
            or request.partition >= self._client.reply_partitions
            or not request.belongs_to(principal.tenant)
        ):
            raise not_found(f"there is no request {text!r}")
        return request

    def model_of(self, request: RequestId) -> str:
        """The model that was asked; its digest if there is no such model any more."""
        found = request.model_of(self.views.registry.models())
        return request.model_digest.hex() if found is None else found

    async def cancel(self, request: RequestId, reason: str) -> None:
        """Ask the workers to stop it; returns when that is written. Raises ApiError 503."""
        await acknowledged(self._client.cancel(request.text, reason))

    async def close(self) -> None:
        """Stop following; what runs goes on, and any replica can be asked for it."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._token_log is not None:
            await asyncio.to_thread(self._token_log.close)
        await asyncio.to_thread(self._client.close)
        await asyncio.to_thread(self._admissions.close)

    def _check(self, principal: Principal, question: Question) -> None:
        principal.require_model(question.model)
        if self.views.registry.rollout(question.model) is None:
            raise unknown_model(question.model)
        question.check_length(self._settings.max_prompt_characters)
        if self.views.fault is not None or not self._client.alive:
            raise unavailable("this gateway has lost its connection to Kafka", code="broker_gone")
        if not self.views.serving(question.model):
            # Then nobody hears of workers either.
            if not self.views.kafka_answers:
                raise unavailable("Kafka does not answer", code="broker_gone")
            raise unavailable(f"no worker serves {question.model!r} now", code="no_worker")
        allowed = self.views.config.gateway.max_lag
        if self.views.lag > allowed:
            raise ApiError(
                429,
                f"{self.views.lag} requests wait for a worker; more than {allowed} may not",
                code="overloaded",
                retry_after_s=2.0,
            )

    async def _admit(
        self,
        principal: Principal,
        request: RequestId,
        question: Question,
        limits: TenantConfig,
        timeout_s: float,
        key: str | None,
    ) -> RequestId | None:
        """``None``: it may run. Otherwise the request that has its key."""
        decision = await self._admissions.ask(
            quotas.asking(
                principal.tenant,
                request,
                question,
                limits,
                tokens=question.tokens_at_most(self.views.config.sampling),
                lease_s=timeout_s + LEASE_MARGIN_S,
                key=key,
            )
        )
        return quotas.first_with_key(decision)

    async def _submit(
        self,
        principal: Principal,
        request: RequestId,
        question: Question,
        timeout_s: float,
        *,
        keyed: bool,
    ) -> tuple[AsyncGenerationHandle, Future[Any]]:
        submitting = asyncio.ensure_future(
            asyncio.to_thread(
                self._client.submit,
                question.prompt,
                model=question.model,
                sampling=question.sampling,
                messages=question.messages,
                # One with a key may be submitted twice: to the same worker, then, which sees that.
                affinity_key=None if keyed else question.affinity_key,
                ttl_s=timeout_s,
                tenant=principal.tenant,
                user=question.user,
                metadata=question.metadata,
                request_id=request.text,
                submit_id=request.text,
                reply_partition=request.partition,
            )
        )
        await asyncio.wait({submitting}, timeout=WRITTEN_S)
        if not submitting.done():
            # The producer waits for a broker, longer than a caller should.
            submitting.add_done_callback(lambda late: self._drop(request, late))
            raise unavailable("Kafka does not take requests", code="broker_gone")
        handle = submitting.result()
        return AsyncGenerationHandle(handle), handle.written

    def _drop(self, request: RequestId, late: asyncio.Future[Any]) -> None:
        """A request that was submitted when its caller had been sent away."""
        if late.cancelled() or late.exception() is not None:
            return
        self._client.cancel(request.text, "its caller was told that Kafka is gone")
        self._client.forget(request.text)

    async def _again(
        self, principal: Principal, first: RequestId, question: Question, timeout_s: float
    ) -> Call:
        """Another call with a key that is taken gets the first one's answer."""
        found = await self.token_log.look(first)
        if not found.chunks and found.result is None:
            # Its replica may have died in between. A worker that has it knows it by its ids; if
            # it is this replica's, it is outstanding here and was submitted.
            with suppress(ValueError):
                await self._submit(principal, first, question, timeout_s, keyed=True)
                self._client.forget(first.text)
        return Call(
            request=first,
            items=self.follow(first, timeout_s=timeout_s),
            replayed=True,
        )

    async def follow(self, request: RequestId, *, timeout_s: float) -> AsyncIterator[Item]:
        """The items of a request from its first, wherever it was submitted."""
        deadline = time.monotonic() + timeout_s + GRACE_S
        async for item in self.token_log.follow(request, idle_s=self._settings.keep_alive_s):
            if item is None and time.monotonic() > deadline:
                raise timed_out(f"no answer to {request.text} within {timeout_s:g} s")
            yield item

    async def _live(
        self,
        principal: Principal,
        request: RequestId,
        handle: AsyncGenerationHandle,
        written: Future[Any],
        timeout_s: float,
        *,
        counted: bool,
        cancel: bool,
    ) -> AsyncIterator[Item]:
        """The items of a request of this replica; whoever stops reading early cancels it."""
        now = time.monotonic()
        deadline, unwritten = now + timeout_s + GRACE_S, now + WRITTEN_S
        result: GenerationResult | None = None
        try:
            async for item in handle.follow(min(1.0, self._settings.keep_alive_s)):
                if isinstance(item, GenerationResult):
                    result = item
                elif item is None:
                    now = time.monotonic()
                    if now > deadline:
                        raise timed_out(f"no answer to {request.text} within {timeout_s:g} s")
                    if not written.done() and now > unwritten:
                        raise unavailable("Kafka does not take requests", code="broker_gone")
                yield item
        except ApiError:
            raise
        except FeedloomError as error:
            raise unavailable(f"the request was lost: {error}", code="broker_gone") from error
        finally:
            if result is not None or cancel:
                self._end(principal, request, result, counted=counted)
                if result is None:
                    self._client.cancel(request.text, "the caller went away")
                self._client.forget(request.text)
            else:
                # The caller means to come back with its key.
                self._settle(principal, request, handle, counted=counted)

    def _settle(
        self,
        principal: Principal,
        request: RequestId,
        handle: AsyncGenerationHandle,
        *,
        counted: bool,
    ) -> None:
        """See a request to its end that nobody follows here."""

        async def settle() -> None:
            result = None
            try:
                result = await handle.result(self._settings.max_timeout_s)
            except FeedloomError as error:
                log.warning("%s was not seen to its end: %s", request.text, error)
            finally:
                self._client.forget(request.text)
                self._end(principal, request, result, counted=counted)

        task = asyncio.create_task(settle())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _end(
        self,
        principal: Principal,
        request: RequestId,
        result: GenerationResult | None,
        *,
        counted: bool,
    ) -> None:
        if counted:
            # Nobody knows what one without a result has used: what was reserved stands.
            tokens = None if result is None else result.prompt_tokens + result.output_tokens
            self._admissions.end(principal.tenant, request.text, tokens)


def _count(principal: Principal, outcome: str) -> None:
    GATEWAY_ADMISSIONS.add(1, {OUTCOME: outcome, TENANT: bounded_tenant(principal.tenant)})


async def whole_answer(items: AsyncIterator[Item]) -> GenerationResult:
    """The result at the end of the items."""
    async for item in items:
        if isinstance(item, GenerationResult):
            return item
    raise unavailable("the answer ended without a result", code="engine_error")


async def _nothing() -> AsyncIterator[Item]:
    return
    yield
