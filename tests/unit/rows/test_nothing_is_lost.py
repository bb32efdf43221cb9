"""Each of Stripe's published examples comes back from its rows, leaf by leaf, however expanded.

The values in tests/data/examples.json are those of the examples in Stripe's API reference; ids and
texts are shortened.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.rows.made_up import Maker, makers
from tests.unit.rows.rebuild import Json, leaves, lost, replica

from pinstripe.catalog.model import Field, object_types
from pinstripe.catalog.tables import SINGLETONS, table_of_object, tables
from pinstripe.rows.extract import Extractor, RowSet

EXAMPLES: dict[str, dict[str, Json]] = json.loads(
    (Path(__file__).parents[2] / "data" / "examples.json").read_text()
)
MOST_TARGETS = max(len(f.targets) for t in object_types().values() for f in t.fields)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor()


def rebuilt(extractor: Extractor, obj: dict[str, Json]) -> Json:
    found = RowSet()
    key = extractor.object(obj, found)
    assert key is not None
    table = tables()[table_of_object()[obj["object"]]]
    return replica(extractor, found).rebuild(table, key, obj)


def test_there_are_examples_of_nearly_every_type_of_v1() -> None:
    of_v1 = {name for name in table_of_object() if not name.startswith("v2.")}
    assert len(of_v1 & set(EXAMPLES)) >= 0.9 * len(of_v1)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_comes_back_leaf_by_leaf(extractor: Extractor, name: str) -> None:
    assert sum(1 for _ in leaves(EXAMPLES[name])) > 1
    assert lost(EXAMPLES[name], rebuilt(extractor, EXAMPLES[name])) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_expanded_example_comes_back_leaf_by_leaf(extractor: Extractor, name: str) -> None:
    for number in range(MOST_TARGETS):
        obj = copy.deepcopy(EXAMPLES[name])
        if expand(obj, object_types()[name].fields, number) == 0:
            break
        assert lost(obj, rebuilt(extractor, obj)) == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_fields_that_nobody_knows_come_back_from_every_level(
    extractor: Extractor, name: str
) -> None:
    obj = copy.deepcopy(EXAMPLES[name])
    for place in list(places(obj)):
        place["new_field"] = {"deep": [1, {"x": "y"}], "text": "t", "none": None}
        place["new_flag"] = True
    assert lost(obj, rebuilt(extractor, obj)) == []


@settings(max_examples=200, deadline=None, database=None)
@given(makers(), st.sampled_from(sorted(EXAMPLES)))
def test_an_example_with_values_of_other_types_comes_back(maker: Maker, name: str) -> None:
    obj = copy.deepcopy(EXAMPLES[name])
    for place in list(places(obj, lists=False)):
        for key in place:
            if key not in ("id", "object", SINGLETONS.get(name)) and maker.random.random() < 0.2:
                place[key] = maker.anything()
    assert lost(obj, rebuilt(Extractor(), obj)) == []


def test_what_the_catalog_knows_makes_no_extra(extractor: Extractor) -> None:
    """`_extra` is for surprises: the catalog's own fields have columns."""
    customer = {
        "object": "customer",
        "id": "cus_1",
        "name": "A name",
        "address": {"city": "A city", "line1": None},
        "balance": 2**40,
        "created": 1_700_000_000,
        "preferred_locales": ["de", "en"],
        "default_source": "card_1",
        "discount": None,
        "metadata": {"a": "b"},
    }
    found = RowSet()
    extractor.object(customer, found)
    row = found.rows["customer"]["cus_1"]
    assert row[len(tables()["customer"].columns)] is None
    assert not found.drift


def expand(obj: dict[str, Json], fields: tuple[Field, ...], number: int) -> int:
    """Puts whole examples where ids may stand: of the `number`-th possible type; gives how many."""
    ids = count(1)
    done = 0
    for place, field in expandable(obj, fields):
        targets = [t for t in field.targets if t in EXAMPLES and t in table_of_object()]
        if number < len(targets):
            whole = copy.deepcopy(EXAMPLES[targets[number]])
            _renumber(whole, f"_{obj['object']}_{next(ids)}")
            place[field.name] = [whole, "id_2"] if field.kind == "array" else whole
            done += 1
    return done


def expandable(
    obj: dict[str, Json], fields: tuple[Field, ...]
) -> Iterator[tuple[dict[str, Json], Field]]:
    """(object, field) of each place that `expand[]` can fill, at any depth of inline objects."""
    for field in fields:
        item = field.items
        if field.kind in ("expandable", "resource"):
            yield obj, field
        elif field.kind == "array" and item is not None and item.kind == "expandable":
            yield obj, Field(name=field.name, kind="array", targets=item.targets)
        elif field.kind == "object" and isinstance(obj.get(field.name), dict):
            yield from expandable(obj[field.name], field.fields)


def places(value: Json, *, lists: bool = True) -> Iterator[dict[str, Json]]:
    """Every JSON object in `value` but Stripe's lists, which speak for their entries only.

    Without `lists` their entries are left out too: an entry must go on naming its parent.
    """
    if isinstance(value, dict):
        listing = value.get("object") == "list"
        if not listing:
            yield value
        if lists or not listing:
            for item in list(value.values()):
                yield from places(item, lists=lists)
    elif isinstance(value, list):
        for item in value:
            yield from places(item, lists=lists)


def _renumber(value: Json, suffix: str) -> None:
    """Makes every id of `value` its own, and the references within it follow."""
    known = {p["id"] for p in places(value) if isinstance(p.get("id"), str) and "object" in p}
    for place in list(places(value)):
        for key, item in place.items():
            if isinstance(item, str) and item in known:
                place[key] = item + suffix
