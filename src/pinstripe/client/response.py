"""One answer of Stripe's, with the time for which it is known to be true.

`not_before` and `not_after` are on STRIPE's clock, the only one that all answers and events share.
What the rows do with the interval is decided in `store`; here it is only measured.

Whether a body is one whole JSON object.

`transport` vouches that all bytes of the body came as announced. But a proxy can cut a body and
announce the cut length, or answer with a page of its own; both must fail here, where asking again
is possible, and not later as a row that will not decode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from pinstripe.client.retry import http_time
from pinstripe.client.transport import Answer

# Without a `Date` only the local clock is left, and it may be wrong. Five minutes is the skew that
# Stripe itself accepts (in webhook signatures); a wider interval only costs an extra GET.
_LOCAL_CLOCK_MARGIN_S = 300.0


@dataclass(frozen=True, slots=True)
class Response:
    """A good answer: `body` is one whole JSON object. Times are Unix seconds."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    """Names in lower case."""
    request_id: str
    api_version: str
    """The version that rendered it; "" if Stripe does not say."""
    not_before: float
    not_after: float


def response_of(answer: Answer) -> Response:
    """`answer` with its interval.

    Stripe made it between our sending and its `Date`, which is cut to the whole second: so from
    `Date` less the time the request took, to the end of that second.
    """
    headers = answer.headers
    said_at = http_time(headers.get("date"))
    if said_at is None:
        not_before = answer.received_at - answer.elapsed_s - _LOCAL_CLOCK_MARGIN_S
        not_after = answer.received_at + _LOCAL_CLOCK_MARGIN_S
    else:
        not_before = said_at - answer.elapsed_s
        not_after = said_at + 1.0
    return Response(
        status=answer.status,
        body=answer.body,
        headers=headers,
        request_id=headers.get("request-id", ""),
        api_version=headers.get("stripe-version", ""),
        not_before=not_before,
        not_after=not_after,
    )


_any_json = msgspec.json.Decoder(msgspec.Raw)


def is_whole_object(body: bytes) -> bool:
    """Whether `body` is a JSON object, complete.

    Stripe indents its JSON. Then a closing brace at the start of a line can only be the outermost
    one (strings hold no raw line breaks), so looking at both ends is proof enough; 400 KB need not
    be scanned. Compact JSON is scanned.

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

    None where it is not JSON either. Its strings hold what Postgres does not take: for ids and for
    `rows.decode`, which shows stand-ins.
    """
    try:
        value: object = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value
