"""The query of `/wait`: its parameters as documented, and the checked `WaitQuery` made of them. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import msgspec
from msgspec import UNSET, UnsetType

from pinstripe.catalog.endpoints import retrieve_endpoint
from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import types_of
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.rows.extract import RowKey

TIMEOUT_S = 30.0
LONGEST_S = 300.0
LONGEST_SETTLE_S = 60.0
_MAX_NAMED = 100
"""Requests, objects and events that one call may wait for together."""
_LONGEST_ID = 500
_REPEATED = ("request", "event", "object")
_WORD = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class WaitParameters(msgspec.Struct, frozen=True):
    """The query parameters, for the description of the API. Those that name something may be repeated."""

    request: str | UnsetType = UNSET
    """A request id (req_...)."""
    object: str | UnsetType = UNSET
    """An object id; may be given repeatedly."""
    type: str | UnsetType = UNSET
    """The type of the objects, where their ids do not tell."""
    event: str | UnsetType = UNSET
    """An event id (evt_...)."""
    timeout: float | UnsetType = UNSET
    """Seconds, at most 300; 30 by default."""
    settle: float | UnsetType = UNSET
    """Seconds that a plain wait lets the event log settle."""
    previews: bool | UnsetType = UNSET
    """Whether upcoming invoices are waited for too."""
    account: str | UnsetType = UNSET
    """For a platform: which of its accounts (acct_...), its own by default. `Stripe-Account` works too."""


@dataclass(frozen=True, slots=True)
class WaitQuery:
    """One call. Without requests, objects and events it is the plain form."""

    requests: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    objects: tuple[RowKey, ...] = ()
    timeout_s: float = TIMEOUT_S
    settle_s: float = 0.0
    previews: bool = True

    @property
    def is_plain(self) -> bool:
        return not (self.requests or self.events or self.objects)


def parse_query(query: Sequence[tuple[str, str]], *, settle_s: float) -> WaitQuery:
    """Parse a query string's pairs. `settle_s` is the default of `settle`.

    Raises HTTPError (400) that names the parameter.
    """
    given: dict[str, list[str]] = {}
    for name, value in query:
        if name not in WaitParameters.__struct_fields__:
            raise _unknown(name)
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name not in _REPEATED:
            raise _bad(name, "is given more than once")
    exact = {name: list(dict.fromkeys(given.get(name, ()))) for name in _REPEATED}
    if sum(map(len, exact.values())) > _MAX_NAMED:
        raise _bad("object", f"and the others name more than {_MAX_NAMED} things to wait for")
    type_name = given.get("type", [""])[0]
    if type_name and not exact["object"]:
        raise _bad("type", "is given without an object")
    previews = given.get("previews", ["true"])[0]
    if previews not in ("true", "false"):
        raise _bad("previews", "must be true or false")
    return WaitQuery(
        requests=tuple(_id("request", key, "req_") for key in exact["request"]),
        events=tuple(_id("event", key, "evt_") for key in exact["event"]),
        objects=tuple((_table(key, type_name), key) for key in exact["object"]),
        timeout_s=_seconds(given, "timeout", TIMEOUT_S, LONGEST_S),
        settle_s=_seconds(given, "settle", settle_s, LONGEST_SETTLE_S),
        previews=previews == "true",
    )


def _id(name: str, key: str, prefix: str) -> str:
    if not key.startswith(prefix) or len(key) > _LONGEST_ID or not _WORD.fullmatch(key):
        raise _bad(name, f"is not an id that begins with {prefix}")
    return key


def _table(key: str, type_name: str) -> str:
    """The table of an object: by the type given, else by the prefix of the id."""
    if not key or len(key) > _LONGEST_ID or _UNPRINTABLE.search(key) or key in (".", ".."):
        raise _bad("object", "is not an id of Stripe")
    names = (_type(type_name),) if type_name else types_of(key)
    if len(names) != 1:
        known = (
            f"may be of several types: {', '.join(names)}" if names else "does not tell its type"
        )
        raise _bad("object", known, hint="Name the type too: ...&type=product")
    table = table_of_object().get(names[0])
    if table is None or retrieve_endpoint(table) is None:
        raise _bad(
            "object",
            f"is of the type {names[0]}, of which Stripe shows none by its id",
            hint="Wait for the request or the event that changed it, or without parameters.",
        )
    return table


def _type(name: str) -> str:
    """Stripe's name of the type, given that or the name of its table."""
    if name in object_types():
        return name
    if name in tables():
        return tables()[name].object_type
    near = get_close_matches(name, [*object_types(), *tables()], n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`pinstripe schema tables` lists all."
    raise _bad("type", "is not a type of Stripe object", hint=hint)


def _seconds(given: dict[str, list[str]], name: str, default: float, limit: float) -> float:
    text = given.get(name, [""])[0]
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= limit:  # not-a-number fails this too
        raise _bad(name, f"must be a number of seconds from 0 to {limit:g}")
    return seconds


def _bad(name: str, problem: str, *, hint: str = "") -> HTTPError:
    return HTTPError(400, "bad_request", f"The parameter {name} {problem}.", hint=hint)


def _unknown(name: str) -> HTTPError:
    known = WaitParameters.__struct_fields__
    near = get_close_matches(name, known, n=1)
    return HTTPError(
        400,
        "bad_request",
        f"There is no parameter {name[:40]!r}.",
        hint=f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}.",
    )
