"""Removes the secrets that older versions wrote to the database.

It runs once for each state of the rule (`pinstripe.sync.secret_rule`), before any other write. Columns of
secrets become null; JSON, texts, `_extra` and the change feed pass through the function that cleans rows
today. It goes by pages of the key, each in a transaction of its own, so no row is locked for long; an
interrupted run starts over at the next start. A table whose rows a trigger or constraint of the user
protects is skipped and retried at the next start.

Out of reach: dead rows until VACUUM, the WAL, standbys, backups.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from pinstripe.catalog.secrets import SECRET_NAMES, SECRET_PLACES
from pinstripe.catalog.tables import Column, Table
from pinstripe.errors import Drifted, Unwritable
from pinstripe.rows.secrets import without_secrets
from pinstripe.store import ddl
from pinstripe.store.pool import Connection, translated
from pinstripe.store.session import SCOPES_OF

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)

Value = Any
_PAGE = 5000
_LOOKS = "secret|whsec_|_live_|_test_"
_WORDS = "|".join(sorted(SECRET_NAMES))
_TYPES = "|".join(re.escape(name) for name in sorted(SECRET_PLACES))
# \\m and \\M are Postgres's edges of a word: "cvc", but not "cvc_check".
_SUSPECT = f"{_LOOKS}|{_TYPES}|\\m({_WORDS})\\M"
_TEXTS = ("text", "json", "texts")


def rule() -> str:
    """The state of the rule: another one, and the database is searched again."""
    text = repr((sorted(SECRET_NAMES), sorted(SECRET_PLACES.items()), _LOOKS))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


async def forget_secrets(
    connection: Connection, schema: str, existing: Mapping[str, Table], *, is_new: bool
) -> int:
    """Clean the tables of `schema`; return the number of rows that held a secret.

    `is_new`: nothing has been written there yet.
    """
    with translated():
        done = await connection.fetchval(
            "SELECT secret_rule FROM pinstripe.sync WHERE schema = $1", schema
        )
    if done == rule():
        return 0
    cleaned, is_whole = 0, True
    for table in existing.values() if not is_new else ():
        try:
            cleaned += await _Search(connection, schema, table).run()
        except (Drifted, Unwritable) as error:
            is_whole = False
            _log.warning("secrets.kept", table=table.name, error=error.message)
    if not is_new:
        cleaned += await _clean_feed(connection, schema, existing)
    if is_whole:
        with translated():
            await connection.execute(
                "UPDATE pinstripe.sync SET secret_rule = $2 WHERE schema = $1", schema, rule()
            )
    if cleaned:
        _log.info("secrets.removed", schema=schema, rows=cleaned)
    return cleaned


@dataclass
class _Search:
    """The pages of one table."""

    connection: Connection
    schema: str
    table: Table

    async def run(self) -> int:
        cleaned, last = 0, [""] * len(self.table.key)
        text = ddl.page_end(self.schema, self.table, _PAGE)
        with translated():
            await self._comment()
            while True:
                async with self.connection.transaction():
                    end = await self.connection.fetchval(text, last)
                    if end is None:
                        return cleaned
                    cleaned += await self._page(ddl.on_page(self.table, last, end))
                last = end

    async def _comment(self) -> None:
        """Tables that are older than the rule say of their columns what is so now."""
        secret = [c.name for c in self.table.columns if c.secret]
        comments = list(ddl.comments(self.schema, self.table, only=secret)) if secret else []
        if comments:
            await self.connection.execute("\n".join(comments))

    @property
    def _name(self) -> str:
        return ddl.qualified(self.schema, self.table.name)

    async def _page(self, here: str) -> int:
        cleaned = await self._empty_columns(here)
        # Where a name is a secret by its place only, no word gives it away: every row is read.
        suspect = "" if self.table.object_type in SECRET_PLACES else _SUSPECT
        rows = await self.connection.fetch(
            f"SELECT to_jsonb(t)::text, {ddl.keys_of(self.table)} FROM {self._name} t "
            f"WHERE {here} AND t::text ~ $1 FOR NO KEY UPDATE",
            suspect,
        )
        for text, *key in rows:
            cleaned += await self._clean_row(key, json.loads(text))
        return cleaned

    async def _empty_columns(self, here: str) -> int:
        secret = [ddl.quote(c.name) for c in self.table.columns if c.secret]
        if not secret:
            return 0
        sets = ", ".join(f"{name} = NULL" for name in secret)
        held = " OR ".join(f"{name} IS NOT NULL" for name in secret)
        text = f"UPDATE {self._name} SET {sets} WHERE {here} AND ({held})"
        return int((await self.connection.execute(text)).rpartition(" ")[2])

    async def _clean_row(self, key: Sequence[str], row: dict[str, Value]) -> int:
        """Write the columns of a row that change without secrets; return 1 if there are any."""
        clean = clean_values(self.table, row)
        changed = {name: value for name, value in clean.items() if value != row[name]}
        if not changed:
            return 0
        json_columns = {"_extra", *(c.name for c in self.table.columns if c.read == "json")}
        sets = ", ".join(
            f"{ddl.quote(name)} = ${at}{'::jsonb' if name in json_columns else ''}"
            for at, name in enumerate(changed, start=1)
        )
        values = [
            json.dumps(v) if n in json_columns and v is not None else v for n, v in changed.items()
        ]
        await self.connection.execute(
            f"UPDATE {self._name} SET {sets} WHERE {ddl.has_key(self.table, key)}", *values
        )
        return 1


def clean_values(table: Table, row: Mapping[str, Value]) -> dict[str, Value]:
    """The values of the columns in `row` that may hold secrets, without them.

    The columns are put together to the object that they came from, so that one rule is for all.
    """
    columns = [c for c in table.columns if c.path and c.read in _TEXTS and c.name in row]
    obj: dict[str, Value] = {}
    for column in columns:
        _put(obj, column, row[column.name])
    clean = without_secrets({**obj, "object": table.object_type})
    found = {c.name: _at(clean, c.path) for c in columns if c.path != ("object",)}
    extra = row.get("_extra")
    if isinstance(extra, dict):
        kept = without_secrets({"object": table.object_type, **extra})
        found["_extra"] = {key: kept[key] for key in extra}
    return found


def _put(obj: dict[str, Value], column: Column, value: Value) -> None:
    for step in column.path[:-1]:
        obj = obj.setdefault(step, {})
    obj[column.path[-1]] = value


def _at(value: Value, path: Iterable[str]) -> Value:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


async def _clean_feed(connection: Connection, schema: str, existing: Mapping[str, Table]) -> int:
    """The befores and afters of the change feed. A column of a secret goes; the change stays."""
    whole = [t.name for t in existing.values() if any(c.secret for c in t.columns)]
    cleaned, last = 0, 0
    with translated():
        while True:
            async with connection.transaction():
                rows = await connection.fetch(
                    'SELECT position, "table", changes::text FROM pinstripe.change'
                    f" WHERE schema IN {SCOPES_OF}"
                    ' AND position > $2 AND ("table" = ANY($3) OR changes::text ~ $4)'
                    f" ORDER BY position LIMIT {_PAGE}",
                    schema,
                    last,
                    whole,
                    _SUSPECT,
                )
                for position, name, text in rows:
                    changes = json.loads(text)
                    clean = clean_changes(existing[name], changes) if name in existing else changes
                    if clean != changes:
                        cleaned += 1
                        await connection.execute(
                            "UPDATE pinstripe.change SET changes = $2::jsonb WHERE position = $1",
                            position,
                            json.dumps(clean),
                        )
            if len(rows) < _PAGE:
                return cleaned
            last = rows[-1][0]


def clean_changes(table: Table, changes: Mapping[str, list[Value]]) -> dict[str, list[Value]]:
    """{column: [before, after]} without secrets."""
    secret = {c.name for c in table.columns if c.secret}
    shown = {name: pair for name, pair in changes.items() if name not in secret}
    before = clean_values(table, {name: pair[0] for name, pair in shown.items()})
    after = clean_values(table, {name: pair[1] for name, pair in shown.items()})
    return {
        name: [before.get(name, pair[0]), after.get(name, pair[1])] for name, pair in shown.items()
    }


def known_tables(
    existing: Mapping[str, Mapping[str, str]], catalog: Mapping[str, Table]
) -> Iterator[Table]:
    """The tables of the catalog that stand in the database, with the columns that they have there."""
    for name, table in catalog.items():
        there = existing.get(name, {})
        if {"_as_of", "_extra", *table.key} <= set(there):
            columns = tuple(c for c in table.columns if there.get(c.name) == c.type)
            yield Table(table.name, table.object_type, columns, table.key, table.virtual)
