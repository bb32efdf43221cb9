"""One HTTP response, and the interval on Stripe's clock in which its body was true.

    transport -> Response -> client (is it Stripe's, and whole?) -> rows, with `not_before` and `not_after`

The interval is on the clock of `event.created`, the one that events have. It is measured here, with margins
for what a `Date` does not say; `rows.as_of` carries it on, and `mirror` compares it: rows in `upsert`, sets
in `orphans`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from pinstripe.client.retry import http_time

# Without a `Date` only the local clock is left, and it may be wrong. Five minutes is the skew that
# Stripe itself accepts (in webhook signatures); a wider interval only costs an extra GET.
_LOCAL_CLOCK_MARGIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Margins:
    """How far what a response shows may be from its `Date`. Seconds; the settings of the same names.

    `clock_s`: between `Date` and `event.created`, either way. `replica_lag_s`: how old the state that a
    read shows may be. Stripe documents neither; these are guesses on the safe side, and both are
    measured (`store.clocks`).
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


_any_json = msgspec.json.Decoder(msgspec.Raw)


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
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return isinstance(decode_odd(body), dict)
    return True


def decode_odd(body: bytes) -> object:
    """The JSON of a body that a strict decoder refuses for lone surrogates or bytes that are not UTF-8.

    None where it is no JSON at all. Its strings may hold what Postgres refuses: read ids from it only.
    """
    try:
        value: object = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value
