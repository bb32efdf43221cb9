"""Secrets reach no row: each one is planted as a text of its own, and none of these is found again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random

import pytest
from tests.unit.catalog.test_secrets import fields
from tests.unit.rows.made_up import WITH_TABLE, Maker
from tests.unit.rows.rebuild import Json

from pinstripe.catalog.model import object_types
from pinstripe.catalog.secrets import SECRET_NAMES, SECRET_PLACES, is_secret
from pinstripe.rows.extract import Extractor, RowSet
from pinstripe.rows.secrets import without_secrets

EXAMPLES: dict[str, dict[str, Json]] = json.loads(
    (Path(__file__).parents[2] / "data" / "examples.json").read_text()
)
LOOKS = (
    "whsec_PLANTEDabc123",
    "ek_test_PLANTEDabc123",
    "ek_live_PLANTEDabc,123",
    "sk_live_PLANTEDabc123",
    "rk_test_PLANTEDabc123",
    "sk_org_live_PLANTEDabc123",
    "pst_test_PLANTEDabc123",
    "pi_3Abc_secret_PLANTEDabc123",
    "seti_1Abc_secret_PLANTEDabc123",
    "cs_test_a1Abc_secret_fidPLANTED%2F1",
    "vs_1Abc_secret_test_PLANTED1",
    "src_client_secret_PLANTEDabc123",
    "fcsess_client_secret_PLANTEDabc123",
    "cuss_secret_PLANTEDabc123",
    "accs_secret__PLANTEDabc123",
    "_test_cuss_secret_PLANTEDabc123",
)
NO_SECRETS = (
    "top_secret_plan",
    "my_secret_santa_2026",
    "keys begin with sk_live_ or sk_test_",
    "task_test_abcdefgh",
    "cs_test_a1Abcdef",
    "appsecret_5110QzMIZ0005GiEH1m0419O8KAxCG",
    "pk_live_abcdefgh1234",
    "https://example.com/secret_garden?x=1",
)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor()


def written(extractor: Extractor, obj: Json) -> str:
    """All values of all rows that `obj` makes, as one text."""
    found = RowSet()
    extractor.object(obj, found)
    rows = [row for group in found.rows.values() for row in group.values()]
    rows += [row for *_, row in found.variants]
    assert rows
    return repr(rows)


def put(obj: dict[str, Json], path: tuple[str, ...], value: Json) -> None:
    for step in path[:-1]:
        inner = obj.get(step)
        obj[step] = inner = inner if isinstance(inner, dict) else {}
        obj = inner
    obj[path[-1]] = value


SECRETS = sorted(
    (name, path)
    for name, path in fields()
    if is_secret(name, path) and (object_types()[name].has_id)
)


@pytest.mark.parametrize(("name", "path"), SECRETS, ids=str)
def test_a_secret_of_the_catalog_is_in_no_row(
    extractor: Extractor, name: str, path: tuple[str, ...]
) -> None:
    obj = copy.deepcopy(EXAMPLES.get(name, {"id": "id_1", "object": name}))
    put(obj, path, "PLANTED")
    assert "PLANTED" not in written(extractor, obj)


@pytest.mark.parametrize(("name", "path"), SECRETS, ids=str)
def test_a_secret_inside_other_objects_is_in_no_row(
    extractor: Extractor, name: str, path: tuple[str, ...]
) -> None:
    obj = copy.deepcopy(EXAMPLES.get(name, {"id": "id_1", "object": name}))
    put(obj, path, "PLANTED")
    before: dict[str, Json] = {}
    put(before, path, "PLANTED")
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "x",
        "data": {"object": obj, "previous_attributes": before},
        "new_field": obj,
    }
    assert "PLANTED" not in written(extractor, event)
    thin = {
        "id": "evt_2",
        "object": "v2.core.event",
        "related_object": {"id": "x", "type": name},
        "changes": {"before": before, "after": before},
        "data": obj,
    }
    assert "PLANTED" not in written(extractor, thin)
    nobody_knows = {"id": "cus_1", "object": "customer", "new_field": [{"deep": obj}]}
    assert "PLANTED" not in written(extractor, nobody_knows)
    failed = {
        "id": "in_1",
        "object": "invoice",
        "last_finalization_error": {"payment_intent": obj, "source": obj},
        "metadata": {},
    }
    assert "PLANTED" not in written(extractor, failed)


@pytest.mark.parametrize("name", [n for n in sorted(EXAMPLES) if n in WITH_TABLE])
def test_a_name_of_a_secret_is_one_in_fields_that_nobody_knows(
    extractor: Extractor, name: str
) -> None:
    obj = copy.deepcopy(EXAMPLES[name])
    for secret in SECRET_NAMES:
        obj[secret] = "PLANTED"
    obj["new_field"] = {"deep": [{secret: "PLANTED"} for secret in SECRET_NAMES]}
    assert "PLANTED" not in written(extractor, obj)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("text", ["{}", "https://hooks.example/r?client_secret={}&x=1", "a {}, b"])
def test_a_secret_is_known_by_its_look_in_any_field(
    extractor: Extractor, look: str, text: str
) -> None:
    planted = text.format(look)
    for obj in (
        {"id": "src_1", "object": "source", "redirect": {"url": planted, "new": planted}},
        {"id": "cus_1", "object": "customer", "description": planted},
        {"id": "cus_1", "object": "customer", "metadata": {"a": planted}},
        {"id": "cus_1", "object": "customer", "preferred_locales": [planted]},
        {"id": "cus_1", "object": "customer", "new_field": planted},
        {"id": "cus_1", "object": "customer", "name": {"not": [planted]}},
        {
            "id": "pi_1",
            "object": "payment_intent",
            "next_action": {"use_stripe_sdk": {"s": planted}},
        },
    ):
        shown = written(extractor, obj)
        assert "PLANTED" not in shown
        if text.endswith(", b"):
            assert " b" in shown


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_only_sounds_like_a_secret_is_kept(extractor: Extractor, text: str) -> None:
    obj = {"id": "cus_1", "object": "customer", "description": text, "metadata": {"k": text}}
    assert written(extractor, obj).count(text) == 2


def test_what_users_call_a_secret_in_their_metadata_is_theirs(extractor: Extractor) -> None:
    obj = {"id": "cus_1", "object": "customer", "metadata": {"secret": "Santa", "password": "hint"}}
    shown = written(extractor, obj)
    assert "Santa" in shown
    assert "hint" in shown


def test_the_object_itself_is_left_as_it_is(extractor: Extractor) -> None:
    """The proxy's caller gets the bytes; the event's reader goes on with the object."""
    obj = {
        "id": "pi_1",
        "object": "payment_intent",
        "client_secret": "x",
        "next_action": {"secret": "y"},
    }
    before = copy.deepcopy(obj)
    written(extractor, obj)
    assert obj == before
    event = {"id": "evt_1", "object": "event", "data": {"object": obj}}
    written(extractor, event)
    assert event["data"] == {"object": before}


def test_nothing_is_copied_where_nothing_is_secret() -> None:
    for seed in range(20):
        obj = Maker(Random(seed)).object("charge")
        plain = without_secrets(obj)
        assert without_secrets(plain) is plain


def test_every_place_of_a_secret_is_covered_by_an_example_or_made_up() -> None:
    assert {name for name, _ in SECRETS} >= {n for n in SECRET_PLACES if object_types()[n].has_id}
