"""Every list that Stripe has is listed, or there is a reason why not; and each is asked rightly."""

from __future__ import annotations

import re

import pytest

from pinstripe.catalog import endpoints, relations
from pinstripe.catalog import tables as tables_module
from pinstripe.catalog.endpoints import (
    ListEndpoint,
    expand_of,
    list_endpoints,
    retrieve_endpoints,
    singleton_paths,
)
from pinstripe.catalog.model import Field, Operation, object_types, spec
from pinstripe.catalog.relations import embedded_lists, parent_of, parent_parameter
from pinstripe.catalog.tables import SINGLETONS, table_of_object, tables

LISTS = {o.path: o for o in spec().operations if o.kind == "list"}
LISTED = {e.path for e in list_endpoints()}
NAMES = [e.stream for e in list_endpoints()]


def field_at(object_name: str, path: str) -> Field:
    """The catalog's field behind a dotted path."""
    fields = object_types()[object_name].fields
    for step in path.replace(".data.", ".").split("."):
        field = next(f for f in fields if f.name == step)
        fields = field.fields
        if field.kind in ("resource", "list") and len(field.targets) == 1:
            fields = object_types()[field.targets[0]].fields
    return field


def test_every_list_is_listed_or_embedded_or_left_alone_for_a_reason() -> None:
    without_table = {p for p, o in LISTS.items() if not set(o.returns) & set(table_of_object())}
    assert set(LISTS) - LISTED - endpoints._EMBEDDED - endpoints._NOT_LISTED == without_table
    assert without_table == set()


def test_no_list_is_in_two_of_the_tables() -> None:
    assert not LISTED & endpoints._EMBEDDED
    assert not LISTED & endpoints._NOT_LISTED
    assert not endpoints._EMBEDDED & endpoints._NOT_LISTED


@pytest.mark.parametrize("path", sorted(endpoints._EMBEDDED))
def test_the_parent_of_an_embedded_list_really_has_it(path: str) -> None:
    """In the object itself, by `expand[]` where Stripe leaves it out, or in what is expanded."""
    operation = LISTS[path]
    parent = parent_of(operation, {t.name for t in spec().objects if t.has_id})
    assert parent is not None
    found = []
    holders = [(parent, "")] + [
        (target, f"{name}.")
        for name in endpoints._EXPANDED_TOO.get(parent, ())
        for target in field_at(parent, name).targets
    ]
    for holder, prefix in holders:
        for field, where in embedded_lists(object_types()[holder].fields):
            dotted = prefix + ".".join(where)
            named = path.rpartition("/")[2].endswith(where[-1])
            if set(field.targets) & set(operation.returns) and (
                named or where[-1] in ("items", "list_items")
            ):
                asked = any(dotted.startswith(e) for e in expand_of((parent,)))
                found.append(asked or not field_at(parent, dotted).on_request)
    assert found, f"{parent} has no list of {operation.returns}"
    assert all(found), f"{path} is left out of its parent, and not expanded"


@pytest.mark.parametrize(
    "paths",
    [
        endpoints._VARIANTS,
        endpoints._TEST_CLOCK,
        endpoints._NOT_LISTED,
        endpoints._EMBEDDED,
        endpoints._ONLY_WHEN,
        endpoints._ONLY_IF_ANY,
        relations.NOT_LISTS,
        {path for path, _ in relations._PARAMETERS},
    ],
)
def test_every_path_of_the_hand_tables_is_a_list(paths: set[str]) -> None:
    assert set(paths) <= set(LISTS)


def test_every_parameter_of_the_hand_table_is_one_and_stands_for_an_object() -> None:
    for (path, parameter), stands_for in relations._PARAMETERS.items():
        assert parent_parameter(LISTS[path]) == parameter
        assert object_types()[stands_for].has_id


def test_every_other_entry_of_the_hand_tables_matches_something() -> None:
    for path in tables_module.NOT_EXPANDED:
        owner = max((n for n in object_types() if path.startswith(f"{n}.")), key=len)
        assert field_at(owner, path.removeprefix(f"{owner}.")).on_request, path
    for name, fields in endpoints._EXPANDED_TOO.items():
        for path in fields:
            field = field_at(name, path)
            assert (field.items or field).kind in ("expandable", "resource"), path
    for path, table in endpoints._ONLY_IF_ANY.items():
        assert table in tables(), path
    for path, condition in endpoints._ONLY_WHEN.items():
        endpoint = next(e for e in list_endpoints() if e.path == path)
        column = condition.split()[0]
        assert tables()[table_of_object()[endpoint.parent]].column(column)
    for path, variants in endpoints._VARIANTS.items():
        names = {p.name for p in LISTS[path].params}
        assert {key.split("[")[0] for v in variants for key, _ in v} <= names
    for path in endpoints._TEST_CLOCK:
        assert "test_clock" in {p.name for p in LISTS[path].params}
    for child, parent in relations._NOT_CHILDREN:
        lists = embedded_lists(object_types()[parent].fields)
        assert any(child in field.targets for field, _ in lists)
    assert set(SINGLETONS) <= set(object_types())


def test_every_list_that_takes_a_test_clock_is_asked_per_clock() -> None:
    taking = {p for p, o in LISTS.items() if "test_clock" in {q.name for q in o.params}}
    assert taking == set(endpoints._TEST_CLOCK)


@pytest.mark.parametrize("endpoint", list_endpoints(), ids=NAMES)
def test_every_required_parameter_is_supplied_and_no_unknown_one(endpoint: ListEndpoint) -> None:
    operation = LISTS[endpoint.path]
    in_path = set(re.findall(r"{(\w+)}", endpoint.path))
    required = {p.name for p in operation.params if not p.nullable} | in_path
    supplied = {key.split("[")[0] for key, _ in endpoint.params}
    supplied |= {endpoint.parameter} - {""}
    assert required <= supplied
    assert supplied <= {p.name for p in operation.params} | in_path
    assert bool(endpoint.parent) == bool(endpoint.parameter)


UNDER_PARENTS = [e for e in list_endpoints() if e.parent]


@pytest.mark.parametrize("endpoint", UNDER_PARENTS, ids=lambda e: e.stream)
def test_a_url_has_no_braces_left_and_carries_the_parent(endpoint: ListEndpoint) -> None:
    path, params = endpoint.url("a/b", "a%2Fb")
    assert "{" not in path
    assert ("a%2Fb" in path) != ((endpoint.parameter, "a/b") in params)
    assert set(endpoint.params) <= set(params)


@pytest.mark.parametrize("endpoint", list_endpoints(), ids=NAMES)
def test_limit_and_created_are_sent_only_where_the_list_takes_them(endpoint: ListEndpoint) -> None:
    names = {p.name for p in LISTS[endpoint.path].params}
    assert endpoint.takes_limit == ("limit" in names)
    assert not endpoint.created or "created" in names


def test_a_list_that_filters_on_created_has_objects_that_say_when() -> None:
    for endpoint in list_endpoints():
        if endpoint.created:
            name = "date" if endpoint.path == "/v1/invoiceitems" else "created"
            for each in endpoint.objects:
                assert field_at(each, name).kind == "time", endpoint.path


def test_a_list_whose_objects_do_not_say_when_is_not_cut_into_ranges() -> None:
    taking = {p for p, o in LISTS.items() if "created" in {q.name for q in o.params}}
    cut = {e.path for e in list_endpoints() if e.created}
    assert {p for p in taking & LISTED if p.startswith("/v1")} - cut == {
        "/v1/product_catalog/trial_offers"
    }


def test_two_lists_take_no_limit() -> None:
    assert {e.path for e in list_endpoints() if not e.takes_limit} == {
        "/v1/accounts/{account}/capabilities",
        "/v1/reporting/report_types",
    }


@pytest.mark.parametrize("endpoint", list_endpoints(), ids=NAMES)
def test_every_expand_path_exists_and_is_left_out_otherwise(endpoint: ListEndpoint) -> None:
    for path in endpoint.expand:
        fields = [field_at(name, path) for name in endpoint.objects]
        extra = (endpoints._EXPANDED_TOO, endpoints.EXPANDED_IN_LISTS)
        wanted = [path in some.get(name, ()) for name in endpoint.objects for some in extra]
        assert any(f.on_request for f in fields) or any(wanted)
        # Stripe allows four levels; `data.` of the list is one of them.
        assert path.count(".") <= 2


SECRET = re.compile(
    r"(^|[._])(cvc|number|secret|client_secret|payload|key|password|verified_outputs|dob|id_number)($|[._])"
)


def test_nothing_asks_for_card_numbers_or_secrets() -> None:
    asked = {p for e in list_endpoints() for p in e.expand}
    asked |= {p for r in retrieve_endpoints().values() for p in r.expand}
    assert [p for p in asked if SECRET.search(p)] == []


def test_lists_that_hide_rows_are_asked_for_all() -> None:
    variants = {(e.path, e.params) for e in list_endpoints()}
    assert ("/v1/subscriptions", (("status", "all"),)) in variants
    assert ("/v1/prices", ()) in variants
    assert ("/v1/prices", (("active", "false"),)) in variants
    clocks = {e.path for e in list_endpoints() if e.parent == "test_helpers.test_clock"}
    assert clocks == {"/v1/customers", "/v1/subscriptions", "/v1/quotes"}


def test_no_two_cursors_have_one_name() -> None:
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", sorted(retrieve_endpoints()))
def test_a_retrieve_answers_with_its_object_and_needs_one_id_or_two(name: str) -> None:
    endpoint = retrieve_endpoints()[name]
    operation = _retrieve(endpoint.path)
    assert operation.returns == (name,)
    assert not [p.name for p in operation.params if not p.nullable]
    parameters = re.findall(r"{(\w+)}", endpoint.path)
    assert parameters[:-1] == ([endpoint.parent_parameter] if endpoint.parent_parameter else [])


@pytest.mark.parametrize("name", sorted(singleton_paths()))
def test_a_singleton_has_its_path(name: str) -> None:
    assert _retrieve(singleton_paths()[name]).returns == (name,)


def test_the_parent_of_a_list_is_listed_itself_or_known_not_to_be() -> None:
    """The rows of the others come by events, by reference and through the proxy."""
    listed = {n for e in list_endpoints() if not e.parent for n in e.objects}
    assert {e.parent for e in list_endpoints() if e.parent} - listed == {
        "source",
        "tax.calculation",
        "tax.transaction",
    }


def _retrieve(path: str) -> Operation:
    return next(o for o in spec().operations if o.path == path and o.method == "GET")
