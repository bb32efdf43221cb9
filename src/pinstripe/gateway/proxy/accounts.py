"""Resolves the key of a request to an account, and so to the sync whose tables are written.

Stripe is requested once per key (`GET /v1/account` with that key and the caller's account headers), and
only for keys that it has just accepted or that a `/wait` call sent. Concurrent lookups are limited, so
a flood of invented keys costs few requests. Only a 200 names the account: the text of an error repeats
what the request named. A restricted key that may not read its account is recognized only if it is the
very key of a sync. With a platform's key, the accounts that a request names are those of the platform.
Remembered are the account and a keyed hash of the key under a secret of this process, never the key.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import structlog

from pinstripe.client.response import decode
from pinstripe.errors import Unreachable
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.proxy.upstream import Upstream, UpstreamError
from pinstripe.gateway.syncs import AccountPlace, Named, OpenSync, PlatformAccounts, Syncs

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

KNOWN_S = 600.0
"""How long a key is remembered. Stripe checks it at every proxied request all the same."""
REFUSED_S = 15.0
MOST = 10_000
_AT_ONCE = 8
"""Concurrent lookups of keys that Stripe has just accepted."""
_STRANGERS_AT_ONCE = 4
_MOST_STRANGERS = 32
"""Keys of `/wait` calls, which may be invented: concurrent lookups, and waiting ones. More are rejected."""
_ANSWER = 2**20

_KEY = re.compile(rb"(?:sk|rk)_(live|test)_[A-Za-z0-9_]{3,255}")
_TEST = re.compile(rb"[a-z]+_test_")


@dataclass(frozen=True, slots=True)
class Credentials:
    """The key of a request, and the connected account that it acts for ("" for its own)."""

    key: bytes
    livemode: bool
    account: str
    context: str = ""
    """`Stripe-Context` as it was sent; `account` is the last of it where there is no `Stripe-Account`."""

    def __repr__(self) -> str:
        return "Credentials(…)"


@dataclass(frozen=True, slots=True)
class Caller:
    """`account_id` is None where Stripe refuses the key or does not tell; `own`: the id of the sync that
    reads with this very key; `platform`: the id of the platform whose key it is.
    """

    account_id: str | None
    livemode: bool
    until: float
    own: str = ""
    platform: str = ""


def credentials_of(headers: Sequence[tuple[bytes, bytes]]) -> Credentials | None:
    """Return the credentials in the headers (names in lower case); None without a secret key."""
    authorization = account = context = b""
    for name, value in headers:
        if name == b"authorization":
            authorization = value
        elif name == b"stripe-account":
            account = value
        elif name == b"stripe-context":
            context = value
    key = _key_in(authorization)
    shape = _KEY.fullmatch(key)
    if shape is None:
        return None
    # A context may be a path of accounts; the last one is meant.
    named = account or context.rpartition(b"/")[2]
    return Credentials(key, shape[1] == b"live", named.decode("latin-1"), context.decode("latin-1"))


def shows_one_of(headers: Sequence[tuple[bytes, bytes]], tokens: Sequence[bytes]) -> bool:
    """Whether a request carries a token of ours where Stripe expects a key."""
    if not tokens:
        return False
    credentials = next((value for name, value in headers if name == b"authorization"), b"")
    # A token without a scheme would be sent to Stripe all the same.
    return any(
        hmac.compare_digest(given, token)
        for given in (_key_in(credentials), credentials.strip())
        for token in tokens
    )


def carries_more_than_test_key(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a request carries credentials that may not be a key of test mode."""
    credentials = next((value for name, value in headers if name == b"authorization"), b"")
    return bool(credentials) and _TEST.match(_key_in(credentials)) is None


def _key_in(authorization: bytes) -> bytes:
    scheme, _, value = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return value.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[0]
        except (binascii.Error, ValueError):
            return b""
    return b""


class AccountResolver:
    """Accounts and syncs by key, cached."""

    def __init__(
        self,
        syncs: Syncs,
        upstream: Upstream,
        api_url: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lookups = 0
        """Requests to Stripe so far."""
        self._syncs = syncs
        self._upstream = upstream
        self._url = f"{api_url.rstrip('/')}/v1/account"
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        # Least recently used first.
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        self._lookups: dict[bytes, asyncio.Task[Caller]] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._strangers_slots = asyncio.Semaphore(_STRANGERS_AT_ONCE)
        self._strangers = 0

    def known(self, credentials: Credentials) -> OpenSync | None:
        """The sync of this account, if the cache has it."""
        caller = self._recall(self._digest(credentials))
        if caller is None:
            return None
        account_id = caller.account_id or ""
        of_platforms = [p.opened(account_id) for p in self._platforms_of(caller)]
        return self._first(caller, next(filter(None, of_platforms), None))

    async def sync_of(self, credentials: Credentials) -> OpenSync | None:
        """The sync of this account; None if none is served here. Sends Stripe at most one request.

        For keys that Stripe has just accepted. Raises Unreachable where Stripe does not answer.
        """
        caller = await self._resolve(credentials, self._slots)
        return None if caller is None else await self._opened(caller)

    async def _resolve(self, credentials: Credentials, slots: asyncio.Semaphore) -> Caller | None:
        """The caller with this key; None if its account cannot be one that is served here."""
        digest = self._digest(credentials)
        caller = self._recall(digest)
        if caller is None:
            if not self._is_possible(credentials):
                return None
            # One lookup per key, however many wait for it. A caller that leaves does not cancel it.
            task = self._lookups.get(digest)
            if task is None:
                task = asyncio.create_task(self._fetch_caller(digest, credentials, slots))
                self._lookups[digest] = task
                task.add_done_callback(partial(self._finished, digest))
            caller = await asyncio.shield(task)
        return caller

    async def _opened(self, caller: Caller) -> OpenSync | None:
        """The sync of the caller's account; one of a platform is opened."""
        found = self._first(caller, None)
        if caller.account_id is None or (found is not None and not caller.platform):
            return found
        for platform in self._platforms_of(caller):
            sync = await platform.open(caller.account_id)
            if sync is not None:
                return self._first(caller, sync)
            if caller.platform == platform.id:
                # Stripe has just let the platform's key act for it: a new account, or one that came back.
                platform.wake_soon(caller.account_id, is_new=True)
        return found

    async def may_use(self, headers: Sequence[tuple[bytes, bytes]], named: Named | None) -> bool:
        """Whether the request's key is good for the account of what it names. Nobody vouches for the key.

        A platform's key is good for all accounts that the platform has. Raises HTTPError where too many
        such keys are being asked about, Unreachable.
        """
        credentials = credentials_of(headers)
        if credentials is None:
            return False
        caller = self._recall(self._digest(credentials))
        if caller is not None:
            return await self._is_good(caller, named)
        if self._strangers >= _MOST_STRANGERS:
            raise HTTPError(
                429,
                "too_many_keys",
                "Too many keys that are new here are being looked up.",
                hint="Wait some seconds, or use the wait token, which is not looked up.",
                headers={"Retry-After": "5"},
            )
        self._strangers += 1
        try:
            # Also for an unknown sync: the response time would reveal which ids exist.
            caller = await self._resolve(credentials, self._strangers_slots)
            return caller is not None and await self._is_good(caller, named)
        finally:
            self._strangers -= 1

    async def _is_good(self, caller: Caller, named: Named | None) -> bool:
        if named is None:
            return False
        accounts = {named.account_id}
        if isinstance(named, AccountPlace):
            accounts.add(named.platform.account_id)
        is_same = caller.account_id in accounts and caller.livemode == named.livemode
        if caller.own != named.id and (caller.account_id is None or not is_same):
            return False
        # What a platform does not have gets a stranger's answer.
        return not isinstance(named, AccountPlace) or bool(
            await named.platform.open(named.account_id)
        )

    def _digest(self, credentials: Credentials) -> bytes:
        sent = b"\n".join(
            (
                credentials.key,
                credentials.account.encode("latin-1"),
                credentials.context.encode("latin-1"),
            )
        )
        return hashlib.blake2b(sent, key=self._secret, digest_size=32).digest()

    def _recall(self, digest: bytes) -> Caller | None:
        caller = self._known.get(digest)
        if caller is None:
            return None
        if caller.until < self._clock():
            del self._known[digest]
            return None
        self._known.move_to_end(digest)
        return caller

    def _first(self, caller: Caller, of_platform: OpenSync | None) -> OpenSync | None:
        """Where the caller's account is written: with a platform's key there, else in a sync of its own."""
        if caller.own:
            return self._syncs.get(caller.own)
        if caller.account_id is None:
            return None
        alone = self._syncs.of_account(caller.account_id, livemode=caller.livemode)
        return (of_platform or alone) if caller.platform else (alone or of_platform)

    def _platforms_of(self, caller: Caller) -> list[PlatformAccounts]:
        """Platforms that may have the account; the one whose key it is alone, if there is one."""
        its = self._syncs.platforms.get(caller.platform)
        every = [p for p in self._syncs.platforms.values() if p.livemode == caller.livemode]
        return every if its is None else [its]

    def _is_possible(self, credentials: Credentials) -> bool:
        """Whether any sync here could match; without one there is no lookup."""
        return any(
            sync.livemode == credentials.livemode and credentials.account in ("", sync.account_id)
            for sync in self._syncs
        ) or any(p.livemode == credentials.livemode for p in self._syncs.platforms.values())

    async def _fetch_caller(
        self, digest: bytes, credentials: Credentials, slots: asyncio.Semaphore
    ) -> Caller:
        async with slots:
            self.lookups += 1
            account_id, status = await self._request_account(credentials)
        now = self._clock()
        # Stripe knows the key, but it may not read its account.
        own = self._own(credentials) if status == 403 else ""
        platform = next(
            (p for p in self._syncs.platforms.values() if p.has_key(credentials.key)), None
        )
        known_s = KNOWN_S if account_id is not None or own else REFUSED_S
        caller = Caller(
            account_id, credentials.livemode, now + known_s, own, platform.id if platform else ""
        )
        self._known[digest] = caller
        while len(self._known) > MOST:
            self._known.popitem(last=False)
        _log.info("caller.met", account=account_id, livemode=credentials.livemode, status=status)
        return caller

    def _own(self, credentials: Credentials) -> str:
        """The id of the sync that reads this account with the same key; "" if there is none."""
        for sync in self._syncs:
            stripe = sync.source.stripe
            if (stripe.account or "") == credentials.account and secrets.compare_digest(
                stripe.key.reveal().encode(), credentials.key
            ):
                return sync.id
        return ""

    def _finished(self, digest: bytes, task: asyncio.Task[Caller]) -> None:
        del self._lookups[digest]
        if not task.cancelled():
            task.exception()  # Retrieve it, in case all callers have left.

    async def _request_account(self, credentials: Credentials) -> tuple[str | None, int]:
        """Return (account, HTTP status). Raises Unreachable for a passing failure."""
        headers = [
            ("authorization", f"Bearer {credentials.key.decode('ascii')}"),
            ("accept", "*/*"),
        ]
        if credentials.context:
            headers.append(("stripe-context", credentials.context))
        if credentials.account and credentials.account != credentials.context.rpartition("/")[2]:
            headers.append(("stripe-account", credentials.account))
        try:
            response = await self._upstream.send("GET", self._url, headers)
            body, whole = await response.read(_ANSWER)
        except UpstreamError as error:
            raise Unreachable(f"Whose key it is cannot be asked: {error.reason}.") from None
        if not whole:
            response.close()
        if response.status == 429 or response.status >= 500:
            raise Unreachable(f"Whose key it is cannot be asked: status {response.status}.")
        return _account_in(response.status, body, credentials.account), response.status


def _account_in(status: int, body: bytes, wanted: str) -> str | None:
    """Return the account of a 200, if it is the one that the request named."""
    if status != 200:
        return None
    try:
        decoded = decode(body)
    except msgspec.DecodeError:
        return None
    found = decoded.get("id") if isinstance(decoded, dict) else None
    if not isinstance(found, str) or (wanted and found != wanted):
        return None
    return found
