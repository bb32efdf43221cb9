"""`pinstripe schema models`: the tables as models of an ORM, one file, from the catalog alone.

Each has every column with its type and description, and a relation for every reference to one table that is
among those chosen, from both sides where the tool wants that. Our own columns (`_synced_at`, ...) are left
out. The models are for reading: Pinstripe writes without them.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from pinstripe.catalog.descriptions import describe_column, describe_table
from pinstripe.catalog.model import spec
from pinstripe.catalog.tables import Column, SqlType, Table
from pinstripe.store.ddl import within_63

Tool = Literal["sqlalchemy", "pydantic", "drizzle", "prisma"]

TOOLS: tuple[Tool, ...] = get_args(Tool)


@dataclass(frozen=True, slots=True)
class _Relation:
    """`column` of `table` refers to `target`; `one` and `many` name the two sides, unlike any column."""

    table: Table
    column: Column
    target: Table
    one: str
    many: str

    @property
    def name(self) -> str:
        return f"{self.table.name}_{self.column.name}"


def models(tool: Tool, schema: str, chosen: Sequence[Table]) -> str:
    """The text of the file."""
    relations = _relations({t.name: t for t in chosen})
    return "\n".join(_WRITERS[tool](schema, chosen, relations)) + "\n"


def _relations(chosen: Mapping[str, Table]) -> list[_Relation]:
    found: list[_Relation] = []
    taken = {name: {c.name for c in table.all_columns} for name, table in chosen.items()}
    for table in chosen.values():
        for column in table.all_columns:
            if column.type != "text" or len(column.references) != 1:
                continue
            target = chosen.get(column.references[0])
            if target is None:
                continue
            one = _free(column.name.removesuffix("_id"), taken[table.name])
            many = _free(f"{table.name}_by_{column.name}", taken[target.name])
            found.append(_Relation(table, column, target, one, many))
    return found


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_row"
    taken.add(name)
    return name


def _head() -> str:
    version = spec().api_version
    return (
        f"Models of the tables that Pinstripe keeps, Stripe API {version}. Generated; do not edit."
    )


def _class_name(table: str) -> str:
    return "".join(word.title() for word in table.split("_"))


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


class _Names(NamedTuple):
    """What the tools call one type of Postgres's."""

    python: str
    sqlalchemy: str
    drizzle: str
    prisma: str


_TYPES: dict[SqlType, _Names] = {
    "text": _Names("str", "Text", "text({name})", "String"),
    "bigint": _Names("int", "BigInteger", "bigint({name}, {{ mode: 'bigint' }})", "BigInt"),
    "numeric": _Names("decimal.Decimal", "Numeric", "numeric({name})", "Decimal"),
    "boolean": _Names("bool", "Boolean", "boolean({name})", "Boolean"),
    "timestamptz": _Names(
        "datetime.datetime",
        "DateTime(timezone=True)",
        "timestamp({name}, {{ withTimezone: true }})",
        "DateTime",
    ),
    "jsonb": _Names("Any", "JSONB", "jsonb({name})", "Json"),
    "text[]": _Names("list[str]", "ARRAY(Text)", "text({name}).array()", "String[]"),
}

# Attributes of the base classes: a field of that name would hide them.
_TAKEN_BY_BASE = frozenset(
    "metadata registry copy dict json schema construct validate parse_obj parse_raw fields".split()  # noqa: SIM905
)


def _python_name(column: str) -> str:
    return f"{column}_" if keyword.iskeyword(column) or column in _TAKEN_BY_BASE else column


def _sqlalchemy(
    schema: str, chosen: Sequence[Table], relations: Sequence[_Relation]
) -> Iterator[str]:
    yield f'"""{_head()}"""\n'
    yield "from __future__ import annotations\n\nimport datetime\nimport decimal\nfrom typing import Any\n"
    yield "from sqlalchemy import BigInteger, Boolean, DateTime, MetaData, Numeric, Text"
    yield "from sqlalchemy.dialects.postgresql import ARRAY, JSONB"
    yield "from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship\n\n"
    yield f"class Base(DeclarativeBase):\n    metadata = MetaData(schema={_text(schema)})\n"
    for table in chosen:
        name = _class_name(table.name)
        yield f"\nclass {name}(Base):\n    {_text(describe_table(table))}\n"
        yield f"    __tablename__ = {_text(table.name)}\n"
        for c in table.all_columns:
            is_key = c.name in table.key
            kind = _TYPES[c.type].python + ("" if is_key else " | None")
            key = ", primary_key=True" if is_key else ""
            yield (
                f"    {_python_name(c.name)}: Mapped[{kind}] = mapped_column({_text(c.name)}, "
                f"{_TYPES[c.type].sqlalchemy}{key}, comment={_text(describe_column(table, c))})"
            )
        for r in relations:
            if r.table is table:
                other, key = _class_name(r.target.name), _python_name(r.target.key[0])
                join = f"foreign({name}.{_python_name(r.column.name)}) == remote({other}.{key})"
                yield (
                    f"    {_python_name(r.one)}: Mapped[{other} | None] = relationship("
                    f"{_text(other)}, primaryjoin={_text(join)}, viewonly=True)"
                )
        yield ""


def _pydantic(
    schema: str, chosen: Sequence[Table], relations: Sequence[_Relation]
) -> Iterator[str]:
    yield f'"""{_head()}"""\n'
    yield "from __future__ import annotations\n\nimport datetime\nimport decimal\nfrom typing import Any\n"
    yield "from pydantic import BaseModel, ConfigDict, Field\n\n"
    yield "class Row(BaseModel):\n    model_config = ConfigDict("
    yield "        from_attributes=True, populate_by_name=True, protected_namespaces=()\n    )\n"
    for table in chosen:
        about = _text(f"{describe_table(table)} Table {table.name}.")
        yield f"\nclass {_class_name(table.name)}(Row):\n    {about}\n"
        for c in table.all_columns:
            name, is_key = _python_name(c.name), c.name in table.key
            alias = f", alias={_text(c.name)}" if name != c.name else ""
            first = "..." if is_key else "None"
            kind = _TYPES[c.type].python + ("" if is_key else " | None")
            about = _text(describe_column(table, c))
            yield f"    {name}: {kind} = Field({first}{alias}, description={about})"
        for r in relations:
            if r.table is table:
                about = _text(f"The row that {r.column.name} refers to, where it was loaded.")
                other = _class_name(r.target.name)
                yield f"    {_python_name(r.one)}: {other} | None = Field(None, description={about})"
        yield ""
    names = ", ".join(_class_name(t.name) for t in chosen)
    yield f"\nfor _model in ({names},):\n    _model.model_rebuild()"


def _drizzle(schema: str, chosen: Sequence[Table], relations: Sequence[_Relation]) -> Iterator[str]:
    yield f"// {_head()}"
    yield "import { relations } from 'drizzle-orm';"
    yield (
        "import { bigint, boolean, jsonb, numeric, pgSchema, text, timestamp } from "
        "'drizzle-orm/pg-core';\n"
    )
    yield f"export const $schema = pgSchema({_text(schema)});"
    for table in chosen:
        yield f"\n/** {_note(describe_table(table))} */"
        yield f"export const {table.name} = $schema.table({_text(table.name)}, {{"
        for c in table.all_columns:
            kind = _TYPES[c.type].drizzle.format(name=_text(c.name))
            key = ".primaryKey()" if c.name in table.key else ""
            yield f"  /** {_note(describe_column(table, c))} */\n  {c.name}: {kind}{key},"
        yield "});"
    for table in chosen:
        sides = [
            f"  {r.one}: one({r.target.name}, {{ fields: [{table.name}.{r.column.name}], "
            f"references: [{r.target.name}.{r.target.key[0]}], relationName: '{r.name}' }}),"
            for r in relations
            if r.table is table
        ]
        sides += [
            f"  {r.many}: many({r.table.name}, {{ relationName: '{r.name}' }}),"
            for r in relations
            if r.target is table
        ]
        if sides:
            name = table.name
            yield f"\nexport const {name}_relations = relations({name}, ({{ one, many }}) => ({{"
            yield from sides
            yield "}));"


def _note(text: str) -> str:
    return text.replace("*/", "* /")


def _prisma(schema: str, chosen: Sequence[Table], relations: Sequence[_Relation]) -> Iterator[str]:
    yield f"// {_head()}"
    yield 'generator client {\n  provider = "prisma-client-js"\n}\n'
    yield f'datasource db {{\n  provider = "postgresql"\n  schemas  = [{_text(schema)}]\n}}'
    for table in chosen:
        yield f"\n/// {describe_table(table)}\nmodel {table.name} {{"
        for c in table.all_columns:
            kind = _TYPES[c.type].prisma + (
                "" if c.name in table.key or c.type == "text[]" else "?"
            )
            key = " @id" if c.name in table.key else ""
            native = " @db.Timestamptz(6)" if c.type == "timestamptz" else ""
            yield f"  /// {describe_column(table, c)}\n  {c.name} {kind}{key}{native}"
        for r in relations:
            if r.table is table:
                yield (
                    f'  {r.one} {r.target.name}? @relation("{r.name}", fields: [{r.column.name}], '
                    f"references: [{r.target.key[0]}], onDelete: NoAction, onUpdate: NoAction, "
                    f'map: "{within_63(f"{r.name}_fkey")}")'
                )
            if r.target is table:
                yield f'  {r.many} {r.table.name}[] @relation("{r.name}")'
        yield f"\n  @@schema({_text(schema)})\n}}"


_Writer = Callable[[str, Sequence[Table], Sequence[_Relation]], Iterator[str]]

_WRITERS: dict[Tool, _Writer] = {
    "sqlalchemy": _sqlalchemy,
    "pydantic": _pydantic,
    "drizzle": _drizzle,
    "prisma": _prisma,
}
