"""`pinstripe schema`: the tables that a sync makes, without any database."""

from __future__ import annotations

import json
import sys

from pinstripe.catalog.tables import Table, tables
from pinstripe.config import Config
from pinstripe.store.ddl import column_comment, create_all, table_comment


def print_ddl(config: Config) -> None:
    """The statements that make the schema."""
    known = tables()
    chosen = [known[name] for name in config.choose_tables(known)]
    sys.stdout.write(create_all(config.schema, chosen))


def print_tables(config: Config, *, as_json: bool) -> None:
    """One line a table."""
    chosen = [tables()[name] for name in config.choose_tables(tables())]
    if as_json:
        found = [
            {"table": t.name, "object": t.object_type, "columns": len(t.columns)} for t in chosen
        ]
        sys.stdout.write(json.dumps({"tables": found}) + "\n")
        return
    lines = [f"{t.name:<44} {t.object_type:<44} {len(t.columns):>4} columns" for t in chosen]
    sys.stdout.write("\n".join(lines) + "\n")


def print_table(config: Config, name: str, *, as_json: bool) -> None:
    """One line a column: name, type, what it refers to, what it is."""
    known = tables()
    (chosen, *_) = Config(tables=(name,)).choose_tables(known)
    table = known[chosen]
    if as_json:
        sys.stdout.write(json.dumps(_described(table)) + "\n")
        return
    lines = [f'"{config.schema}".{table.name}: {table_comment(table)}']
    lines += [f"  {c.name:<44} {c.type:<12} {column_comment(c)}".rstrip() for c in table.columns]
    sys.stdout.write("\n".join(lines) + "\n")


def _described(table: Table) -> dict[str, object]:
    return {
        "table": table.name,
        "object": table.object_type,
        "key": table.key,
        "columns": [
            {
                "name": c.name,
                "type": c.type,
                "references": c.references,
                "comment": column_comment(c),
            }
            for c in table.columns
        ],
    }
