"""Bytes -> values: what JSON allows and Postgres does not is shown, and nothing else is touched."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinstripe.client.response import clean_text, decode, is_whole_object

anything = st.characters(codec=None)
pieces = st.sampled_from(
    ("\\", "\\u0000", "u0000", "\x00", "\ud800", "\udc00", "\ud83d\ude00", "\\ud800", '"', "␀", "a")
)
texts = st.one_of(st.text(anything), st.lists(pieces).map("".join))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


def shown(value: object) -> object:
    """`value` as Postgres can hold it, by the rule: halves of a pair that meet are one character."""
    if isinstance(value, str):
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        assert len(whole) <= len(value)
        return re.sub("[\ud800-\udfff]", "\ufffd", joined(value)).replace("\x00", "\u2400")
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {shown(key): shown(item) for key, item in value.items()}
    return value


def joined(text: str) -> str:
    """`text` with surrogate pairs as the characters that they mean."""
    return re.sub(
        "[\ud800-\udbff][\udc00-\udfff]",
        lambda m: m.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le"),
        text,
    )


@settings(max_examples=120, deadline=None, database=None)
@given(json_values)
def test_decode_is_json_loads_up_to_what_postgres_cannot_hold(value: object) -> None:
    body = json.dumps(value).encode()
    assert decode(body) == shown(json.loads(body))


@settings(max_examples=60, deadline=None, database=None)
@given(json_values)
def test_what_was_decoded_can_be_encoded(value: object) -> None:
    body = msgspec.json.encode(decode(json.dumps(value).encode()))
    assert rb"\u0000" not in body.replace(rb"\\", b"")
    body.decode("utf-8", "strict")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (rb'"\u0000"', "␀"),
        (rb'"\\u0000"', r"\u0000"),
        (rb'"\\\u0000"', "\\␀"),
        (rb'"\\\\u0000"', r"\\u0000"),
        (rb'"\u0000\u0000\\u0000"', "␀␀\\u0000"),
        (rb'"\ud83d\ude00"', "😀"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\uDE00\uD83D"', "\ufffd\ufffd"),
        (rb'"\\ud83d"', r"\ud83d"),
    ],
)
def test_an_escaped_backslash_begins_no_escape(body: bytes, text: str) -> None:
    assert decode(body) == text


@pytest.mark.parametrize("number", ["18446744073709551616", "-99999999999999999999999", "0"])
def test_an_integer_of_any_size_stays_exact(number: str) -> None:
    assert decode(number.encode()) == int(number)


@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b'"a', rb'"\ud8', b"\xff"])
def test_what_is_not_json_says_so(body: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(body)


def test_clean_text_shows_what_postgres_cannot_hold() -> None:
    assert clean_text("a\x00b\ud800") == "a␀b\ufffd"


@pytest.mark.parametrize("levels", [90, 400, 20_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_what_nests_too_deep_stands_as_its_text(levels: int, indent: int | None) -> None:
    inner = '{"]": "[", "a": ' * levels + "1" + "}" * levels
    if indent:
        inner = (
            "".join(f'\n{"  " * n}{{"]": "[", "a": ' for n in range(levels)) + "1" + "}" * levels
        )
    body = f'{{"id": "cus_1", "odd": {inner}, "name": "b"}}'.encode()
    value = decode(body)
    assert isinstance(value, dict)
    assert (value["id"], value["name"]) == ("cus_1", "b")
    deepest, depth = value["odd"], 0
    while isinstance(deepest, dict):
        deepest, depth = deepest["a"], depth + 1
    assert deepest == 1 if levels < 100 else isinstance(deepest, str) and deepest[:5] == '{"]":'
    assert depth == min(levels, 99)
    assert is_whole_object(body)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("1e400", "1e400"),
        ("-1e400", "-1e400"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("7" * 5000, "7" * 5000),
        ("[1, -2, 1.5, 1e400]", [1, -2, 1.5, "1e400"]),
        ("18446744073709551616", 2**64),
    ],
)
def test_a_number_that_nothing_holds_becomes_a_text(written: str, kept: object) -> None:
    body = f'{{"amount": {written}}}'.encode()
    assert is_whole_object(body)
    assert decode(body) == {"amount": kept}
