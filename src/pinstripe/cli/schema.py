"""`pinstripe schema`, `reader` and `erase`: commands on the schema of one sync.

`schema` prints DDL, tables and diagrams from the catalog, without a database. `reader` creates, rotates and
drops the read-only role. `erase` removes the personal data of one customer from the rows.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pinstripe.catalog.tables import Table, tables
from pinstripe.cli.models import Tool, models
from pinstripe.cli.runtime import show, tell
from pinstripe.cli.status import check_synced, with_data
from pinstripe.cli.summary import counted
from pinstripe.config.config import Config
from pinstripe.diagram.graph import Detail, Diagram, around, of_domain, of_tables, overview
from pinstripe.diagram.layout import draw as lay_out
from pinstripe.diagram.render import to_mermaid, to_svg
from pinstripe.errors import Misconfigured
from pinstripe.service import chosen_tables, open_database
from pinstripe.store import erasures
from pinstripe.store.ddl import column_comment, create_all, table_comment, with_account
from pinstripe.store.migrate import ensure_bookkeeping
from pinstripe.store.platforms.stored import get_platform
from pinstripe.store.pool import connect
from pinstripe.store.roles import drop_reader, renew_reader
from pinstripe.store.session import scope_of


def print_ddl(config: Config, *, by_account: bool, partitions: int) -> None:
    """Print the DDL of the schema, or of the platform's tables that hold many accounts."""
    if partitions and not by_account:
        raise Misconfigured(
            "Only the tables of a platform have partitions.",
            hint="Add --by-account, or leave it out.",
        )
    chosen = list(chosen_tables(config).values())
    if by_account:
        chosen = list(map(with_account, chosen))
    sys.stdout.write(create_all(config.schema, chosen, partitions=partitions))


def print_models(config: Config, tool: Tool) -> None:
    sys.stdout.write(models(tool, config.schema, list(chosen_tables(config).values())))


def print_tables(config: Config, *, as_json: bool) -> None:
    """One line a table."""
    chosen = chosen_tables(config).values()
    if as_json:
        found = [
            {"table": t.name, "object": t.object_type, "columns": len(t.all_columns)}
            for t in chosen
        ]
        show(json.dumps({"tables": found}))
        return
    lines = [f"{t.name:<44} {t.object_type:<44} {len(t.all_columns):>4} columns" for t in chosen]
    show("\n".join(lines))


def print_table(config: Config, name: str, *, as_json: bool) -> None:
    """One line a column: name, type, what it refers to, what it is."""
    (table, *_) = chosen_tables(Config(tables=(name,))).values()
    if as_json:
        show(json.dumps(_described(table)))
        return
    lines = [f'"{config.schema}".{table.name}: {table_comment(table)}']
    lines += [
        f"  {c.name:<44} {c.type:<12} {column_comment(c)}".rstrip() for c in table.all_columns
    ]
    show("\n".join(lines))


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
            for c in table.all_columns
        ],
    }


@dataclass(frozen=True, slots=True)
class DiagramOptions:
    """Content, format and output of a diagram."""

    domain: str | None
    table: str | None
    detail: Detail
    format: Literal["svg", "mermaid"] | None
    output: Path | None


def draw(config: Config, options: DiagramOptions) -> None:
    """Writes the diagram to the file, or to stdout."""
    diagram = _wanted(config, options)
    text = to_mermaid(diagram) if _format(options) == "mermaid" else to_svg(lay_out(diagram))
    if options.output is None:
        sys.stdout.write(text)
        return
    try:
        options.output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Misconfigured(
            f"Cannot write {options.output}: {error.strerror}.",
            hint="Choose another file with --output.",
        ) from error
    tell(f"{diagram.title}: {options.output}")


def _wanted(config: Config, options: DiagramOptions) -> Diagram:
    chosen = frozenset(config.choose_tables(tables()))
    some = chosen if len(chosen) < len(tables()) else None
    if options.domain is not None and options.table is not None:
        raise Misconfigured(
            "A diagram shows either one domain or one table.", hint="Drop --domain or --table."
        )
    if options.domain is not None:
        return of_domain(options.domain, filled=some, detail=options.detail)
    if options.table is not None:
        return around(options.table, filled=some, detail=options.detail)
    if some is not None:
        return of_tables(some, detail=options.detail)
    return overview()


def _format(options: DiagramOptions) -> str:
    if options.format is not None or options.output is None:
        return options.format or "svg"
    suffix = options.output.suffix
    if suffix not in _FORMATS:
        raise Misconfigured(
            f"No diagram can be written as {suffix}.",
            hint="End the name with .svg or .mmd, or add --format svg or --format mermaid.",
        )
    return _FORMATS[suffix]


_FORMATS = {"": "svg", ".svg": "svg", ".mmd": "mermaid", ".mermaid": "mermaid"}


async def make(config: Config, *, expect: bool, as_json: bool) -> int:
    """Create the role, or rotate the one to `expect`, and print its URL once."""
    config = with_data(config)
    async with open_database(config) as database:
        reader = await renew_reader(database.url, config.schema, expect=expect)
    if as_json:
        told = {"role": reader.role, "password": reader.password, "url": reader.url}
        show(json.dumps(told))
        return 0
    tell(
        f'The role {reader.role} can read the schema "{config.schema}" and nothing else.\n'
        "Its password is shown only once:"
    )
    show(reader.url)
    return 0


async def drop(config: Config, *, as_json: bool) -> int:
    """Drops the role, if there is one."""
    config = with_data(config)
    async with open_database(config) as database:
        dropped = await drop_reader(database.url, config.schema)
    if as_json:
        show(json.dumps({"dropped": dropped}))
    else:
        words = "was dropped" if dropped else "does not exist"
        show(f'The read-only role for schema "{config.schema}" {words}.')
    return 0


async def erase(
    config: Config,
    customer: str,
    *,
    of_platform: tuple[str, str] | None = None,
    dry_run: bool,
    scrubs: bool,
    as_json: bool,
) -> int:
    """Erase, or with `dry_run` count; print the rows by table. `of_platform`: its id, and the account's."""
    if not customer.strip() or customer != customer.strip():
        raise Misconfigured(
            "That is no id of a customer.", hint="Give one as Stripe shows it: cus_..."
        )
    config = with_data(config)
    account = of_platform[1] if of_platform else ""
    async with (
        open_database(config) as database,
        connect(database.url, account=account) as connection,
    ):
        await ensure_bookkeeping(connection)
        schema = config.schema
        if of_platform:
            schema = scope_of((await get_platform(connection, of_platform[0])).schema, account)
        await check_synced(connection, schema)
        if dry_run:
            found = await erasures.find_objects(connection, schema, customer)
            rows = {table: len(keys) for table, keys in sorted(found.items())}
        else:
            made = await erasures.erase(connection, schema, customer, reason="requested")
            rows = dict(made.rows)
            if scrubs:
                await erasures.scrub(connection, schema, rows)
    if as_json:
        show(json.dumps({"customer": customer, "erased": not dry_run, "rows": rows}))
        return 0
    verb = "Would erase personal data in" if dry_run else "Erased personal data in"
    beside = ", and in events" if dry_run else ""
    show(f"{verb} {counted(sum(rows.values()), 'row')} of {customer}{beside}")
    for table, count in rows.items():
        show(f"  {table:<40} {count:>8,}")
    if not dry_run:
        show("Backups, standbys and the write-ahead log still hold what they held before.")
    return 0
