"""What is left of a row once personal data is dropped or hashed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pinstripe.catalog.personal import Policy
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.rows.personal import Erased, Personal

KEY = b"k" * 32
DROP = Personal(Policy.everything("drop"))
CUSTOMER: dict[str, Any] = {
    "id": "cus_1",
    "object": "customer",
    "address": {"city": "Berlin", "country": "DE"},
    "balance": 5,
    "currency": "eur",
    "email": "a@example.com",
    "metadata": {"a": "b"},
    "new_field": {"who": "Anna", "charge": "ch_1PgafyB7WZ01zgkW", "count": 3},
    "new_flag": True,
    "preferred_locales": ["de"],
}


def columns(obj: dict[str, Any], personal: Personal, *without: str) -> dict[str, Any]:
    """`without`: columns that the user has retyped, so that their values stand in `_extra`."""
    table = tables()[table_of_object()[obj["object"]]]
    table = replace(table, columns=tuple(c for c in table.columns if c.name not in without))
    found = RowSet()
    Extractor({table.name: table}, personal=personal).object(obj, found)
    (row,) = found.rows[table.name].values()
    names = [c.name for c in table.columns] + ["_extra"]
    return {n: v for n, v in zip(names, row, strict=False) if v is not None}


def test_dropped_values_are_null_and_the_rest_stays() -> None:
    kept = columns(CUSTOMER, DROP)
    assert json.loads(kept.pop("_extra")) == {
        "new_field": {"who": None, "charge": "ch_1PgafyB7WZ01zgkW", "count": 3},
        "new_flag": True,
    }
    assert kept == {
        "id": "cus_1",
        "object": "customer",
        "balance": 5,
        "currency": "eur",
        "preferred_locales": ["de"],
        "deleted": False,
    }


def test_hashes_of_equal_texts_are_equal_and_depend_on_the_key() -> None:
    one = columns(CUSTOMER, Personal(Policy.everything("hash"), KEY))
    same = columns(
        {**CUSTOMER, "description": "a@example.com"}, Personal(Policy.everything("hash"), KEY)
    )
    other = columns(CUSTOMER, Personal(Policy.everything("hash"), b"x" * 32))
    assert one["email"] == same["email"] == same["description"] != other["email"]
    assert len(one["email"]) == 37
    assert "example" not in json.dumps(one)
    assert json.loads(one["metadata"])["a"].startswith("hash_")


def test_a_hash_is_not_hashed_again_when_stored_rows_are_rewritten() -> None:
    personal = Personal(Policy.everything("hash"), KEY)
    first = personal.clean_columns(tables()["customer"], {"email": "a@example.com"})
    assert personal.clean_columns(tables()["customer"], first) == {}


def test_an_event_is_cleaned_by_the_type_that_it_carries() -> None:
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.updated",
        "data": {
            "object": CUSTOMER,
            "previous_attributes": {"email": "old@example.com", "balance": 4},
        },
        "request": {"id": "req_1", "idempotency_key": "for a@example.com"},
    }
    payload = ("data_object", "data_previous_attributes")
    for without in (payload, payload[:1], payload[1:]):
        extra = columns(event, DROP, *without)["_extra"]
        assert "example" not in extra
        assert "balance" in extra
    kept = columns(event, DROP)
    assert "example" not in json.dumps(kept)
    assert json.loads(kept["data_object"])["balance"] == 5
    assert json.loads(kept["data_previous_attributes"]) == {"email": None, "balance": 4}


def test_what_a_thin_event_says_of_before_and_after_is_cleaned_by_names() -> None:
    changes = {
        "before": {"email": "old@example.com", "new_field": "a@example.com"},
        "after": {"email": "a@example.com", "balance": 5, "address": {"city": "Berlin"}},
    }
    thin = {"id": "evt_1", "object": "v2.core.event", "type": "v1.customer.updated"}
    assert json.loads(columns({**thin, "changes": changes}, DROP)["changes"]) == {
        "before": {"email": None, "new_field": None},
        "after": {"email": None, "balance": 5, "address": None},
    }


def test_the_parts_of_a_date_of_birth_go_though_they_are_numbers() -> None:
    person = {"id": "person_1", "object": "person", "dob": {"day": 7, "month": 8, "year": 1990}}
    assert not {name for name in columns(person, DROP) if name.startswith("dob")}


def test_what_refers_to_an_erased_object_is_erased_and_becomes_one() -> None:
    erased = Erased()
    erased.ids = {"cus_1"}
    found = RowSet()
    charge: dict[str, Any] = {
        "id": "ch_1",
        "object": "charge",
        "customer": "cus_1",
        "description": "for Anna",
    }
    refund: dict[str, Any] = {
        "id": "re_1",
        "object": "refund",
        "charge": "ch_1",
        "description": "for Anna",
    }
    stranger: dict[str, Any] = {
        "id": "ch_2",
        "object": "charge",
        "customer": "cus_2",
        "description": "for Bert",
    }
    for obj in (charge, refund, stranger):
        Extractor().object(obj, found)
    fresh = [key for table, key, row in found.places() if erased.forget(tables()[table], key, row)]
    assert fresh == ["ch_1", "re_1"]
    texts = {key: "for" in str(row) for _, key, row in found.places()}
    assert texts == {"ch_1": False, "re_1": False, "ch_2": True}


SESSION: dict[str, Any] = {
    "id": "cs_1",
    "object": "checkout.session",
    "collected_information": {
        "shipping_details": {"name": "Anna", "address": {"city": "Berlin", "country": "DE"}}
    },
}


def test_what_a_column_took_from_another_field_is_dropped_and_hashed_like_it() -> None:
    """`shipping_name` has the name that stands in `collected_information`."""
    assert "Anna" in columns(SESSION, Personal(Policy.everything("keep")))["shipping_name"]
    for action in ("drop", "hash"):
        kept = columns(SESSION, Personal(Policy.everything(action), KEY))
        assert "Anna" not in json.dumps(kept)
        assert "Berlin" not in json.dumps(kept)
        stored = {"shipping_name": "Anna", "shipping_address": {"city": "Berlin"}}
        changed = Personal(Policy.everything(action), KEY).clean_columns(
            tables()["checkout_session"], stored
        )
        assert changed.keys() == stored.keys()


def test_a_column_that_stripe_has_moved_can_be_left_out() -> None:
    policy = Policy.parse(personal_data=["keep"], columns=["-checkout_session.shipping_name"])
    kept = columns(SESSION, Personal(policy))
    assert "Anna" not in json.dumps(kept)
    assert "Berlin" in json.dumps(kept)
