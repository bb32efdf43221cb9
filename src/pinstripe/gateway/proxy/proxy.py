"""The proxy: Stripe's API at our address, with every object of a response written to Postgres first.

    async with open_proxy(syncs, hosts=hosts_at("https://api.stripe.com")) as proxy:
        await proxy(scope, receive, send)      # a raw ASGI application

    request -> target, headers -> Stripe -> mirroring -> response with `Pinstripe-...` headers

Bytes, status and headers pass through untouched, both ways. The caller's key decides which account's tables
are written (`accounts`); `mirroring` decides what is written from a response.

The caller gets Stripe's response with our headers, or an error in Stripe's shape. A response that breaks
off also breaks off for the caller: it is never completed here.

What a write changed beside the object in its response (a new subscription's invoice) arrives by events:
`AfterWrite` requests a sync and does not await it. If that fails, the next regular poll reads the events.

    Pinstripe-Mirrored: yes | no | later      whether the objects are in Postgres
    Pinstripe-Reason: unknown-account         why not, or not yet
    Pinstripe-Sync: default                   the sync whose tables were written
    Pinstripe-As-Of: 2026-11-23T12:00:00Z     up to when all events are applied
    Pinstripe-Waited: yes | no                with `Pinstripe-Wait`: whether its events are applied
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
import structlog

from pinstripe.client.api_key import is_loopback
from pinstripe.client.response import Margins
from pinstripe.concurrency import cancel
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.gateway.http.middleware import disconnected
from pinstripe.gateway.proxy.accounts import (
    AccountResolver,
    Credentials,
    carries_more_than_test_key,
    credentials_of,
    shows_one_of,
)
from pinstripe.gateway.proxy.mirroring import (
    ANSWER_BYTES,
    DeferredFetches,
    MirrorResult,
    ProxyRequest,
    ResponseMirror,
    owe_silent,
)
from pinstripe.gateway.proxy.objects import is_preview, measured_response, places_of
from pinstripe.gateway.proxy.upstream import (
    API,
    METHODS,
    ClientDisconnected,
    Headers,
    Message,
    Receive,
    RequestRejected,
    Target,
    Upload,
    Upstream,
    UpstreamError,
    UpstreamResponse,
    body_of,
    checked,
    target_of,
)
from pinstripe.gateway.syncs import OpenSync, PatientVersions, Syncs
from pinstripe.store.cursors import load_as_of
from pinstripe.store.daily_counts import Write, note_writes

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Send = Callable[[Message], Awaitable[None]]
_T = TypeVar("_T")

BODY_BYTES = 32 * 2**20
PATIENCE_S = 2.0
STALLED_S = 60.0
"""How long a caller may read nothing of a streamed response."""
HELD_BYTES = 32 * 2**20
"""Of answers that are being read and mirrored, all together; beyond it long ones pass unmirrored."""
_SHORT_BYTES = 128 * 2**10


class Proxy:
    """A raw ASGI application. Make it with `open_proxy`."""

    def __init__(
        self,
        *,
        hosts: Mapping[str, str],
        upstream: Upstream,
        accounts: AccountResolver,
        mirroring: ResponseMirror,
        after_write: AfterWrite,
        versions: PatientVersions,
        body_limit: int = BODY_BYTES,
        own_tokens: Sequence[bytes] = (),
    ) -> None:
        self.callers = accounts
        self.answers = mirroring
        self._hosts = hosts
        self._open = {
            host
            for host, base in hosts.items()
            if not base.startswith("https:") and not is_loopback(urlsplit(base).hostname or "")
        }
        self._upstream = upstream
        self._after_write = after_write
        self._body_limit = body_limit
        self._own_tokens = own_tokens
        self._versions = versions
        self._reading = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        method: str = scope["method"]
        try:
            raw_path = scope.get("raw_path") or scope["path"].encode()
            target = target_of(raw_path, scope["query_string"], self._hosts)
            headers = checked(method, scope["headers"], body_limit=self._body_limit)
            if shows_one_of(scope["headers"], self._own_tokens):
                raise RequestRejected(
                    401, "This is a token of Pinstripe's, not a key of Stripe's: it was not sent."
                )
            # A key that may be a live one would cross a network unencrypted.
            if target.host in self._open and carries_more_than_test_key(scope["headers"]):
                raise RequestRejected(
                    403, "Only test keys are sent to an http:// address; use https://."
                )
            body = await body_of(scope["headers"], receive, limit=self._body_limit)
            await self._pass(scope, target, headers, body, send, receive=receive)
        except RequestRejected as refusal:
            await _say(send, refusal.status, "invalid_request_error", refusal.reason)
        except ClientDisconnected:
            pass

    async def close(self) -> None:
        """Lets what is being mirrored end."""
        await self._after_write.close()
        await self.answers.close()

    async def _pass(
        self,
        scope: Message,
        target: Target,
        headers: list[tuple[str, str]],
        body: bytes | Upload | None,
        send: Send,
        *,
        receive: Receive,
    ) -> None:
        """Asks Stripe and answers."""
        method: str = scope["method"]
        credentials = credentials_of(scope["headers"])
        sync = self.callers.known(credentials) if credentials is not None else None
        request = ProxyRequest(method, target, headers, credentials)
        changes = request.writes and not is_preview(target.path) and places_of(target.path)
        if sync is not None and changes:
            request = replace(request, known_until=await self._versions.now(sync))
        try:
            response = await _uncut(self._upstream.send(method, target.url, headers, body))
        except UpstreamError as error:
            if isinstance(body, Upload) and body.failure is not None:
                raise body.failure from None
            self._after_write.unanswered(sync, request)
            await send_bad_gateway(send, request, error)
            return
        wait_s = self._after_write.wait_of(scope["headers"])
        try:
            gone = receive if not isinstance(body, Upload) or body.is_over else None
            await self._answer(request, response, sync, wait_s, send, receive=gone)
        except UpstreamError as error:
            self._after_write.unanswered(sync, request)
            await send_bad_gateway(send, request, error)

    async def _answer(
        self,
        request: ProxyRequest,
        response: UpstreamResponse,
        sync: OpenSync | None,
        wait_s: float,
        send: Send,
        *,
        receive: Receive | None,
    ) -> None:
        """`receive` tells of the caller's going, where there is nothing else left to receive."""
        if not is_json(response) or request.method == "HEAD":
            outcome = MirrorResult("no", "no-objects", sync)
            self._after_write.written(sync, request, response, outcome)
            headers = our_headers(outcome, self._after_write.as_of(sync))
            await stream_response(send, response, headers, receive=receive)
            return
        body, whole = await self._read(response)
        if not whole:
            outcome = MirrorResult("no", "too-large", sync)
            self._after_write.written(sync, request, response, outcome)
            headers = our_headers(outcome, self._after_write.as_of(sync))
            await stream_response(send, response, headers, begun=body, receive=receive)
            return
        outcome = MirrorResult("no", "no-objects", sync)
        waited: bool | None = None
        try:
            if _may_hold_objects(request, response):
                outcome = MirrorResult("no", "internal", sync)
                outcome = await self.answers.mirror(request, response, body)
            # Not sooner: the reader would write the same rows at the same moment, and the slower of the two
            # would wait for the other's commit, with the caller.
            self._after_write.written(outcome.sync or sync, request, response, outcome)
            waited = await self._after_write.waited(outcome.sync, request, response, wait_s)
        finally:
            # Also where the service ends, and cuts this off: Stripe has answered.
            as_of = self._after_write.as_of(outcome.sync)
            await send_response(send, response, body, our_headers(outcome, as_of, waited=waited))

    async def _read(self, response: UpstreamResponse) -> tuple[bytes, bool]:
        """(body, whether that is all of it): so much as may be held in memory. Raises UpstreamError."""
        reading = 0

        def may_hold(part: int, size: int) -> bool:
            nonlocal reading
            reading = size
            self._reading += part
            return size <= _SHORT_BYTES or self._reading + self.answers.held <= HELD_BYTES

        try:
            return await _uncut(response.read(ANSWER_BYTES, may_hold))
        finally:
            self._reading -= reading


async def _uncut(work: Coroutine[None, None, _T]) -> _T:
    """Raises UpstreamError where the service ends meanwhile: the caller is to hear what that may mean."""
    try:
        return await work
    except asyncio.CancelledError:
        raise UpstreamError("this service ends before it can", sent=True) from None


def _may_hold_objects(request: ProxyRequest, response: UpstreamResponse) -> bool:
    """Whether an answer is worth a look: a success, or a refused write (a declined card's intent). What is
    in a file is not Stripe's, whatever it looks like.
    """
    if request.target.path.endswith("/contents"):
        return False
    if 200 <= response.status < 300:
        return True
    return request.writes and response.status in (400, 402)


@asynccontextmanager
async def open_proxy(
    syncs: Syncs,
    *,
    hosts: Mapping[str, str],
    request_sync: RequestSync | None = None,
    wait_for_request: WaitForRequest | None = None,
    patience_s: float = PATIENCE_S,
    body_limit: int = BODY_BYTES,
    own_tokens: Sequence[str | None] = (),
    http_proxy: str | None = None,
) -> AsyncIterator[Proxy]:
    """The proxy, open for the block. `hosts`: see `hosts_at`; `body_limit` in bytes.

    `own_tokens` open our own doors and are never sent to Stripe. `request_sync` is called after every write
    of an account that is synced here, `wait_for_request` for `Pinstripe-Wait`.
    """
    async with Upstream(proxy=http_proxy) as upstream:
        accounts = AccountResolver(syncs, upstream, hosts[API])
        versions = PatientVersions()
        mirroring = ResponseMirror(
            syncs, accounts, upstream, versions=versions, patience_s=patience_s
        )
        after_write = AfterWrite(request_sync, wait_for_request, accounts, mirroring.later)
        proxy = Proxy(
            hosts=hosts,
            upstream=upstream,
            accounts=accounts,
            mirroring=mirroring,
            after_write=after_write,
            versions=versions,
            body_limit=body_limit,
            own_tokens=[token.encode() for token in own_tokens if token],
        )
        async with asyncio.TaskGroup() as group:
            later = group.create_task(mirroring.later.run())
            try:
                yield proxy
            finally:
                await proxy.close()
                later.cancel()


def is_json(response: UpstreamResponse) -> bool:
    return response.header(b"content-type").startswith(b"application/json")


def our_headers(
    outcome: MirrorResult, as_of: datetime | None, *, waited: bool | None = None
) -> Headers:
    headers = [(b"pinstripe-mirrored", outcome.mirrored.encode())]
    if outcome.reason:
        headers.append((b"pinstripe-reason", outcome.reason.encode()))
    if outcome.sync is not None:
        headers.append((b"pinstripe-sync", outcome.sync.id.encode()))
    if as_of is not None:
        text = as_of.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        headers.append((b"pinstripe-as-of", text.encode()))
    if waited is not None:
        headers.append((b"pinstripe-waited", b"yes" if waited else b"no"))
    return headers


async def send_response(send: Send, response: UpstreamResponse, body: bytes, ours: Headers) -> None:
    """The answer with the body that was read."""
    headers = [*response.headers, *ours]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream_response(
    send: Send,
    response: UpstreamResponse,
    ours: Headers,
    *,
    begun: bytes = b"",
    receive: Receive | None = None,
) -> None:
    """The answer as it comes, after what of it has been read; ends when the caller goes.

    `receive` is None while the caller's body is still on its way: it has only one reader.
    """
    headers = [*response.headers, *ours]
    gone = asyncio.create_task(disconnected(receive)) if receive is not None else None
    try:
        async with asyncio.timeout(STALLED_S) as patience:
            await send(
                {"type": "http.response.start", "status": response.status, "headers": headers}
            )
            if begun:
                await send({"type": "http.response.body", "body": begun, "more_body": True})
            async for chunk in response.chunks():
                patience.reschedule(asyncio.get_running_loop().time() + STALLED_S)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                patience.reschedule(asyncio.get_running_loop().time() + STALLED_S)
                if gone is not None and gone.done():
                    response.close()
                    return
            await send({"type": "http.response.body", "body": b""})
    except (UpstreamError, TimeoutError) as error:
        # The body stays without its end, and the server closes the connection: the caller sees that
        # it is not complete.
        _log.info("proxy.cut", reason=str(error) or "the caller took nothing of it")
        response.close()
    finally:
        if gone is not None:
            gone.cancel()


async def send_bad_gateway(send: Send, request: ProxyRequest, error: UpstreamError) -> None:
    """502 in Stripe's shape, saying whether the write may have been done."""
    message = f"Stripe did not answer: {error.reason}."
    if not error.sent:
        message += " The request was not sent."
    elif request.writes:
        message += (
            " It may or may not have been done: repeat it with the same Idempotency-Key, or look."
        )
    _log.warning("proxy.unanswered", method=request.method, reason=error.reason, sent=error.sent)
    await _say(send, 502, "api_error", message)


async def _say(send: Send, status: int, kind: str, message: str) -> None:
    body = msgspec.json.encode({"error": {"type": kind, "message": f"Pinstripe: {message}"}})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"pinstripe-mirrored", b"no"),
    ]
    if status == 405:
        headers.append((b"allow", ", ".join(METHODS).encode()))
    if status in (408, 413):
        headers.append((b"connection", b"close"))  # The rest of the body is not read.
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


RequestSync = Callable[[OpenSync], Awaitable[object]]
WaitForRequest = Callable[[OpenSync, str, float], Awaitable[bool]]
"""(sync, request id, timeout in seconds) -> whether the request's events are applied."""

WAIT_S = 30.0
MAX_WAIT_S = 300.0
_AS_OF_AGE_S = 0.5
"""How old the `as_of` in a header may be. It only grows, so an older one is true as well."""
_HUNG_S = 10.0
_MEASURE_S = 30.0
"""How often the clocks of writes and their events are compared."""
_MOST_WRITES = 1000
"""Writes that are compared each time, of a busy proxy."""
_ASKED_AGAIN_S = (1.0, 5.0, 30.0, 120.0)
"""Pauses before Stripe is asked again whose key a write without an answer had."""


class AfterWrite:
    """Sync requests after writes, waits for their events, and the `as_of` of each sync."""

    def __init__(
        self,
        request_sync: RequestSync | None,
        wait_for_request: WaitForRequest | None,
        accounts: AccountResolver,
        later: DeferredFetches,
    ) -> None:
        self._request_sync = request_sync
        self._accounts = accounts
        self._later = later
        self._wait = wait_for_request
        self._as_of: dict[str, datetime] = {}
        # Infinite while a read is running, so that there is one at a time.
        self._read_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes: dict[str, deque[Write]] = {}
        self._measured_at: dict[str, float] = {}

    def written(
        self,
        sync: OpenSync | None,
        request: ProxyRequest,
        response: UpstreamResponse,
        outcome: MirrorResult,
    ) -> None:
        """Request a sync after a write, unless the status says that Stripe rejected it."""
        if not request.writes:
            return
        if outcome.mirrored == "no" and response.status // 100 in (2, 5):
            self.unanswered(sync, request)
        elif response.status not in (401, 403, 404, 429):
            self._request_soon(sync)
        request_id = response.header(b"request-id").decode("latin-1")
        if sync is not None and request_id and 200 <= response.status < 300:
            measured = measured_response(response, Margins(0.0, 0.0))
            lo, hi = measured.write_interval()
            writes = self._writes.setdefault(sync.id, deque(maxlen=_MOST_WRITES))
            writes.append(Write(request_id, lo, hi))
            if monotonic() - self._measured_at.get(sync.id, float("-inf")) >= _MEASURE_S:
                self._measured_at[sync.id] = monotonic()
                self._start(self._measure(sync, writes))

    def unanswered(self, sync: OpenSync | None, request: ProxyRequest) -> None:
        """Request a sync: Stripe may have executed a write that got no response, or none that is read."""
        if request.writes and request.credentials is not None:
            self._start(self._owe(sync, request.credentials, request.target.path))

    async def _owe(self, sync: OpenSync | None, credentials: Credentials, path: str) -> None:
        """`sync`: None if it is not known yet whose key it is."""
        try:
            sync = sync or await self._owner(credentials)
            if sync is not None:
                self._request_soon(sync)
                await owe_silent(sync, path, self._later)
        except PinstripeError as error:
            _log.warning("proxy.unmirrored", path=path, error=error.message)

    async def _owner(self, credentials: Credentials) -> OpenSync | None:
        """The sync of the key. What left the write without an answer may be in the way of this one too."""
        for pause_s in _ASKED_AGAIN_S if len(self._tasks) <= _MOST_WRITES else ():
            with suppress(Unreachable):
                return await self._accounts.sync_of(credentials)
            await asyncio.sleep(pause_s)
        return await self._accounts.sync_of(credentials)

    def wait_of(self, headers: Headers) -> float:
        """Seconds that the caller wants the response to be held for its events; 0 for not at all.

        `Pinstripe-Wait: true`, or a number of seconds.
        """
        value = next((value for name, value in headers if name == b"pinstripe-wait"), b"").lower()
        if value in (b"true", b"yes"):
            return WAIT_S
        try:
            seconds = float(value)
        except ValueError:
            return 0.0
        return min(seconds, MAX_WAIT_S) if seconds > 0 else 0.0

    async def waited(
        self,
        sync: OpenSync | None,
        request: ProxyRequest,
        response: UpstreamResponse,
        wait_s: float,
    ) -> bool | None:
        """Whether a write's events were applied within `wait_s`; None if there is nothing to wait for."""
        if not wait_s or not request.writes or not 200 <= response.status < 300:
            return None
        # A replayed response names the request that did the work.
        request_id = response.header(b"original-request") or response.header(b"request-id")
        if sync is None or self._wait is None or not request_id:
            return False
        try:
            applied = await self._wait(sync, request_id.decode("latin-1"), wait_s)
        except PinstripeError as error:
            _log.warning("proxy.unwaited", error=error.message)
            return False
        await self._read_as_of(sync)
        return applied

    def as_of(self, sync: OpenSync | None) -> datetime | None:
        """All events up to this moment are applied; None until it is first read."""
        if sync is None:
            return None
        if monotonic() - self._read_at.get(sync.id, float("-inf")) >= _AS_OF_AGE_S:
            self._read_at[sync.id] = float("inf")
            self._start(self._read_as_of(sync))
        return self._as_of.get(sync.id)

    async def _measure(self, sync: OpenSync, writes: deque[Write]) -> None:
        """Compare the writes of a while with their events, once those are applied."""
        await asyncio.sleep(_MEASURE_S)
        mine = list(writes)
        writes.clear()
        try:
            async with sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                await note_writes(connection, sync.schema, mine)
        except (PinstripeError, TimeoutError) as error:
            _log.debug("proxy.unmeasured", error=str(error))

    async def close(self) -> None:
        """Cancel requests and reads that are still running."""
        await cancel(*self._tasks)

    async def _read_as_of(self, sync: OpenSync) -> None:
        try:
            async with sync.pool.acquire() as connection, asyncio.timeout(_HUNG_S):
                as_of = await load_as_of(connection, sync.schema)
        except PinstripeError as error:
            _log.debug("proxy.as_of", error=error.message)
            return
        finally:
            self._read_at[sync.id] = monotonic()
        if as_of is not None:
            self._as_of[sync.id] = as_of

    def _request_soon(self, sync: OpenSync | None) -> None:
        if sync is not None and self._request_sync is not None:
            self._start(self._request(sync, self._request_sync))

    async def _request(self, sync: OpenSync, request_sync: RequestSync) -> None:
        try:
            await request_sync(sync)
        except PinstripeError as error:
            _log.debug("proxy.unrung", error=error.message)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
