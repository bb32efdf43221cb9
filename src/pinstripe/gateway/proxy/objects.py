"""Parses what a response of Stripe's says about which objects: keys in paths, rows in bodies. Pure.

A response may be an object, a list, search results, a deleted stub, or an error that holds an object
(the intent of a declined payment). Nested and expanded objects are extracted as well. `Trust` says
whether rows may be written from the response, `as_of_exchange` for which interval it is true.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Literal
from urllib.parse import unquote, unquote_plus

import msgspec

from pinstripe.catalog.endpoints import list_endpoints, retrieve_endpoints
from pinstripe.catalog.model import Field, spec
from pinstripe.catalog.secrets import SECRET_NAMES
from pinstripe.catalog.tables import table_name
from pinstripe.client.response import AsOf, Cause, Margins, Response, StripeObject, decode
from pinstripe.client.transport import TooLarge, Unreadable, gunzip
from pinstripe.gateway.proxy.upstream import UpstreamResponse
from pinstripe.rows.extract import Extractor, RowKey, RowSet

Trust = Literal["current", "stale", "refetch"]
"""How far a response can be trusted.

`current`: true at the time of the response. `stale`: search results, whose index lags behind. `refetch`: in
another API version, or replayed for an idempotency key; its objects are fetched again.
"""

LAG_S = 3600.0
"""How old a search result may be: Stripe says under a minute, and longer during outages
(https://docs.stripe.com/search#data-freshness). A wider interval only costs a GET where rows differ."""

# What is computed for the moment: it has ids, and exists nowhere.
_PREVIEW = re.compile(
    # Users choose the ids of these.
    r"(?<!/coupons)(?<!/plans)(?<!/products)/(?:(?:create_)?preview(?:/|$)|upcoming(?:/|$|_in_))"
)

UNPACKED_BYTES = 16 * 2**20
"""The largest answer that is read into rows. Stripe's pages of 100 objects have up to a few MB."""

_SHORT_BYTES = 128 * 2**10
"""A body that is read in the event loop: that takes 5 to 10 ms. One of 16 MB can take 15 s."""

# The interpreter runs one thread at a time: the second keeps one long body from waiting for another.
_readers = ThreadPoolExecutor(2, "proxy-read")

_MOST_ROWS = 10_000
"""Rows of one response: they are one batch, whose encoding holds the event loop. A page of 100 objects with
ten entries in each of a few lists has some thousands."""

_STUB = frozenset({"deleted", "id", "livemode", "object"})

_CREDENTIALS = frozenset({"ephemeral_key", "v2.billing.meter_event_session"})
"""Types that are a key and its dates, and live for minutes. See `read`."""


@dataclass(frozen=True, slots=True)
class ParsedResponse:
    """`top` is the object that was answered, None for lists; `answered`: its JSON. `modes`: the `livemode`s
    it names. `tables`: those of the objects that were answered, nested ones aside; None of one without.
    """

    row_set: RowSet
    top: RowKey | None
    deleted: bool
    modes: frozenset[bool]
    tables: frozenset[str | None] = frozenset()
    answered: StripeObject = field(default_factory=dict, repr=False)

    def places(self) -> Iterator[RowKey]:
        """All rows, the object that was answered first."""
        if self.top is not None:
            yield self.top
        for table, group in self.row_set.rows.items():
            for key in group:
                if (table, key) != self.top:
                    yield table, key
        for table, key in sorted(self.row_set.elsewhere):
            if key not in self.row_set.rows.get(table, ()):
                yield table, key


def is_preview(path: str) -> bool:
    """Whether what a path answers with does not exist.

    >>> is_preview("/v1/invoices/create_preview"), is_preview("/v1/products/preview")
    (True, False)
    """
    return _PREVIEW.search(path) is not None


def places_of(path: str) -> list[RowKey]:
    """The objects that a path names, from the outside in.

    >>> places_of("/v1/invoices/in_1/pay")
    [('invoice', 'in_1')]
    >>> places_of("/v1/customers/cus_1/balance_transactions/cbtxn_1")[1]
    ('customer_balance_transaction', 'cbtxn_1')
    """
    row_set: list[RowKey] = []
    shape = ""
    for segment in path.split("/")[1:]:
        table = collections().get(shape)
        if table is not None and f"{shape}/{segment}" not in _fixed():
            row_set.append((table, unquote(segment)))
            shape += "/{}"
        else:
            shape = f"{shape}/{segment}"
    return row_set


def parents_of(path: str, query: str) -> Mapping[str, str]:
    """Ids by table of what the objects in the answer hang under, as far as path and query say."""
    row_set = dict(places_of(path))
    known = _parameters().get(path)
    if known is not None:
        parameter, table = known
        for pair in query.split("&"):
            name, _, value = pair.partition("=")
            if name == parameter and value:
                row_set[table] = unquote_plus(value)
    return row_set


async def unpack(body: bytes, encoding: bytes) -> bytes:
    """The body without its compression. Raises Unreadable, TooLarge."""
    return await gunzip(body, encoding.decode("latin-1"), max_bytes=UNPACKED_BYTES)


def read(body: bytes, extractor: Extractor, parents: Mapping[str, str]) -> ParsedResponse:
    """The rows in a JSON body. Raises Unreadable, TooLarge.

    Nothing of a credential's is a row: no request shows it again, no event tells of it, and its dates
    alone are of no use to anybody.
    """
    try:
        decoded = decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable("The body is not JSON.") from error
    row_set = RowSet()
    if not isinstance(decoded, dict) or decoded.get("object") in _CREDENTIALS:
        return ParsedResponse(row_set, None, deleted=False, modes=frozenset())
    entries = decoded.get("data")
    if isinstance(entries, list) and "id" not in decoded:
        if len(entries) > _MOST_ROWS:
            raise TooLarge("the list has too many entries")
        objects = [entry for entry in entries if isinstance(entry, dict)]
        keys = [extractor.object(entry, row_set, parents=parents) for entry in objects]
        listed = frozenset(key and _table(obj) for key, obj in zip(keys, objects, strict=True))
        return ParsedResponse(row_set, None, False, _modes(objects), listed)
    if decoded.keys() == {"id", "object"} and str(decoded["object"]).startswith("v2."):
        decoded["deleted"] = True  # All that a deletion answers (`DeletedObject` of the SDK).
    problem = decoded.get("error")
    # A declined payment: what the request was about, as it is now that it has been refused
    # (https://docs.stripe.com/api/errors).
    held = [v for v in problem.values() if isinstance(v, dict)] if isinstance(problem, dict) else []
    shown = frozenset(_table(o) for o in held if extractor.object(o, row_set, embedded=True))
    key = extractor.object(decoded, row_set, parents=parents)
    top = (_table(decoded), key) if key is not None else None
    told = shown if top is None and held else frozenset([top and top[0]])
    modes = _modes([decoded, *held])
    # A stub says the same in any API version; a whole object that is marked as deleted does not.
    deleted = decoded.get("deleted") is True and set(decoded) <= _STUB
    return ParsedResponse(row_set, top, deleted, modes, told, decoded)


def _table(obj: StripeObject) -> str:
    return table_name(str(obj["object"]))


def agrees(answered: StripeObject, shown: StripeObject, fields: Iterable[Field] = ()) -> bool:
    """Whether a read shows what the answer to a write said, as far as their versions say it alike: in plain
    values, in hashes and lists of them, and in what stands in a list of objects. Else a replica that is
    behind may have been read.

    `fields`: those of the type in our version. One that the read lacks was not set yet: Stripe leaves some
    properties out for as long as they have no value. Others may be gone from our version.
    """
    ours = {f.name: f for f in fields if not f.on_request and f.name not in SECRET_NAMES}
    for name, said in answered.items():
        seen = shown.get(name, None if name in ours else said)
        if isinstance(said, dict) and isinstance(seen, dict):
            within = ours[name].fields if name in ours else ()
            if name == "metadata":
                alike = said == seen
            elif said.get("object") == seen.get("object") == "list":
                whole = not said.get("has_more") and not seen.get("has_more")
                alike = _lists_agree(said.get("data"), seen.get("data"), whole=whole)
            else:
                alike = "object" in said or agrees(said, seen, within)
        elif isinstance(said, list) and isinstance(seen, list):
            alike = _lists_agree(said, seen, whole=False)
        else:
            kinds = {type(said), type(seen)}
            # A text and a hash: one of them is expanded.
            alike = said == seen or list in kinds or kinds == {str, dict}
        if not alike:
            return False
    return True


def _lists_agree(said: object, seen: object, *, whole: bool) -> bool:
    """The same of two lists. `whole`: both have all entries."""
    if not isinstance(said, list) or not isinstance(seen, list):
        return True
    if not any(isinstance(entry, dict) for entry in (*said, *seen)):
        return said == seen
    told = {str(e.get("id")): e for e in said if isinstance(e, dict)}
    there = {str(e.get("id")): e for e in seen if isinstance(e, dict)}
    # The lines of invoices had other ids until 2019-12-03: where none is the same, nothing follows.
    is_named_alike = not told or not there or not told.keys().isdisjoint(there)
    if whole and is_named_alike and told.keys() != there.keys():
        return False
    return all(agrees(entry, there[key]) for key, entry in told.items() if key in there)


async def read_aside(
    body: bytes, extractor: Extractor, parents: Mapping[str, str]
) -> ParsedResponse:
    """`read`, which for a long body runs in a thread. Raises Unreadable, TooLarge."""
    if len(body) <= _SHORT_BYTES:
        return read(body, extractor, parents)
    loop = asyncio.get_running_loop()
    parsed = await loop.run_in_executor(_readers, read, body, extractor, parents)
    if parsed.row_set.count() > _MOST_ROWS:
        raise TooLarge("the body holds too many rows")
    return parsed


def _modes(objects: list[StripeObject]) -> frozenset[bool]:
    return frozenset(mode for o in objects if isinstance(mode := o.get("livemode"), bool))


@cache
def collections() -> Mapping[str, str]:
    """Path under which objects are retrieved ("/v1/invoices") -> their table."""
    row_set: dict[str, str] = {}
    for where in retrieve_endpoints().values():
        shape = re.sub(r"{\w+}", "{}", where.path)
        row_set[shape.removesuffix("/{}")] = table_name(where.object_type)
    return row_set


@cache
def _fixed() -> frozenset[str]:
    """Paths below a collection that are no ids: "/v1/customers/search"."""
    shapes = {re.sub(r"{\w+}", "{}", operation.path) for operation in spec().operations}
    fixed: set[str] = set()
    for shape in shapes:
        steps = shape.split("/")
        fixed |= {"/".join(steps[:n]) for n in range(2, len(steps) + 1) if steps[n - 1] != "{}"}
    return frozenset(fixed)


@cache
def _parameters() -> Mapping[str, tuple[str, str]]:
    """Path of a list -> (the parameter that names the parent, the parent's table)."""
    return {
        e.path: (e.parameter, e.parent_table)
        for e in list_endpoints()
        if e.parent and "{" not in e.path
    }


def as_of_exchange(
    response: UpstreamResponse,
    margins: Margins,
    *,
    writes: bool = False,
    lag_s: float = 0.0,
    cause: Cause | None = None,
    known_until: datetime | None = None,
) -> AsOf:
    """The interval of the objects in the answer; `lag_s` is how much older than others they may be.
    `known_until`: see `AsOf`.

    Of a write, Stripe shows the object as the write left it, or as something else changed it before
    the answer was made.
    """
    measured = measured_response(response, margins)
    lo, hi = measured.write_interval() if writes else measured.read_interval()
    return AsOf(lo - lag_s, hi, cause, known_until)


def measured_response(response: UpstreamResponse, margins: Margins) -> Response:
    """The times of the answer."""
    headers = {"date": response.header(b"date").decode("latin-1")}
    return Response(
        response.status, headers, b"", response.elapsed_s, response.received_at, margins
    )
