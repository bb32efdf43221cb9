"""One response of Stripe's: its JSON, an object or a page of a list, and when it was true.

    transport -> Response -> client (is it Stripe's, and whole?) -> rows, with their `AsOf`

The interval in which it was true is on the clock of `event.created`, the one that events have. It is
measured here, with margins for what a `Date` does not say; `AsOf` carries it on, with the cause of the
state, and `mirror` compares it: rows in `upsert`, sets in `orphans`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import NamedTuple, cast

import msgspec

from pinstripe.errors import Drifted

StripeObject = dict[str, "object"]

# Without a `Date` only the local clock is left, and it may be wrong. Five minutes is the skew that
# Stripe itself accepts (in webhook signatures); a wider interval only costs an extra GET.
_LOCAL_CLOCK_MARGIN_S = 300.0

_any_json = msgspec.json.Decoder(msgspec.Raw)
_SURROGATE = re.compile("[\ud800-\udfff]")
_decoder = msgspec.json.Decoder()
_NUL = rb"\u0000"
_NUL_SHOWN = rb"\u2400"
_DEEPEST = 100
"""Levels of nesting that are kept. Stripe's objects have about ten; what walks and encodes them ends at
some hundreds.
"""
_DEEP = (b"\n" + b"  " * _DEEPEST, b"]" * _DEEPEST, b"}" * _DEEPEST)
"""One of these is in every body that nests deeper: Stripe indents by two spaces."""
_DIGITS = 300  # Of a number that is kept as one: Python reads no 5000, Postgres holds no 140,000.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Margins:
    """How far what a response shows may be from its `Date`. Seconds; the settings of the same names.

    `clock_s`: between `Date` and `event.created`, either way. `replica_lag_s`: how old the state that a
    read shows may be. Stripe documents neither; these are guesses on the safe side, and both are
    measured (`store.daily_counts`).
    """

    clock_s: float = 3.0
    replica_lag_s: float = 3.0


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. From `StripeClient` it is Stripe's own, and one whole JSON object."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    body: bytes = field(repr=False)
    elapsed_s: float
    """From just before sending until the headers were there."""
    received_at: float
    """When the headers were there, by the local clock, Unix seconds."""
    margins: Margins = Margins()

    @property
    def request_id(self) -> str:
        """`req_…`, or "" where there is none."""
        return self.headers.get("request-id", "")

    @property
    def api_version(self) -> str:
        """The version that rendered it; "" if Stripe does not say."""
        return self.headers.get("stripe-version", "")

    @property
    def not_before(self) -> float:
        """Unix seconds. Stripe made the response after our sending: its `Date` less the time it took."""
        said_at = http_time(self.headers.get("date"))
        if said_at is None:
            return self.received_at - self.elapsed_s - _LOCAL_CLOCK_MARGIN_S
        return said_at - self.elapsed_s

    @property
    def not_after(self) -> float:
        """Unix seconds. Stripe made it before the end of its `Date`, which is cut to the whole second."""
        said_at = http_time(self.headers.get("date"))
        return self.received_at + _LOCAL_CLOCK_MARGIN_S if said_at is None else said_at + 1.0

    def read_interval(self) -> tuple[float, float]:
        """[lo, hi): when what it shows was so, by the clock of `event.created`; of a read."""
        return self.write_interval()[0] - self.margins.replica_lag_s, self.write_interval()[1]

    def write_interval(self) -> tuple[float, float]:
        """[lo, hi) of a write: it is answered from where it was made, so no replica is behind."""
        clock_s = self.margins.clock_s
        return self.not_before - clock_s, self.not_after + clock_s


def http_time(text: str | None) -> int | None:
    """An HTTP date as Unix seconds; None if it is absent or unreadable.

    >>> http_time("Thu, 01 Jan 1970 00:01:00 GMT")
    60
    """
    return _parse_http_time(text) if text else None


# Up to a hundred responses share one second, so nearly every call is a hit.
@lru_cache(maxsize=16)
def _parse_http_time(text: str) -> int | None:
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class AsOf:
    """The interval on the clock of `event.created`, Unix seconds, in which a snapshot was taken: [lo, hi).

    `cause`: the event or request that made Stripe change the object, for the change feed. `known_until`:
    whatever was written until then, on Postgres's clock, Stripe knew when it made the snapshot.
    """

    lo: float
    hi: float
    cause: Cause | None = None
    known_until: datetime | None = None

    def union(self, other: AsOf) -> AsOf:
        """The interval of two pages that are applied as one."""
        known = [k for k in (self.known_until, other.known_until) if k is not None]
        return AsOf(
            min(self.lo, other.lo),
            max(self.hi, other.hi),
            self.cause or other.cause,
            min(known) if len(known) == 2 else None,
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """The event (`evt_…`) and the request (`req_…`) that changed an object; "" where unknown."""

    event_id: str = ""
    request_id: str = ""


def as_of_response(
    response: Response, cause: Cause | None = None, *, started: datetime | None = None
) -> AsOf:
    """The interval of a read, margins included. `cause`: what led to it, for the change feed.

    `started`: a moment before the request, on Postgres's clock. A replica that is behind shows what Stripe
    knew a little before.
    """
    lag = timedelta(seconds=response.margins.replica_lag_s)
    return AsOf(*response.read_interval(), cause, None if started is None else started - lag)


def is_whole_object(body: bytes) -> bool:
    """Whether `body` is one complete JSON object.

    `transport` vouches only that all announced bytes arrived. A proxy can cut a body and announce the cut
    length, or answer with a page of its own; both must fail while the request can still be repeated.

    Stripe indents its JSON. Then a closing brace at the start of a line can only be the outermost
    one (strings hold no raw line breaks), so its two ends prove it, and 400 KB need not be scanned.
    Compact JSON is scanned.

    >>> is_whole_object(b'{"a": {"b": 1}}'), is_whole_object(b'{"a": {"b": 1}')
    (True, False)
    """
    if body[:3] == b"{\n " and body[-32:].rstrip()[-2:] == b"\n}":
        return True
    if body.lstrip()[:1] != b"{":
        return False
    try:
        _any_json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return isinstance(decode_odd(body), dict)
    return True


def decode_odd(body: bytes) -> object:
    """The JSON of a body that a strict decoder refuses: lone surrogates, no UTF-8, too many levels, 1e400.

    None where it is no JSON at all. Its strings may hold what Postgres refuses: read ids from it only.
    """
    try:
        text = _show_depths(body).decode("utf-8", "replace")
        value: object = json.loads(text, parse_int=_kept, parse_float=_kept, parse_constant=str)
    except ValueError:
        return None
    return value


def _kept(number: str) -> float | str:
    """The number; its text where Python would make infinity of it, or not read so many digits."""
    if len(number) > _DIGITS or not math.isfinite(float(number)):
        return number
    return int(number) if number.lstrip("-").isdecimal() else float(number)


def decode(body: bytes) -> object:
    """The JSON value of `body` as Postgres can hold it. Raises msgspec.DecodeError where it is not JSON.

    JSON allows two things that Postgres text refuses: the NUL character and halves of surrogate pairs. Both
    become visible stand-ins (U+2400 ␀ and U+FFFD) instead of an error or a lost row. So do bytes that are
    not UTF-8. What is nested deeper than a hundred levels becomes a text, which is its JSON; so do numbers
    that are beyond 64-bit floats, or have thousands of digits.
    """
    if _NUL in body:
        body = _show_nul(body)
    if any(mark in body for mark in _DEEP):
        body = _show_depths(body)
    try:
        value: object = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        odd = decode_odd(body)
        if odd is None:
            raise msgspec.DecodeError(str(error)) from None
        return _clean(odd)
    return value


def _show_nul(body: bytes) -> bytes:
    """Replaces escaped NULs in JSON text; a backslash that is itself escaped begins no escape."""
    pieces: list[bytes] = []
    start = 0
    while (at := body.find(_NUL, start)) >= 0:
        before = body[start:at]
        escaped = (len(before) - len(before.rstrip(b"\\"))) % 2
        pieces += [before, _NUL if escaped else _NUL_SHOWN]
        start = at + len(_NUL)
    return b"".join([*pieces, body[start:]])


def _show_depths(body: bytes) -> bytes:
    """JSON text in which values beyond the deepest level stand as strings."""
    pieces: list[bytes] = []
    done = begins = depth = 0
    for token in _TOKEN.finditer(body):
        if token[0] in b"[{":
            depth += 1
            begins = token.start() if depth == _DEEPEST + 1 else begins
        elif token[0] in b"]}":
            if depth == _DEEPEST + 1:
                shown = json.dumps(body[begins : token.end()].decode("utf-8", "replace"))
                pieces += [body[done:begins], shown.encode()]
                done = token.end()
            depth -= 1
    return b"".join([*pieces, body[done:]])


def _clean(value: object) -> object:
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {clean_text(str(key)): _clean(item) for key, item in value.items()}
    return value


def clean_text(text: str) -> str:
    """`text` as Postgres can hold it.

    >>> clean_text("a\\x00b")
    'a␀b'
    """
    return _SURROGATE.sub("\ufffd", text.replace("\x00", "\u2400"))


_LONGEST_ID = 5000
"""Stripe's ids are shorter than that (https://docs.stripe.com/upgrades#what-changes-does-stripe-consider)."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list. `after` is the next page's cursor: the last id, or in v2 that page's address.

    `is_first`: the list began, or began again, with it.
    """

    path: str
    response: Response = field(repr=False)
    objects: list[StripeObject] = field(repr=False)
    has_more: bool
    after: str | None
    is_first: bool = False


class PageIds(NamedTuple):
    """The ids of a page in the list's order, and whether more follow.

    An entry without a usable id is None: it cannot be told from others, nor paged from.
    """

    ids: tuple[str | None, ...]
    has_more: bool

    @property
    def after(self) -> str | None:
        """The cursor of the next page: the last entry that has an id."""
        return next((key for key in reversed(self.ids) if key is not None), None)


class _Entry(msgspec.Struct):
    id: str | None = None


class _List(msgspec.Struct):
    data: list[_Entry]
    has_more: bool = False


_list_decoder = msgspec.json.Decoder(_List)


def read_list(response: Response, path: str) -> ListPage:
    """The page in `response`, of v1 (`has_more`) or v2 (`next_page_url`). Raises Drifted for others."""
    body = _read(response, path)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        raise Drifted(
            f"The answer of {path} is not a list (request {response.request_id or 'unknown'}).",
            hint="Is this a list in the pinned API version?",
        )
    objects = cast("list[StripeObject]", [o for o in data if isinstance(o, dict)])
    if "next_page_url" in body:
        following = body["next_page_url"]
        after = str(following) if following else None
        return ListPage(path, response, objects, following is not None, after)
    ids = (o.get("id") for o in reversed(objects))
    last = next((key for key in ids if isinstance(key, str)), None)
    return ListPage(path, response, objects, body.get("has_more") is True, last)


def _read(response: Response, path: str) -> object:
    try:
        return decode(response.body)
    except msgspec.DecodeError as error:
        raise Drifted(f"The answer of {path} is not JSON: {error}.") from error


def read_ids(response: Response, path: str) -> PageIds:
    """The ids of a page, several times cheaper than `read_list`. Raises Drifted if it is no list."""
    try:
        page = _list_decoder.decode(response.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        odd = _read_odd(response)
        if odd is not None:
            return odd
        raise Drifted(
            f"The answer of {path} is not a list (request {response.request_id or 'unknown'}): "
            f"{error}.",
            hint="Is this path a list in the pinned API version?",
        ) from error
    return PageIds(tuple(entry.id for entry in page.data), page.has_more)


def _read_odd(response: Response) -> PageIds | None:
    """A page with an odd entry: no object, an id that is no text, or text that is not Unicode."""
    body = decode_odd(response.body)
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(data, list):
        return None
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in data]
    usable = (i if isinstance(i, str) and len(i) < _LONGEST_ID else None for i in ids)
    return PageIds(tuple(usable), body.get("has_more") is True)


def read_object(response: Response, path: str) -> StripeObject:
    """The object in `response`. Raises Drifted if it is none."""
    body = _read(response, path)
    if not isinstance(body, dict):
        raise Drifted(f"The answer of {path} is not an object.")
    return cast("StripeObject", body)
