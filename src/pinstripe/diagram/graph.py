"""What a diagram contains: the domains, the tables of one, or a table and its neighbours.

`filled` narrows it to the tables with rows. Tables that nearly all others reference (accounts,
applications, files, test clocks) would draw lines across every picture, so they are named in the row
instead, as are tables of other domains.

A table has up to 200 columns, and a box can show about twelve: the key and the references first, then
the few columns used most, and a count of the rest. Values are hashable: a `Diagram` is the cache key of
its drawing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pinstripe.catalog.descriptions import describe_table
from pinstripe.catalog.domains import DOMAINS, domain_by_table, domains, only_filled
from pinstripe.catalog.tables import Column, Table, tables
from pinstripe.errors import Misconfigured

EVERYWHERE = frozenset({"account", "application", "file", "test_helpers_test_clock"})
"""Referred to from nearly every domain: named, not drawn, unless they are what the diagram is of."""

_AT_HOME = {"connect": frozenset({"account", "application"}), "core": frozenset({"file"})}
"""Where these are what the domain is about, and are drawn."""

_MOST_NEIGHBOURS = 8
"""More tables than these on one side of a table are put together by domain."""


def overview(*, filled: frozenset[str] | None = None) -> Diagram:
    """The domains, how many tables each has, and how many references there are between two."""
    boxes, counts = [], _between_domains(filled)
    for name, group in domains().items():
        shown = only_filled((t.name for t in group), filled)
        if shown:
            domain = DOMAINS[name]
            note = f"{len(shown)} table{'s' if len(shown) != 1 else ''}"
            rows = (DiagramRow(note, "", "column"),)
            boxes.append(Box(name, domain.title, "domain", name, domain.about, rows))
    here = {b.name for b in boxes}
    links = tuple(
        Link(source, target, count=count)
        for (source, target), count in sorted(counts.items())
        if {source, target} <= here
    )
    total = len(only_filled(tables(), filled))
    about = f"{total} tables in {len(boxes)} domains. Lines show references."
    return Diagram("All domains", about, tuple(boxes), links)


def of_domain(
    name: str, *, filled: frozenset[str] | None = None, detail: Detail = "short"
) -> Diagram:
    """The tables of one domain, and the references among them."""
    if name not in DOMAINS:
        raise Misconfigured(
            f"There is no domain {name!r}.", hint=f"There are: {', '.join(DOMAINS)}."
        )
    chosen = only_filled((t.name for t in domains()[name]), filled)
    domain = DOMAINS[name]
    hubs = EVERYWHERE - _AT_HOME.get(name, frozenset())
    return Diagram(domain.title, domain.about, *_tables(chosen, detail, hubs=hubs))


def of_tables(names: Iterable[str], *, detail: Detail = "short") -> Diagram:
    """Some tables, in the order of their names, and every reference among them."""
    chosen = tuple(sorted({known(n).name for n in names}))
    title = "All tables" if len(chosen) == len(tables()) else f"{len(chosen)} tables"
    return Diagram(title, ", ".join(chosen[:12]), *_tables(chosen, detail, hubs=frozenset()))


def around(name: str, *, filled: frozenset[str] | None = None, detail: Detail = "short") -> Diagram:
    """Return one table, with references from it on the right and references to it on the left.

    The table itself is shown whether or not it has rows.
    """
    table = known(name)
    near = only_filled((n for n in tables() if n != name), filled)
    outward = sorted({r for c in table.all_columns for r in c.references if r in near})
    inward = [n for n in near if n not in outward and _rows_to(n, name)]
    main = _box(table, detail, main=True)
    beside = [_neighbour(tables()[other], name) for other in outward]
    many = len(inward) > _MOST_NEIGHBOURS
    beside += _grouped(inward, name) if many else [_neighbour(tables()[n], name) for n in inward]
    links = [
        Link(name, r, i) for i, row in enumerate(main.rows) for r in row.references if r in outward
    ]
    for box in beside:
        rows = [i for i, row in enumerate(box.rows) if name in row.references]
        links += (
            [Link(box.name, name, i) for i in rows]
            if box.kind == "table"
            else [Link(box.name, name)]
        )
    about = (
        f"{describe_table(table)} It references {_tables_said(len(outward))}; "
        f"{_tables_said(len(inward))} more reference it."
    )
    return Diagram(name, about, (main, *beside), tuple(links))


def _tables_said(count: int) -> str:
    return f"{count or 'no'} table{'' if count == 1 else 's'}"


def known(name: str) -> Table:
    """The table of that name; `Misconfigured` if there is none."""
    found = tables().get(name)
    if found is None:
        near = [n for n in tables() if name.lower() in n][:5]
        hint = f"Did you mean {', '.join(near)}?" if near else "See `pinstripe schema tables`."
        raise Misconfigured(f"There is no table {name!r}.", hint=hint)
    return found


def _tables(
    names: tuple[str, ...], detail: Detail, *, hubs: frozenset[str]
) -> tuple[tuple[Box, ...], tuple[Link, ...]]:
    boxes = tuple(_box(tables()[n], detail) for n in names)
    drawn = set(names) - hubs
    links = tuple(
        Link(box.name, target, i)
        for box in boxes
        for i, row in enumerate(box.rows)
        for target in row.references
        # A reference to the table itself is named in the row.
        if target in drawn and target != box.name
    )
    return boxes, links


def _box(table: Table, detail: Detail, *, main: bool = False) -> Box:
    rows = rows_of(table, detail)
    domain = domain_by_table()[table.name].name
    hidden = len(table.all_columns) - len(rows)
    return Box(table.name, table.name, "table", domain, describe_table(table), rows, hidden, main)


def _neighbour(table: Table, of: str) -> Box:
    """A table beside the one that is shown: its key, and its rows for that one."""
    rows = tuple(r for r in rows_of(table, "keys") if r.kind == "key" or of in r.references)
    domain = domain_by_table()[table.name].name
    hidden = len(table.all_columns) - len(rows)
    return Box(table.name, table.name, "table", domain, describe_table(table), rows, hidden)


def _grouped(names: Iterable[str], target: str) -> Iterator[Box]:
    """One box a domain, with a row for each table and column that refers to `target`."""
    groups: dict[str, list[DiagramRow]] = defaultdict(list)
    for name in names:
        for row in _rows_to(name, target):
            group = groups[domain_by_table()[name].name]
            group.append(DiagramRow(f"{name}.{row.name}", "", "table", (target,)))
    for domain in DOMAINS.values():
        if domain.name in groups:
            rows = tuple(groups[domain.name])
            name = f"from_{domain.name}"
            yield Box(name, domain.title, "group", domain.name, domain.about, rows)


def _rows_to(name: str, target: str) -> list[DiagramRow]:
    return [r for r in rows_of(tables()[name], "keys") if target in r.references]


def _between_domains(filled: frozenset[str] | None) -> Counter[tuple[str, str]]:
    """References between two domains, the way most of them lead; not those to EVERYWHERE."""
    counts: Counter[tuple[str, str]] = Counter()
    here = set(only_filled(tables(), filled))
    for name in sorted(here):
        for row in rows_of(tables()[name], "keys"):
            for target in row.references:
                pair = domain_by_table()[name].name, domain_by_table()[target].name
                if target in here - EVERYWHERE and pair[0] != pair[1]:
                    counts[pair] += 1
    return Counter(
        {
            (a, b): count + counts[b, a]
            for (a, b), count in counts.items()
            if (count, a) > (counts[b, a], b)
        }
    )


BoxKind = Literal[
    "domain",  # a domain in the overview
    "table",  # a table with rows for its columns
    "group",  # several tables of one domain that all stand in one relation to the table shown
]

RowKind = Literal["key", "reference", "column", "table"]

Detail = Literal[
    "keys",  # the key and the references
    "short",  # these and a few important columns
    "full",  # every column
]


@dataclass(frozen=True, slots=True)
class DiagramRow:
    """One line in a box. `note` stands at its right: the type, or what it refers to.

    `name` is a column; of a row of kind "table" it is a table and its column, and `note` is empty.
    `references` are all tables that it may refer to; those without a box here are named only.
    """

    name: str
    note: str
    kind: RowKind
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    """A table, a domain, or a group. `hidden` columns are left out and counted at the foot."""

    name: str
    title: str
    kind: BoxKind
    domain: str
    about: str
    rows: tuple[DiagramRow, ...] = ()
    hidden: int = 0
    main: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """References from a row of one box to another box; `row` None means the box as a whole."""

    source: str
    target: str
    row: int | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Diagram:
    """What is shown. `about` is the sentence that stands for the picture where nobody sees it."""

    title: str
    about: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]

    def box(self, name: str) -> Box:
        return next(b for b in self.boxes if b.name == name)


# The most used columns, in this order; a short diagram shows the first few that a table has.
IMPORTANT = (
    *("status", "type", "name", "email", "amount", "amount_total", "total", "net", "unit_amount"),
    *("currency", "country", "code", "last4", "active", "created"),
)

_MOST_IMPORTANT = 4


def rows_of(table: Table, detail: Detail) -> tuple[DiagramRow, ...]:
    """The rows for `table`: key, references, and what `detail` asks for, in this order."""
    if detail == "full":
        return tuple(row_of(table, c) for c in table.all_columns)
    key = [c for c in table.columns if c.name in table.key]
    references = [c for c in table.all_columns if _is_reference(table, c)]
    chosen = key + references
    if detail == "short":
        chosen += _important(table)
    return tuple(row_of(table, c) for c in chosen)


def row_of(table: Table, column: Column) -> DiagramRow:
    """One column as a row; what it refers to stands where the type would."""
    note = target_note(column.references) if column.references else column.type
    kind: RowKind = "reference" if column.references else "column"
    if column.name in table.key:
        kind = "key"
    return DiagramRow(column.name, note, kind, column.references)


def target_note(references: tuple[str, ...]) -> str:
    """What stands beside a reference.

    >>> target_note(("card", "source", "bank_account"))
    'card or 2 more'
    """
    if len(references) == 1:
        return references[0]
    return f"{references[0]} or {len(references) - 1} more"


def _is_reference(table: Table, column: Column) -> bool:
    if not column.references or column.name in table.key:
        return False
    # Previews repeat every column of an invoice; only what they are for tells them apart.
    return not table.virtual or column.read == "parent"


def _important(table: Table) -> list[Column]:
    by_name = {c.name: c for c in table.all_columns if not c.references and c.name not in table.key}
    found = [by_name[n] for n in IMPORTANT if n in by_name]
    return found[:_MOST_IMPORTANT]
