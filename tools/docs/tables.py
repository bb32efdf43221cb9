"""The reference of all tables: an index, and a page for each domain.

From the same catalog that the tables themselves are made from; comments are those of the database.
"""

from __future__ import annotations

from collections.abc import Iterator

from pinstripe.catalog.descriptions import column_facts, describe_table, docs_url
from pinstripe.catalog.domains import DOMAINS, domain_by_table, domains
from pinstripe.catalog.endpoints import (
    ListEndpoint,
    expand_of,
    list_endpoints,
    retrieve_endpoints,
    singleton_paths,
)
from pinstripe.catalog.model import object_types, spec
from pinstripe.catalog.relations import embedded_lists, with_events
from pinstripe.catalog.tables import (
    PAYOUT_LINES,
    SINGLETONS,
    Column,
    Table,
    table_of_object,
    tables,
)
from pinstripe.store.ddl import BOOKKEEPING
from pinstripe.sync.relist import needs_head
from tools.docs.markdown import code, table

# More than these event types are abbreviated: the page says what keeps a table fresh, not each name.
_MOST_EVENTS = 6
_EVENT_LOG = "event"
_TEST_CLOCK = "test_helpers.test_clock"


def table_pages() -> dict[str, str]:
    """File name below `docs/reference/tables` -> text."""
    pages = {"index.md": _index()}
    for name, domain in DOMAINS.items():
        sections = "\n\n".join(_section(t, name) for t in domains()[name])
        pages[f"{name}.md"] = (
            f"# {domain.title}\n\n{domain.about}\n\n"
            f"[All tables](index.md) · [Diagram](../diagram/{name}.md)\n\n{sections}"
        )
    return pages


def _index() -> str:
    count = sum(len(t.all_columns) for t in tables().values())
    parts = [
        "# Tables",
        "",
        f"{len(tables())} tables with {count} columns, for Stripe's API version "
        f"`{spec().api_version}`. They stand in the Postgres schema `stripe` (a setting). The rules "
        "by which Stripe's objects become columns: [the schema](../../concepts/schema.md). How often "
        "lists are read again: [live](../../concepts/live.md#objects-without-events).",
        "",
        "Every table has these columns of ours too:",
        "",
        table(
            ("Column", "Type", "What it holds"),
            [
                (code(n), kind.replace(" NOT NULL", ""), text)
                for n, (kind, text) in BOOKKEEPING.items()
            ],
        ),
    ]
    for page, domain in DOMAINS.items():
        rows = [(_link(t.name), code(t.object_type), " ".join(_filled(t))) for t in domains()[page]]
        parts += ["", f"## [{domain.title}]({page}.md)", ""]
        parts.append(table(("Table", "Object", "Filled by"), rows))
    return "\n".join(parts)


def _section(t: Table, page: str) -> str:
    """One table: what it is, what fills it, what keeps it fresh, its columns."""
    rows = [
        (
            code(c.name),
            code(c.type),
            code(".".join(c.path)),
            _references(c, page),
            " ".join(column_facts(t, c)),
        )
        for c in t.all_columns
    ]
    lines = [
        f"## {t.name}",
        "",
        f"{describe_table(t)} [Stripe's page]({docs_url(t)}). Key: {', '.join(map(code, t.key))}.",
        "",
        f"- Filled by: {' '.join(_filled(t))}",
        f"- Kept fresh by: {_fresh(t)}",
        "",
        table(("Column", "Type", "Stripe field", "References", "Note"), rows),
    ]
    return "\n".join(lines)


def _filled(t: Table) -> Iterator[str]:
    """How rows get into the table, one sentence each."""
    if t.name == PAYOUT_LINES:
        yield f"Listed for each automatic payout: {code('GET /v1/balance_transactions?payout=')}."
        return
    if t.virtual:
        yield "Previews of what Stripe would invoice next."
        return
    for endpoint in list_endpoints():
        if t.object_type in endpoint.objects:
            yield _listed(endpoint)
    for holder, where in _holders(t.object_type):
        yield f"Embedded in {code(f'{holder}.{where}')}."
    if t.object_type in singleton_paths():
        yield f"One row: {code('GET ' + singleton_paths()[t.object_type])}."
    elif t.object_type in SINGLETONS:
        yield f"One row for each {SINGLETONS[t.object_type]}, from it."
    if t.object_type in retrieve_endpoints():
        yield f"By reference: {code(retrieve_endpoints()[t.object_type].name)}."
    elif not _is_listed(t):
        yield "Wherever another object or an event holds one."


def _is_listed(t: Table) -> bool:
    listed = any(t.object_type in e.objects for e in list_endpoints())
    return listed or t.object_type in SINGLETONS or any(_holders(t.object_type))


def _listed(endpoint: ListEndpoint) -> str:
    asked = endpoint.name + ("?" if endpoint.params else "")
    asked += "&".join(f"{key}={value}" for key, value in endpoint.params)
    under = f" for each {endpoint.parent}" if endpoint.parent else ""
    return f"Listed{under}: {code(asked)}."


def _holders(object_name: str) -> list[tuple[str, str]]:
    """(table, path) of every list inside another object that holds such objects."""
    found = []
    for object_type in object_types().values():
        if object_type.name not in table_of_object():
            continue
        for field, path in embedded_lists(object_type.fields):
            dotted = ".".join(path)
            asked = not field.on_request or dotted in expand_of((object_type.name,))
            if object_name in field.targets and asked and _carries(object_name, object_type.name):
                found.append((table_of_object()[object_type.name], dotted))
    return found


def _carries(child: str, parent: str) -> bool:
    """Whether rows of `child` say in which object's list they stand."""
    columns = tables()[table_of_object()[child]].columns
    return any(table_of_object()[parent] in c.references and len(c.path) <= 1 for c in columns)


def _fresh(t: Table) -> str:
    if t.name == PAYOUT_LINES:
        return "listing it again after an event of its `payout`."
    if t.virtual:
        return "a new preview whenever an event says that the next invoice may have changed."
    if t.object_type == _EVENT_LOG:
        return "reading the event log."
    ways = [*_told_by_events(t), *_read_again(t)]
    return "; ".join(ways or ["the objects and events that hold one"]) + "."


def _told_by_events(t: Table) -> Iterator[str]:
    names = [e.name for e in spec().events if t.object_type in e.carries]
    if names:
        shown = ", ".join(map(code, names[:_MOST_EVENTS]))
        more = len(names) - _MOST_EVENTS
        yield f"events: {shown}{f' and {more} more' if more > 0 else ''}"
        return
    for endpoint in list_endpoints():
        # No object of a test clock means that another list has changed.
        asked = endpoint.parent in with_events() and endpoint.parent != _TEST_CLOCK
        if asked and t.object_type in endpoint.objects:
            yield f"listing it again after an event of its {code(endpoint.parent)}"
    where = retrieve_endpoints().get(t.object_type)
    if where is not None and not where.parent_parameter and _is_named_in_events(t):
        yield "a request when the object of an event names one that is not there yet"


def _is_named_in_events(t: Table) -> bool:
    """Whether a table that events tell of refers to this one."""
    told = [other for other in tables().values() if other.object_type in with_events()]
    return any(t.name in column.references for other in told for column in other.columns)


def _read_again(t: Table) -> Iterator[str]:
    lists = [e for e in list_endpoints() if t.object_type in e.objects]
    if any(map(needs_head, lists)):
        yield "the newest entries of its list, at short intervals"
    if lists:
        yield "its whole list, once a day"
    elif t.object_type in singleton_paths():
        yield "a request at each start"
    elif any(_holders(t.object_type)) or t.object_type in SINGLETONS:
        yield "the object that holds it"


def _references(column: Column, page: str) -> str:
    return ", ".join(_link(name, page) for name in column.references)


def _link(name: str, page: str = "") -> str:
    target = domain_by_table()[name].name
    return f"[{name}]({'' if target == page else target + '.md'}#{name})"
