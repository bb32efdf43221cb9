"""Decodes Stripe's bytes into Python values that Postgres can hold.

JSON allows two things that Postgres text refuses: the NUL character and halves of surrogate pairs. Both
become visible stand-ins (U+2400 ␀ and U+FFFD) instead of an error or a lost row. So do bytes that are not
UTF-8.
"""

from __future__ import annotations

import json
import re

import msgspec

StripeObject = dict[str, "object"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_decoder = msgspec.json.Decoder()
_NUL = rb"\u0000"
_NUL_SHOWN = rb"\u2400"


def decode(body: bytes) -> object:
    """The JSON value of `body`. Raises msgspec.DecodeError where it is not JSON."""
    if _NUL in body:
        body = _show_nul(body)
    try:
        value: object = _decoder.decode(body)
    except msgspec.DecodeError:
        return _decode_odd(body)
    except UnicodeDecodeError:
        return _decode_odd(body)
    return value


def _decode_odd(body: bytes) -> object:
    """With lone surrogates, which Python's own parser takes, or bytes that are not UTF-8."""
    try:
        return _clean(json.loads(body.decode("utf-8", "replace")))
    except (ValueError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


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
