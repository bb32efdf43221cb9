"""What paths and answers say of objects, without any I/O."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstripe.catalog.model import object_types
from pinstripe.client.response import StripeObject
from pinstripe.client.transport import TooLarge, Unreadable
from pinstripe.gateway.proxy.accounts import credentials_of
from pinstripe.gateway.proxy.objects import (
    UNPACKED_BYTES,
    agrees,
    is_preview,
    parents_of,
    places_of,
    read,
    read_aside,
    unpack,
)
from pinstripe.gateway.proxy.upstream import METHODS, RequestRejected, checked, end_to_end
from pinstripe.rows.extract import Extractor

EXTRACTOR = Extractor()


@pytest.mark.parametrize(
    ("path", "places"),
    [
        ("/v1/customers", []),
        ("/v1/customers/search", []),
        ("/v1/customers/cus_1", [("customer", "cus_1")]),
        ("/v1/products/a%2Fb", [("product", "a/b")]),
        ("/v1/invoices/in_1/pay", [("invoice", "in_1")]),
        ("/v1/issuing/cards/ic_1", [("issuing_card", "ic_1")]),
        (
            "/v1/transfers/tr_1/reversals/trr_1",
            [("transfer", "tr_1"), ("transfer_reversal", "trr_1")],
        ),
        ("/v1/account", []),
        ("/v1/customers/", [("customer", "")]),
    ],
)
def test_a_path_names_its_objects(path: str, places: list[tuple[str, str]]) -> None:
    assert places_of(path) == places


def test_a_query_may_name_the_parent() -> None:
    path = "/v1/entitlements/active_entitlements"
    assert parents_of(path, "limit=3&customer=cus_1") == {"customer": "cus_1"}


@pytest.mark.parametrize(
    ("path", "preview"),
    [
        ("/v1/invoices/create_preview", True),
        ("/v1/invoices/upcoming", True),
        ("/v1/invoices/upcoming/lines", True),
        ("/v1/invoices/upcoming_in_1/lines", True),
        ("/v1/credit_notes/preview", True),
        ("/v1/credit_notes/preview/lines", True),
        ("/v1/invoices/in_1", False),
        ("/v1/products/preview", False),
        ("/v1/plans/upcoming", False),
        ("/v1/coupons/upcoming_in_may", False),
        ("/v1/quotes/qt_1/computed_upfront_line_items", False),
    ],
)
def test_what_exists_nowhere_is_known_by_its_path(path: str, preview: bool) -> None:
    assert is_preview(path) is preview


def test_objects_lists_and_errors_are_read_alike() -> None:
    customer = {"id": "cus_1", "object": "customer", "livemode": True}
    charge = {"id": "ch_1", "object": "charge", "customer": customer}
    for told, top in (
        (charge, ("charge", "ch_1")),
        ({"object": "list", "data": [charge], "has_more": False, "url": "/v1/charges"}, None),
        ({"data": [charge], "next_page_url": None}, None),
        ({"error": {"type": "card_error", "charge": charge}}, None),
    ):
        found = read(msgspec.json.encode(told), EXTRACTOR, {})
        assert found.top == top
        assert set(found.places()) == {("charge", "ch_1"), ("customer", "cus_1")}
    gone = read(b'{"id": "cus_1", "object": "customer", "deleted": true}', EXTRACTOR, {})
    assert gone.deleted


def test_the_mode_is_told_by_each_object() -> None:
    entries = [{"object": "customer", "id": "a", "livemode": m} for m in (True, False)]
    found = read(msgspec.json.encode({"object": "list", "data": entries}), EXTRACTOR, {})
    assert found.modes == {True, False}


@given(st.binary(max_size=200), st.sampled_from([b"", b"gzip", b"br", b"deflate", b"GZIP "]))
def test_garbage_is_unreadable_and_nothing_worse(body: bytes, encoding: bytes) -> None:
    with suppress(Unreadable):
        read(asyncio.run(unpack(body, encoding)), EXTRACTOR, {})


async def test_packed_bodies_are_unpacked() -> None:
    assert await unpack(gzip.compress(b"{}"), b"gzip") == b"{}"
    assert await unpack(zlib.compress(b"{}"), b"deflate") == b"{}"
    long = bytes(range(256)) * 20_000
    assert await unpack(gzip.compress(long), b"gzip") == long
    with pytest.raises(Unreadable):
        await unpack(gzip.compress(long)[:-100], b"gzip")


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b""])
async def test_a_body_that_unpacks_to_too_much_is_not_unpacked(encoding: bytes) -> None:
    zeros = bytes(64 * 2**20)
    packed = {b"gzip": gzip.compress(zeros), b"deflate": zlib.compress(zeros), b"": zeros}
    bomb = packed[encoding]
    del zeros, packed
    tracemalloc.start()
    with pytest.raises(TooLarge):
        await unpack(bomb, encoding)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * UNPACKED_BYTES + 4 * 2**20


async def test_the_event_loop_goes_on_while_a_long_body_is_read() -> None:
    entries = [{"object": "customer", "id": f"cus_{n}", "name": "x" * 100} for n in range(4000)]
    body = msgspec.json.encode({"object": "list", "data": entries})
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = asyncio.create_task(take_turns())
    parsed = await read_aside(body, EXTRACTOR, {})
    others.cancel()
    assert parsed.row_set.count() == 4000
    assert turns > 1  # In the loop, none.


@pytest.mark.parametrize(
    ("headers", "shown"),
    [
        ([(b"authorization", b"Bearer sk_test_abc")], (b"sk_test_abc", False, "")),
        ([(b"authorization", b"bearer rk_live_abc")], (b"rk_live_abc", True, "")),
        ([(b"authorization", b"Basic c2tfdGVzdF9hYmM6")], (b"sk_test_abc", False, "")),
        (
            [(b"authorization", b"Bearer sk_test_abc"), (b"stripe-account", b"acct_1")],
            (b"sk_test_abc", False, "acct_1"),
        ),
        ([(b"authorization", b"Bearer pk_test_abc")], None),
        ([(b"authorization", b"Basic !!!")], None),
        ([(b"authorization", b"Basic \xff\xfe")], None),
        ([], None),
    ],
)
def test_a_request_shows_its_key(
    headers: list[tuple[bytes, bytes]], shown: tuple[bytes, bool, str] | None
) -> None:
    found = credentials_of(headers)
    assert (found and (found.key, found.livemode, found.account)) == shown
    assert "abc" not in repr(found)


def test_headers_of_the_connection_stay_and_stripes_are_never_lost() -> None:
    headers = [
        (b"connection", b"close, x-hop, idempotency-key, stripe-version, authorization"),
        (b"x-hop", b"1"),
        (b"idempotency-key", b"k"),
        (b"stripe-version", b"v"),
        (b"authorization", b"a"),
        (b"pinstripe-wait", b"true"),
        (b"transfer-encoding", b"chunked"),
    ]
    assert [name for name, _ in end_to_end(headers)] == [
        b"idempotency-key",
        b"stripe-version",
        b"authorization",
    ]


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "BREW", "get", ""])
def test_other_methods_are_turned_away(method: str) -> None:
    assert method not in METHODS
    with pytest.raises(RequestRejected) as turned:
        checked(method, [], body_limit=1)
    assert turned.value.status == 405


_HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"content-length", b"transfer-encoding", b"host", b"x-a", b"connection"]),
        st.binary(max_size=12),
    ),
    max_size=5,
)


@given(_HEADERS)
def test_headers_are_passed_on_whole_or_refused(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        told = checked("POST", headers, body_limit=1000)
    except RequestRejected:
        return
    assert all("\r" not in v and "\n" not in v and "\0" not in v for _, v in told)
    names = [n for n, _ in headers]
    assert not (b"content-length" in names and b"transfer-encoding" in names)


def _items(**quantities: int) -> StripeObject:
    entries = [
        {"id": key, "object": "subscription_item", "quantity": quantity}
        for key, quantity in quantities.items()
    ]
    return {"object": "list", "data": entries, "has_more": False}


@pytest.mark.parametrize(
    ("answered", "shown", "alike"),
    [
        ({"name": "a", "older": 1}, {"name": "a", "newer": 2}, True),
        ({"name": "a"}, {"name": "b"}, False),
        ({"name": None}, {"name": "b"}, False),
        ({"shipping": None}, {"shipping": {"name": "b"}}, False),
        ({"shipping": {"name": "a", "older": 1}}, {"shipping": {"name": "a"}}, True),
        ({"shipping": {"name": "a"}}, {"shipping": {"name": "b"}}, False),
        ({"metadata": {}}, {"metadata": {"a": "b"}}, False),
        ({"customer": {"id": "cus_1", "object": "customer"}}, {"customer": "cus_1"}, True),
        ({"plan": {"object": "plan", "id": "p"}}, {"plan": {"object": "plan", "id": "q"}}, True),
        ({"items": [1]}, {"items": {"object": "list"}}, True),
        ({"kinds": ["card", "link"]}, {"kinds": ["card", "link"]}, True),
        ({"kinds": ["card", "link"]}, {"kinds": ["card"]}, False),
        ({"discounts": [{"id": "di_1", "object": "discount"}]}, {"discounts": ["di_1"]}, True),
        ({"items": _items(a=1, b=2)}, {"items": _items(a=1, b=2)}, True),
        ({"items": _items(a=1, b=2)}, {"items": _items(a=1, b=1)}, False),
        ({"items": _items(a=1, b=2)}, {"items": _items(a=1)}, False),
        ({"items": _items(a=1, b=2)}, {"items": _items(a=1) | {"has_more": True}}, True),
        ({"items": _items(a=1)}, {"items": _items(a=1, b=1)}, False),
        ({"items": _items(a=1)}, {"items": _items()}, False),
        ({"items": _items(a=1)}, {"items": _items(il_a=2)}, True),
    ],
)
def test_a_read_agrees_with_a_write_in_what_both_versions_say_alike(
    answered: StripeObject, shown: StripeObject, alike: bool
) -> None:
    assert agrees(answered, shown) is alike


@pytest.mark.parametrize(
    ("answered", "shown", "alike"),
    [
        ({"name": "a", "older": 1}, {"name": "a"}, True),
        ({"name": "a"}, {}, False),
        ({"name": None}, {}, True),
        ({"client_secret": "s"}, {}, True),
        ({"shipping": {"name": "a"}}, {}, False),
        ({"shipping": {"name": "a", "older": 1}}, {"shipping": {"name": "a"}}, True),
        ({"shipping": {"name": "a", "phone": "1"}}, {"shipping": {"name": "a"}}, False),
    ],
)
def test_a_read_without_a_property_of_our_version_is_from_before_the_write(
    answered: StripeObject, shown: StripeObject, alike: bool
) -> None:
    fields = object_types()["payment_intent"].fields
    named = [*fields, *object_types()["customer"].fields]
    assert agrees(answered, shown, named) is alike
