"""The commands about the tables: their statements, their list, their diagram, who may read them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from pinstripe.cli.execute import execute
from pinstripe.cli.flags import DATABASE, with_settings
from pinstripe.config import Config

schema = App(name="schema", sort_key=5, help="The tables that a sync makes; needs no database.")
reader = App(
    name="reader", sort_key=10, help="A Postgres role that reads the tables and nothing else."
)

Json = Annotated[bool, Parameter(negative="", help="Print one line of JSON to stdout.")]
_DOMAIN = "Show the tables of one domain (core, billing, connect, ...)."
_AROUND = "Show one table, what it refers to and what refers to it."
_DETAIL = (
    "Which columns: key and references (keys), a few important ones too (short), or all (full)."
)
_OUTPUT = "The file to write; without it the diagram goes to stdout."
_FORMAT = "The format; without it the ending of --output decides, and SVG where there is none."


@schema.command(sort_key=1)
@with_settings("schema", "tables")
def ddl(config: Config) -> None:
    """Print the statements that make the tables, as a script."""
    from pinstripe.cli import schema as commands

    commands.print_ddl(config)


@schema.command(name="tables", sort_key=2)
@with_settings("schema", "tables")
def list_tables(
    config: Config,
    table: Annotated[str | None, Parameter(help="The table whose columns to show.")] = None,
    /,
    *,
    json: Json = False,
) -> None:
    """List the tables; with the name of one, its columns."""
    from pinstripe.cli import schema as commands

    if table is None:
        commands.print_tables(config, as_json=json)
    else:
        commands.print_table(config, table, as_json=json)


@schema.command(sort_key=3)
@with_settings("tables")
def erd(
    config: Config,
    *,
    domain: Annotated[str | None, Parameter(help=_DOMAIN)] = None,
    table: Annotated[str | None, Parameter(help=_AROUND)] = None,
    detail: Annotated[Literal["keys", "short", "full"], Parameter(help=_DETAIL)] = "short",
    format: Annotated[Literal["svg", "mermaid"] | None, Parameter(help=_FORMAT)] = None,
    output: Annotated[Path | None, Parameter(help=_OUTPUT)] = None,
) -> None:
    """Draw the entity-relationship diagram, as SVG or for Mermaid.

    Without flags it shows the domains and how they refer to each other; with --tables, those tables.
    """
    from pinstripe.cli import diagram

    wish = diagram.Wish(domain=domain, table=table, detail=detail, format=format, output=output)
    diagram.draw(config, wish)


@reader.command(sort_key=1)
@with_settings(*DATABASE)
def create(config: Config, *, json: Json = False) -> None:
    """Make the role, and show once the address to connect to with it.

    It may read every table of the schema, those that come later too, and nothing else. Where the user
    of the database may not make roles, the statements for an administrator are shown.
    """
    from pinstripe.cli import reader as commands
    from pinstripe.store.reader_role import create_reader

    execute(config, commands.make(config, create_reader, as_json=json), stopped=130)


@reader.command(sort_key=2)
@with_settings(*DATABASE)
def rotate(config: Config, *, json: Json = False) -> None:
    """Give the role a new password, and end the sessions that used the old one."""
    from pinstripe.cli import reader as commands
    from pinstripe.store.reader_role import rotate_reader

    execute(config, commands.make(config, rotate_reader, as_json=json), stopped=130)


@reader.command(sort_key=3)
@with_settings(*DATABASE)
def drop(config: Config, *, json: Json = False) -> None:
    """Drop the role."""
    from pinstripe.cli import reader as commands

    execute(config, commands.drop(config, as_json=json), stopped=130)
