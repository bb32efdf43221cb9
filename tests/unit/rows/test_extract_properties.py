"""What holds for every object whatever: generated from the catalog's types, odd ones among them."""

from __future__ import annotations

import copy
import json
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.rows.made_up import WITH_TABLE, Maker, makers
from tests.unit.rows.rebuild import Json, lost, replica

from pinstripe.catalog.model import object_types
from pinstripe.catalog.tables import table_of_object, tables
from pinstripe.rows.extract import Extractor, RowSet

quick = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
names = st.sampled_from(WITH_TABLE)
EXTRACTOR = Extractor()


def rows_of(extractor: Extractor, obj: Json) -> RowSet:
    found = RowSet()
    extractor.object(obj, found)
    return found


@quick
@given(makers(), names)
def test_every_object_comes_back_leaf_by_leaf(maker: Maker, name: str) -> None:
    obj = maker.object(name)
    found = RowSet()
    key = EXTRACTOR.object(obj, found)
    assert key is not None
    table = tables()[table_of_object()[name]]
    assert lost(obj, replica(EXTRACTOR, found).rebuild(table, key, obj)) == []


@quick
@given(makers(), names)
def test_the_compiled_and_the_generic_way_give_the_same_rows(maker: Maker, name: str) -> None:
    obj = maker.object(name)
    extractor = Extractor()
    compiled = rows_of(extractor, obj)
    forget_compiled(extractor)
    generic = rows_of(extractor, obj)
    assert generic.rows == compiled.rows
    assert generic.variants == compiled.variants
    assert generic.elsewhere == compiled.elsewhere
    assert generic.lists == compiled.lists
    assert generic.unknown == compiled.unknown
    assert generic.drift == compiled.drift


@quick
@given(makers(), names)
def test_a_null_makes_a_column_and_an_absent_key_does_not(maker: Maker, name: str) -> None:
    obj = maker.object(name, depth=1)
    found = RowSet()
    key = EXTRACTOR.object(obj, found)
    assert key is not None
    table = tables()[table_of_object()[name]]
    shape = set(EXTRACTOR.shapes.columns(found.rows[table.name][key][-1]))
    # Sub-keys that `expand[]` must name: missing in a present object, they are not null either.
    optional = {
        (outer.name, inner.name)
        for outer in object_types()[name].fields
        if not outer.on_request
        for inner in outer.fields
        if inner.on_request
    }
    for column in table.columns:
        if column.name in table.key or column.read == "deleted":
            assert column.name in shape
        elif column.read == "parent":
            assert column.name not in shape
        elif column.moved is not None:
            fields = {*column.path[:1], *column.moved.fields}
            assert (column.name in shape) == (not fields.isdisjoint(obj)), column.name
        elif column.path not in optional:
            assert (column.name in shape) == (column.path[0] in obj), column.name
        else:
            outer = obj.get(column.path[0], False)
            said = outer is None or (isinstance(outer, dict) and column.path[1] in outer)
            assert (column.name in shape) == said, column.name


@quick
@given(makers(), names)
def test_the_order_of_keys_does_not_matter(maker: Maker, name: str) -> None:
    obj = maker.object(name)
    turned = shuffled(obj, maker.random)
    before, after = rows_of(EXTRACTOR, obj), rows_of(EXTRACTOR, turned)
    assert values(after) == values(before)


@quick
@given(makers(), names)
def test_extraction_leaves_its_input_alone(maker: Maker, name: str) -> None:
    obj = maker.object(name)
    before = copy.deepcopy(obj)
    rows_of(EXTRACTOR, obj)
    assert obj == before


@quick
@given(makers(), names)
def test_a_row_has_a_value_of_the_stages_type_in_every_place(maker: Maker, name: str) -> None:
    found = rows_of(EXTRACTOR, maker.object(name))
    for table, group in found.rows.items():
        for row in group.values():
            for column, value in zip(tables()[table].columns, row, strict=False):
                assert value is None or fits_the_stage(column.read, value), (table, column, value)


def forget_compiled(extractor: Extractor) -> None:
    """Leaves `extractor` with the generic way for all layouts that it has made."""
    for plan in extractor._plans.values():
        for layout in plan.layouts.values():
            layout.make = None


def shuffled(value: Json, random: Random) -> Json:
    """The same value with the keys of all objects in another order."""
    if isinstance(value, list):
        return [shuffled(item, random) for item in value]
    if not isinstance(value, dict):
        return value
    items = list(value.items())
    random.shuffle(items)
    return {key: shuffled(item, random) for key, item in items}


def values(found: RowSet) -> Json:
    """Rows without what the order of keys may change: JSON text is compared as JSON."""
    kept = replica(EXTRACTOR, found)
    return {
        key: ({name: comparable(name_value) for name, name_value in row.values.items()}, row.extra)
        for key, row in kept.rows.items()
    }


def comparable(value: Json) -> Json:
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def fits_the_stage(read: str, value: Json) -> bool:
    if read in ("integer", "time", "time_ms"):
        return type(value) is int and -(2**63) <= value < 2**63
    if read in ("boolean", "deleted"):
        return type(value) is bool
    if read in ("texts", "ids"):
        return isinstance(value, list) and all(type(item) is str for item in value)
    return type(value) is str
