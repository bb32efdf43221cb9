"""What a call to wait asks for: read from its query, or refused with the name of what is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinstripe.catalog.model import object_types
from pinstripe.catalog.relations import prefixes, types_of
from pinstripe.gateway.http.errors import HTTPError
from pinstripe.gateway.wait.endpoint import parse_query
from pinstripe_simulator.account import Account, Settings

_NAMES = st.sampled_from(["request", "object", "event", "type", "timeout", "settle", "previews"])
_VALUES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["cus_1", "req_1", "evt_1", "product", "1e309", "-0", "nan", "true", "0"]),
    st.floats().map(str),
)


@given(st.lists(st.tuples(st.one_of(_NAMES, st.text(max_size=10)), _VALUES), max_size=6))
def test_any_query_is_a_wish_or_is_refused_as_bad(query: list[tuple[str, str]]) -> None:
    try:
        options = parse_query(query, settle_s=0.25)
    except HTTPError as no:
        refused = no
    else:
        assert 0 <= options.timeout_s <= 300
        assert 0 <= options.settle_s <= 60
        return
    assert refused.status == 400
    assert json.loads(bytes(refused.response().body))["error"]["message"]


def test_nothing_asked_for_is_the_plain_form() -> None:
    options = parse_query([], settle_s=0.25)
    assert options.is_plain
    assert (options.timeout_s, options.settle_s, options.previews) == (30.0, 0.25, True)


def test_several_things_are_waited_for_together_each_once() -> None:
    options = parse_query(
        [("object", "cus_1"), ("object", "sub_1"), ("object", "cus_1"), ("request", "req_1")],
        settle_s=0.0,
    )
    assert options.objects == (("customer", "cus_1"), ("subscription", "sub_1"))
    assert options.requests == ("req_1",)


@pytest.mark.parametrize("name", ["billing_portal.configuration", "billing_portal_configuration"])
def test_the_type_is_named_as_stripe_does_or_as_its_table(name: str) -> None:
    options = parse_query([("object", "my own"), ("type", name)], settle_s=0.0)
    assert options.objects == (("billing_portal_configuration", "my own"),)


def test_every_prefix_names_types_that_exist() -> None:
    assert {name for names in prefixes().values() for name in names} <= object_types().keys()


def test_ids_of_a_whole_account_tell_their_type() -> None:
    """All objects that the simulator has, but for those whose ids users choose or are plain names."""
    account = Account(Settings(scale=300, future_fields=False))
    wrong = set()
    for name, table in account.world.tables.items():
        kind = table.kind
        if not kind.prefix or not table.total or "@" in name:
            continue
        key = table.ids.encode(0)
        if key.startswith(f"{kind.prefix}_") and kind.name not in types_of(key):
            wrong.add((name, key))
    assert wrong == set()
