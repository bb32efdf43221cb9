"""The HTTP surface: a raw ASGI application that behaves as api.stripe.com does.

In order: control interface, faults, latency, authentication, account, limits, route, permission,
parameters, idempotency, answer; then headers, compression, and the faults that spoil answers. Raw
ASGI, because this process must never be what a benchmark measures.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from email.utils import formatdate
from random import Random
from time import monotonic
from typing import Any
from urllib.parse import unquote
from zlib import crc32

from isal import igzip_lib

from pinstripe_simulator import bodies
from pinstripe_simulator.account import Account
from pinstripe_simulator.answers import Request, answer
from pinstripe_simulator.auth import Key, masked
from pinstripe_simulator.behaviours.registry import settle, write
from pinstripe_simulator.control import Control
from pinstripe_simulator.faults import BEFORE, Fault, error_for
from pinstripe_simulator.params import check, nest, parse
from pinstripe_simulator.replies import Reply, StripeError, no_access, refused, unrecognized
from pinstripe_simulator.routes import QUOTE_PDF
from pinstripe_simulator.spoil import Send, abort, send_reply, send_spoiled
from pinstripe_simulator.versions import known_version, notice

log = logging.getLogger(__name__)

Scope = dict[str, Any]
_SQUEEZE_FROM = 400
"""Bytes from which a body is worth compressing."""
_PREVIEW = "/v1/invoices/create_preview"
"""A POST that writes nothing; no page of Stripe's says that it reads what was just written."""


@dataclass(frozen=True)
class Told:
    """What the client sent, and the id that the request got."""

    path: str
    headers: dict[str, str]
    body: bytes
    request_id: str


class App:
    """The ASGI application of one simulated Stripe."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.control = Control(account)

    async def __call__(self, scope: Scope, receive: bodies.Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0]
        if path.startswith("/_simulator"):
            body = await bodies.read(receive)
            named: bytes = dict(scope["headers"]).get(b"stripe-account", b"")
            await send_reply(send, await self.control.answer(path, body, named.decode()))
            return
        await self._stripe(scope, path, receive, send)

    async def _stripe(self, scope: Scope, path: str, receive: bodies.Receive, send: Send) -> None:
        account = self.account
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        request_id = account.request_id()
        named = account.connected.made.get(headers.get("stripe-account", ""))
        fault = account.faults.deal(scope["method"], path)
        if fault is None and named is not None:
            fault = named.faults.deal(scope["method"], path)
        started = monotonic()
        account.meter.at_once += 1
        account.meter.most_at_once = max(account.meter.most_at_once, account.meter.at_once)
        try:
            if fault is not None and fault.kind == "reset_before":
                await abort(scope)
                return
            if fault is not None and fault.kind == "hang":
                await bodies.gone(receive, fault.seconds)
                await abort(scope)
                return
            body = await bodies.read(receive)
            told = Told(path, headers, body, request_id)
            reply = self._answer(scope, told, fault)
            await self._delay(started, named)
        finally:
            account.meter.at_once -= 1
        for meter in {account.meter, (named or account).meter}:
            meter.answers[reply.status] += 1
        self._finish(reply, headers, request_id)
        if fault is not None and fault.kind not in BEFORE:
            await send_spoiled(scope, send, reply, fault)
        else:
            await send_reply(send, reply, head=scope["method"] == "HEAD")

    async def _delay(self, started: float, named: Account | None) -> None:
        wanted = 0.0
        for latency in (self.account.latency, *([named.latency] if named else ())):
            if latency.fixed_s or latency.jitter_s:
                wanted += latency.fixed_s + latency.jitter_s * self.account.dice.random()
        if wanted:
            await asyncio.sleep(max(0.0, wanted - (monotonic() - started)))

    def _answer(self, scope: Scope, told: Told, fault: Fault | None) -> Reply:
        try:
            final = self.account.nastiness.no_retry_after_500
            broken = error_for(fault.kind, no_retry_after_500=final) if fault else None
            if broken is not None:
                raise broken
            return self._route(scope, told)
        except StripeError as error:
            return error.reply(told.request_id)
        except Exception:
            # The outermost ring: a mistake of ours must look like one of Stripe's, and be seen.
            log.exception("simulator.failed method=%s path=%s", scope["method"], told.path)
            broken = StripeError(500, "The simulator failed; see its log.", type="api_error")
            return broken.reply(told.request_id)

    def _route(self, scope: Scope, told: Told) -> Reply:
        path, headers = told.path, told.headers
        method = scope["method"]
        key = self.account.doors.key_of(headers.get("authorization", ""))
        account = self._account(headers, key, path)
        version = known_version(
            headers.get("stripe-version") or account.api_version, account.spec.api_version
        )
        routes = account.world.routes
        match = routes.match_preview(method, path, version)
        if match is None:
            match = routes.match("GET" if method == "HEAD" else method, path)
        if match is None:
            self.account.meter.requests["unrecognized"] += 1
            raise unrecognized(method, path)
        operation = match.operation
        slow = operation.kind == "search" or operation.path.startswith("/v1/files")
        endpoint = f"{operation.method} {operation.path}"
        self._meter(account, endpoint, slow=slow)
        type_name = account.world.routes.child(operation)
        old_words = self.account.nastiness.old_permission_words
        account.doors.let_in(key, operation, type_name, old_words=old_words)
        owner = match.path_values[0] if operation.path.startswith("/v1/accounts/{") else ""
        if owner and self.account.connected.revoked(owner):
            raise no_access(masked(key.secret), owner)
        given, files = _parameters(scope, headers, told.body)
        request = Request(
            account=account,
            match=match,
            params=check(operation, given),
            path=unquote(path),
            version=version,
            id=told.request_id,
            idempotency_key=headers.get("idempotency-key"),
            files=files,
        )
        settle(account)
        if method == "POST" and request.idempotency_key:
            return self._once(request, path, str(sorted(given.items())))
        if operation.method == "GET" or operation.path == _PREVIEW:
            return self._read(request)
        return _reply(request)

    def _read(self, request: Request) -> Reply:
        """Now and then from a replica that is behind; the event list has its own lateness."""
        nastiness, dice = self.account.nastiness, self.account.dice
        stale = request.type_name != "event" and dice.random() < nastiness.stale_share
        if not stale:
            return _reply(request)
        try:
            with request.account.world.history.as_of(nastiness.stale_s * dice.random()):
                return _reply(request)
        except StripeError as error:
            if error.param in ("starting_after", "ending_before"):
                return _reply(request)  # The list that showed the cursor came from elsewhere.
            raise

    def _meter(self, account: Account, endpoint: str, *, slow: bool) -> None:
        """Counts the request for the platform, and for the connected account that it acts on."""
        whole, dice = self.account.meter, self.account.dice.random()
        whole.enter(endpoint, slow=slow, dice=dice, of_connected=account is not self.account)
        if account is not self.account:
            account.meter.enter(endpoint, slow=slow)

    def _account(self, headers: dict[str, str], key: Key, path: str) -> Account:
        """The account that the request acts on. An account that is named in the path as well is asked
        about where the platform keeps it.
        """
        wanted = headers.get("stripe-account")
        if not wanted or wanted == self.account.id:
            return self.account
        found = self.account.connected.get(wanted)
        if found is None:
            raise no_access(masked(key.secret), wanted)
        about = path.startswith(f"/v1/accounts/{wanted}")
        return self.account if about else found

    def _once(self, request: Request, path: str, told: str) -> Reply:
        """A write under an idempotency key: the first answer is replayed, errors as well."""
        account, key = request.account, str(request.idempotency_key)
        fingerprint = crc32(told.encode())
        known = account.replays.get(key)
        if known is not None:
            first_path, first_told, first = known
            if (first_path, first_told) != (path, fingerprint):
                raise _used_otherwise(key, path, first_path)
            return Reply(first.body, first.status, first.headers | {"Idempotent-Replayed": "true"})
        try:
            reply = _reply(request)
        except StripeError as error:
            reply = error.reply(request.id)
            if error.status in (429, 409):
                return reply
        # Writes that ran answer `false`: whoever repeats them is given the same answer again.
        reply.headers |= {"Original-Request": request.id, "Stripe-Should-Retry": "false"}
        account.remember(key, path, fingerprint, reply)
        return Reply(reply.body, reply.status, dict(reply.headers))

    def _finish(self, reply: Reply, headers: dict[str, str], request_id: str) -> None:
        account = self.account
        skew = account.nastiness.skew_s
        # The clock of the machine that answers, which is not the one that stamps objects.
        date = account.clock.now() + (_off(account.dice, skew) if skew else 0.0)
        reply.headers |= {
            "Date": formatdate(date, usegmt=True),
            "Vary": "Accept-Encoding",
            "Cache-Control": "no-cache, no-store",
        }
        if not reply.anonymous:
            version = headers.get("stripe-version") or account.api_version
            reply.headers |= {"Request-Id": request_id, "Stripe-Version": version}
            reply.headers |= _echoed(headers)
            if reply.status < 400 and (words := notice(version)):
                reply.headers["Stripe-Notice"] = words
        if "gzip" in headers.get("accept-encoding", "") and len(reply.body) >= _SQUEEZE_FROM:
            reply.body = igzip_lib.compress(reply.body, 0, flag=igzip_lib.COMP_GZIP)
            reply.headers["Content-Encoding"] = "gzip"


def _used_otherwise(key: str, path: str, first: str) -> StripeError:
    """Stripe's words are quoted in https://github.com/stripe/stripe-ruby/issues/598."""
    only = "with the same parameters they were first used with"
    if path != first:
        only = f"for the same endpoint they were first used for ('{path}' vs '{first}')"
    return StripeError(
        400,
        f"Keys for idempotent requests can only be used {only}. Try using a key other than '{key}' if "
        "you meant to execute a different request.",
        type="idempotency_error",
    )


def _off(dice: Random, most_s: float) -> float:
    """How wrong a `Date` is: as far as it can be in half of the cases, else anything within."""
    return most_s * (dice.choice((-1.0, 1.0)) if dice.random() < 0.5 else dice.uniform(-1.0, 1.0))


def _echoed(headers: dict[str, str]) -> dict[str, str]:
    """What comes back as it was sent: the idempotency key, and the account acted on."""
    made = {"Idempotency-Key": headers.get("idempotency-key", "")}
    made["Stripe-Account"] = headers.get("stripe-account", "")
    return {name: value for name, value in made.items() if value}


def _reply(request: Request) -> Reply:
    """The answer as the kind of its content has it."""
    pdf = request.operation is QUOTE_PDF
    kind = "application/pdf" if pdf else "application/json"
    return Reply(answer(request, write), content_type=kind)


def _parameters(
    scope: Scope, headers: dict[str, str], body: bytes
) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    if scope["method"] in ("GET", "HEAD", "DELETE") and scope["query_string"]:
        return parse(scope["query_string"].decode("latin-1")), {}
    content_type = headers.get("content-type", "")
    if content_type.startswith("multipart/form-data"):
        pairs, files = bodies.multipart(body, content_type)
        return nest(pairs) | {name: upload[0] for name, upload in files.items()}, files
    if content_type.startswith("application/json"):
        return bodies.json_params(body), {}
    try:
        return parse(body.decode()), {}
    except UnicodeDecodeError:
        raise refused("Invalid request body: not UTF-8.") from None


def create_app(account: Account) -> App:
    """The application to serve; `account` from `pinstripe_simulator.account.make_account`."""
    return App(account)
