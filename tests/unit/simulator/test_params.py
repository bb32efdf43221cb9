"""Stripe's form encoding, read back; and its strictness."""

from __future__ import annotations

import pytest

from pinstripe.catalog.model import Field, Operation
from pinstripe_simulator.params import Params, check, parse
from pinstripe_simulator.replies import StripeError

LIST = Operation(
    method="GET",
    path="/v1/things",
    kind="list",
    params=(
        Field("created", "time", nullable=True),
        Field("limit", "integer", nullable=True),
        Field("owner", "string"),
        Field("state", "string", nullable=True, enum=("good", "bad")),
        Field("active", "boolean", nullable=True),
        Field("types", "array", nullable=True, items=Field("types", "string")),
    ),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1&b=", {"a": "1", "b": ""}),
        ("created%5Bgte%5D=5&created[lt]=9", {"created": {"gte": "5", "lt": "9"}}),
        ("expand[]=x&expand[]=y", {"expand": ["x", "y"]}),
        ("types[0]=a&types[1]=b", {"types": ["a", "b"]}),
        (
            "items[0][price]=p&items[0][quantity]=2&items[1][price]=q",
            {"items": [{"price": "p", "quantity": "2"}, {"price": "q"}]},
        ),
        ("items[][price]=p&items[][price]=q", {"items": [{"price": "p"}, {"price": "q"}]}),
        ("metadata[a b]=c%26d", {"metadata": {"a b": "c&d"}}),
        ("name=%00%F0%9F%A6%93", {"name": "\x00🦓"}),
    ],
)
def test_form_encoding_becomes_nested_values(text: str, expected: Params) -> None:
    assert parse(text) == expected


def test_values_are_typed_as_the_operation_says() -> None:
    given = parse("owner=o&limit=5&created[gte]=7&active=false&types[]=x")
    assert check(LIST, given) == {
        "owner": "o",
        "limit": 5,
        "created": {"gte": 7},
        "active": False,
        "types": ["x"],
    }


@pytest.mark.parametrize(
    ("text", "code", "param"),
    [
        ("limit=5", "parameter_missing", "owner"),
        ("owner=o&colour=1", "parameter_unknown", "colour"),
        ("owner=o&limit=5.0", "parameter_invalid_integer", "limit"),
        ("owner=o&created[at]=5", "parameter_unknown", "created[at]"),
        ("owner=o&created[gt]=x", "parameter_invalid_integer", "created[gt]"),
        ("owner=o&active=yes", "parameter_invalid_boolean", "active"),
        ("owner=o&state=odd", "", "state"),
        ("owner=o&types=x", "parameter_invalid_array", "types"),
        ("owner=", "parameter_invalid_empty", "owner"),
    ],
)
def test_what_stripe_refuses_is_refused(text: str, code: str, param: str) -> None:
    with pytest.raises(StripeError) as raised:
        check(LIST, parse(text))
    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, param)
