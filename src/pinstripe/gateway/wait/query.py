"""What a call to wait asks for, out of its query. Pure; raises Rejected (400) naming the parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from pinstripe.catalog.model import object_types
from pinstripe.catalog.prefixes import types_of
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.source.source import retrieve_endpoint

TIMEOUT_S = 30.0
LONGEST_S = 300.0
LONGEST_SETTLE_S = 60.0
_MOST = 100
"""Requests, objects and events that one call may wait for together."""
_LONGEST_ID = 500
_KNOWN = ("request", "object", "event", "type", "timeout", "settle", "previews")
_ONCE = ("type", "timeout", "settle", "previews")
_WORD = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class WaitQuery:
    """One call. Without requests, objects and events it is the plain form."""

    requests: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    objects: tuple[tuple[str, str], ...] = field(default=())
    """(table, id)"""
    timeout_s: float = TIMEOUT_S
    settle_s: float = 0.0
    previews: bool = True

    @property
    def is_plain(self) -> bool:
        return not (self.requests or self.events or self.objects)


def read_query(query: Sequence[tuple[str, str]], *, settle_s: float) -> WaitQuery:
    """The wish behind a query. `settle_s` is what holds where it says nothing of it."""
    given: dict[str, list[str]] = {}
    for name, value in query:
        if name not in _KNOWN:
            raise _unknown(name)
        given.setdefault(name, []).append(value)
    for name in _ONCE:
        if len(given.get(name, ())) > 1:
            raise _bad(name, "is given more than once")
    exact = {name: list(dict.fromkeys(given.get(name, ()))) for name in _KNOWN[:3]}
    if sum(map(len, exact.values())) > _MOST:
        raise _bad("object", f"and the others name more than {_MOST} things to wait for")
    type_name = given.get("type", [""])[0]
    if type_name and not exact["object"]:
        raise _bad("type", "is given without an object")
    return WaitQuery(
        requests=tuple(_word("request", key, "req_") for key in exact["request"]),
        events=tuple(_word("event", key, "evt_") for key in exact["event"]),
        objects=tuple((_table(key, type_name), key) for key in exact["object"]),
        timeout_s=_seconds(given, "timeout", TIMEOUT_S, LONGEST_S),
        settle_s=_seconds(given, "settle", settle_s, LONGEST_SETTLE_S),
        previews=_yes(given.get("previews", ["true"])[0]),
    )


def _word(name: str, key: str, prefix: str) -> str:
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
    """The name that Stripe gives the type; that of its table does as well."""
    if name in object_types():
        return name
    if name in tables():
        return tables()[name].object_type
    near = get_close_matches(name, [*object_types(), *tables()], n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else "`pinstripe schema tables` lists all."
    raise _bad("type", "is not a type of Stripe object", hint=hint)


def _seconds(given: dict[str, list[str]], name: str, default: float, most: float) -> float:
    text = given.get(name, [""])[0]
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= most:  # not-a-number fails this too
        raise _bad(name, f"must be a number of seconds from 0 to {most:g}")
    return seconds


def _yes(text: str) -> bool:
    if text not in ("true", "false"):
        raise _bad("previews", "must be true or false")
    return text == "true"


def _bad(name: str, what: str, *, hint: str = "") -> HTTPError:
    return HTTPError(400, "bad_request", f"The parameter {name} {what}.", hint=hint)


def _unknown(name: str) -> HTTPError:
    near = get_close_matches(name, _KNOWN, n=1)
    return HTTPError(
        400,
        "bad_request",
        f"There is no parameter {name[:40]!r}.",
        hint=f"Did you mean {near[0]}?" if near else f"There are: {', '.join(_KNOWN)}.",
    )
