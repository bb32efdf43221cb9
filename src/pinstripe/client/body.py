"""Whether a body is one whole JSON object.

`transport` vouches that all bytes of the body came as announced. But a proxy can cut a body and
announce the cut length, or answer with a page of its own; both must fail here, where asking again
is possible, and not later as a row that will not decode.
"""

from __future__ import annotations

import json

import msgspec

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
