"""`pinstripe wait`: waits, through the running gateway, until the database is up to date."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast
from urllib.parse import quote, urlsplit

import aiohttp

from pinstripe.cli.runtime import complain, show
from pinstripe.config.config import Config
from pinstripe.errors import Misconfigured, Unreachable, redact

NOT_IN_TIME = 1
_GRACE_S = 15.0
"""The gateway keeps the time; this is for one that does not answer at all."""

_Json: TypeAlias = dict[str, object]


@dataclass(frozen=True, slots=True)
class WaitOptions:
    """Options of the command. `url` is "" for the gateway of the settings."""

    sync_id: str
    requests: Sequence[str]
    objects: Sequence[str]
    events: Sequence[str]
    type_name: str
    timeout_s: float
    settle_s: float | None
    url: str
    account: str = ""

    def query(self) -> list[tuple[str, str]]:
        found = [("request", key) for key in self.requests]
        found += [("object", key) for key in self.objects]
        found += [("event", key) for key in self.events]
        if self.account:
            found.append(("account", self.account))
        if self.type_name:
            found.append(("type", self.type_name))
        if self.settle_s is not None:
            found.append(("settle", f"{self.settle_s:g}"))
        return [*found, ("timeout", f"{self.timeout_s:g}")]


async def wait(config: Config, options: WaitOptions, *, as_json: bool) -> int:
    """Return the exit code: 0 if everything is there, 1 if it timed out."""
    base = (options.url or config.public_url or _own_url(config)).rstrip("/")
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misconfigured(
            f"{redact(base)!r} is not a gateway URL.", hint="Use a URL like http://127.0.0.1:8377."
        )
    status, body = await _ask(base, options, _token(config, base))
    if status not in (200, 504) or "ok" not in body:
        raise _trouble(status, body, base)
    if as_json:
        show(json.dumps(body))
    elif status == 200:
        show(f"The database is up to date as of {body['as_of']} ({body['waited_ms']} ms).")
    if status == 200:
        return 0
    if not as_json:
        message, hint = _problem(body)
        complain(f"{message} Missing: {_missing(body)}.", hint)
    return NOT_IN_TIME


def _own_url(config: Config) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(config.host, config.host)  # noqa: S104 (looked for, not listened at)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def _token(config: Config, base: str) -> str | None:
    """What lets us wait. The Stripe key goes over the wire only within this machine or encrypted."""
    token = config.wait_token or config.admin_token
    parts = urlsplit(base)
    if token is None and (parts.scheme == "https" or parts.hostname in _HERE):
        return config.api_key
    return token


_HERE = ("127.0.0.1", "localhost", "::1")


async def _ask(base: str, options: WaitOptions, token: str | None) -> tuple[int, _Json]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    limit = aiohttp.ClientTimeout(total=options.timeout_s + _GRACE_S)
    address = f"{base}/wait/stripe/{quote(options.sync_id, safe='')}"
    try:
        async with (
            aiohttp.ClientSession(headers=headers, timeout=limit) as session,
            session.get(address, params=options.query(), allow_redirects=False) as answer,
        ):
            body = await answer.read()
            status = answer.status
    except (TimeoutError, aiohttp.ClientError) as error:
        raise Unreachable(
            f"The gateway at {redact(base)} does not respond.",
            hint="Is `pinstripe serve` running at this URL? See --url.",
        ) from error
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    return status, cast(_Json, found) if isinstance(found, dict) else {}


def _trouble(status: int, body: _Json, base: str) -> Misconfigured | Unreachable:
    message, hint = _problem(body)
    message = (
        message or f"The server at {redact(base)} (status {status}) is not a Pinstripe gateway."
    )
    return (Unreachable if status >= 500 else Misconfigured)(message, hint=hint)


def _problem(body: _Json) -> tuple[str, str]:
    error = body.get("error")
    told = error if isinstance(error, dict) else {}
    return str(told.get("message", "")), str(told.get("hint", ""))


def _missing(body: _Json) -> str:
    """What had not come, for people."""
    said: list[str] = []
    missing = body.get("missing")
    for entry in missing if isinstance(missing, list) else []:
        words = {"poll": "a poll of Stripe's events", "pending": "Stripe's response for"}
        what = words.get(entry.get("what"), str(entry.get("what")))
        tables = ", ".join(f"{name} ({n})" for name, n in (entry.get("tables") or {}).items())
        said.append(" ".join(w for w in (what, str(entry.get("id", "")), tables) if w))
    return "; ".join(said) or "nothing known"
