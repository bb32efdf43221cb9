"""The description of the API says something of everything, and points nowhere that is not there."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from pinstripe.gateway.api.endpoint import Endpoint
from pinstripe.gateway.api.openapi import describe, field_docs
from pinstripe.gateway.api.syncs import Sync
from pinstripe.gateway.app import ROUTES
from pinstripe.gateway.syncs import NewSync

DOCUMENT: Any = json.loads(msgspec.json.encode(describe(ROUTES)))


def test_every_reference_leads_to_a_schema() -> None:
    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert named <= set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize("endpoint", ROUTES, ids=lambda e: f"{e.method} {e.path}")
def test_every_endpoint_is_described(endpoint: Endpoint) -> None:
    operation = DOCUMENT["paths"][endpoint.path][endpoint.method.lower()]
    assert operation["summary"].endswith(".")
    named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
    assert named == set(re.findall(r"\{(\w+)\}", endpoint.path))
    assert operation["responses"]["default"]["content"]["application/json"]


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [o["operationId"] for path in DOCUMENT["paths"].values() for o in path.values()]
    assert len(names) == len(set(names)) == len(ROUTES)


def test_every_type_says_what_it_is() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert [name for name, schema in schemas.items() if not schema.get("description")] == []


def test_what_a_class_says_of_its_fields_is_in_the_description() -> None:
    assert "by default the id" in field_docs(NewSync)["schema"]
    assert DOCUMENT["components"]["schemas"]["Sync"]["properties"]["live"]["description"]


def test_no_answer_has_a_field_for_a_secret() -> None:
    fields = {f.name for f in msgspec.structs.fields(Sync)}
    assert not fields & {"api_key", "key", "token", "secret"}
    assert msgspec.structs.fields(Sync)[0].name == "id"
