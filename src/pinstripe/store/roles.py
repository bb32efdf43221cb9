"""A Postgres role that can read the synced tables of one schema, and nothing else.

For people, BI tools and the console's SQL box. Its password is printed once; neither Pinstripe nor the
server keeps it in clear. The role reads every table of the schema, later ones too, and nothing of
`pinstripe`. Its rights limit it to reading; `default_transaction_read_only` and the time limit only
prevent accidents. Roles belong to the server, so the database is part of the name, and a comment on the
role names its owner: a role without that comment is never touched.

The SCRAM verifier is computed here (RFC 5802 and 7677, in the form of `pg_authid.rolpassword`), because a
statement with a password may end in the server's log.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, get_args

import asyncpg

from pinstripe.catalog.tables import NAME_BYTES
from pinstripe.errors import Misconfigured
from pinstripe.store.compat import grant, revoke
from pinstripe.store.database_url import url_with_login
from pinstripe.store.ddl import literal
from pinstripe.store.ddl import quote as quoted
from pinstripe.store.pool import Connection, connect

Purpose = Literal["reader", "console"]

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
"""The user of a role: people, with a password that they keep, or our console, with a hidden one."""

_NO_RIGHT = "42501"
_BESIDE = "2BP01"  # dependent objects still exist


@dataclass(frozen=True, slots=True)
class ReadOnlyRole:
    """A role that reads, and how to connect as it. Password and URL are known only here and now."""

    role: str
    password: str = field(repr=False)
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds a reader back: connections at a time, and how long a statement may take."""

    connections: int = 20
    statement_s: int = 300


LIMITS = Limits()


def role_name(database: str, schema: str, purpose: Purpose = "reader") -> str:
    """The role's name, at most 63 bytes.

    >>> role_name("billing", "stripe")
    'pinstripe_reader_billing_stripe'
    """
    name = f"pinstripe_{purpose}_{database}_{schema}"
    if len(name.encode()) <= NAME_BYTES:
        return name
    digest = sha256(name.encode()).hexdigest()[:12]
    return f"pinstripe_{purpose}_{digest}"


async def find_reader(
    connection: Connection, schema: str, purpose: Purpose = "reader"
) -> str | None:
    """The name of the schema's reader, if there is one."""
    place = await _look(connection, schema, purpose)
    return place.role if place.there else None


async def renew_reader(
    url: str,
    schema: str,
    *,
    expect: bool | None = None,
    purpose: Purpose = "reader",
    limits: Limits = LIMITS,
) -> ReadOnlyRole:
    """Create the role, or set a new password and end its sessions; with `expect`, only one of them.

    Raises Misconfigured where the role is not as expected, or if we may not create roles.
    """
    # 192 random bits, in letters that need no quoting in a URL.
    password = secrets.token_urlsafe(24)
    async with connect(url) as connection:
        place = await _look(connection, schema, purpose)
        if expect is not None and place.there != expect:
            raise _unexpected(place)
        try:
            async with connection.transaction():
                verb = "ALTER" if place.there else "CREATE"
                await connection.execute(
                    f"{verb} ROLE {quoted(place.role)} LOGIN PASSWORD {literal(verifier(password))}"
                )
                for statement in _given(place, limits):
                    await connection.execute(statement)
                await grant(connection, schema, place.role)
                await _check_rights(connection, place)
        except asyncpg.PostgresError as error:
            if error.sqlstate != _NO_RIGHT:
                raise
            raise _without_right(place, limits, str(error.args[0])) from error
        if place.there:
            await _end_sessions(connection, place.role)
    return ReadOnlyRole(place.role, password, url_with_login(url, place.role, password))


async def drop_reader(url: str, schema: str, *, purpose: Purpose = "reader") -> bool:
    """Revoke its rights and drop the role; return False if there was none."""
    async with connect(url) as connection:
        place = await _look(connection, schema, purpose)
        if not place.there:
            return False
        name = quoted(place.role)
        try:
            async with connection.transaction():
                await revoke(connection, schema, place.role)
                for statement in _taken(place):
                    await connection.execute(statement)
            await _end_sessions(connection, place.role)
        except asyncpg.PostgresError as error:
            if error.sqlstate not in (_NO_RIGHT, _BESIDE):
                raise
            raise Misconfigured(
                f"The role {place.role} cannot be dropped: {error.args[0]}.",
                hint=f"An administrator can: DROP OWNED BY {name}; DROP ROLE {name};",
            ) from error
    return True


@dataclass(frozen=True, slots=True)
class _Place:
    """A role, there or not, and what it reads. `owner` makes the tables of the schema."""

    role: str
    schema: str
    database: str
    owner: str
    there: bool

    @property
    def comment(self) -> str:
        return f'Pinstripe: reads schema "{self.schema}" of database "{self.database}"'


async def _look(connection: Connection, schema: str, purpose: Purpose) -> _Place:
    """Raise Misconfigured if there is no such schema, or if the role belongs to another owner."""
    row = await connection.fetchrow(
        "SELECT current_database()::text AS database, pg_get_userbyid(nspowner)::text AS owner"
        " FROM pg_namespace WHERE nspname = $1",
        schema,
    )
    if row is None:
        raise Misconfigured(
            f'There is no schema "{schema}" in this database to read.',
            hint="Bring an account in first: pinstripe sync, or pinstripe demo.",
        )
    role = role_name(row["database"], schema, purpose)
    found = await connection.fetchrow(
        "SELECT shobj_description(oid, 'pg_authid') AS comment FROM pg_roles WHERE rolname = $1",
        role,
    )
    place = _Place(role, schema, row["database"], row["owner"], there=found is not None)
    if found is not None and found["comment"] != place.comment:
        raise Misconfigured(
            f"There is a role {role} that Pinstripe did not make; it was left as it is.",
            hint="Rename or drop it.",
        )
    return place


def _given(place: _Place, limits: Limits) -> list[str]:
    """The statements that give a role its rights and its limits. They can be run again."""
    name, where = quoted(place.role), quoted(place.schema)
    settings = {
        "default_transaction_read_only": "on",
        "statement_timeout": literal(f"{limits.statement_s}s"),
        "idle_in_transaction_session_timeout": "'5min'",
        "search_path": where,
    }
    return [
        f"COMMENT ON ROLE {name} IS {literal(place.comment)}",
        f"ALTER ROLE {name} NOINHERIT CONNECTION LIMIT {limits.connections}",
        *(f"ALTER ROLE {name} SET {key} = {value}" for key, value in settings.items()),
        f"GRANT CONNECT ON DATABASE {quoted(place.database)} TO {name}",
        f"GRANT USAGE ON SCHEMA {where} TO {name}",
        f"REVOKE CREATE ON SCHEMA {where} FROM {name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {where} TO {name}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(place.owner)} IN SCHEMA {where}"
        f" GRANT SELECT ON TABLES TO {name}",
    ]


def _taken(place: _Place) -> list[str]:
    name, where = quoted(place.role), quoted(place.schema)
    return [
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {quoted(place.owner)} IN SCHEMA {where}"
        f" REVOKE SELECT ON TABLES FROM {name}",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA {where} FROM {name}",
        f"REVOKE ALL ON SCHEMA {where} FROM {name}",
        f"REVOKE CONNECT ON DATABASE {quoted(place.database)} FROM {name}",
        f"DROP ROLE {name}",
    ]


def _without_right(place: _Place, limits: Limits, reason: str) -> Misconfigured:
    """With what an administrator runs instead; the password is theirs to choose."""
    made = f"CREATE ROLE {quoted(place.role)} LOGIN PASSWORD '...choose one...'"
    script = "\n".join(f"{statement};" for statement in (made, *_given(place, limits)))
    return Misconfigured(
        f"The user of the database may not make the role {place.role}: {reason}.",
        hint=f"Give it CREATEROLE, or let an administrator run this:\n{script}",
    )


def _unexpected(place: _Place) -> Misconfigured:
    if place.there:
        return Misconfigured(
            f"There is a role {place.role} already; its password cannot be shown again.",
            hint="Give it a new one: pinstripe reader rotate.",
        )
    return Misconfigured(
        f"There is no role {place.role} yet.", hint="Make it: pinstripe reader create."
    )


async def _check_rights(connection: Connection, place: _Place) -> None:
    """Check the rights: GRANT only warns if the tables belong to another role."""
    unread = await connection.fetchval(
        "SELECT count(*) FROM pg_class WHERE relnamespace = $2::text::regnamespace"
        " AND relkind IN ('r', 'p', 'v', 'm') AND NOT has_table_privilege($1, oid, 'SELECT')",
        place.role,
        quoted(place.schema),
    )
    if unread:
        raise Misconfigured(
            f'{unread} tables of the schema "{place.schema}" belong to another user.',
            hint="Run this as the user that owns them.",
        )


async def _end_sessions(connection: Connection, role: str) -> None:
    """Sessions outlive a password and even their role. Ends those that we may end."""
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
        )
    except asyncpg.InsufficientPrivilegeError:
        return  # They end by themselves; the next login needs the new password.


ITERATIONS = 4096
"""Postgres's own default. The passwords here are random and long: more would only slow logins down."""

_SALT_BYTES = 16


def verifier(password: str, *, salt: bytes | None = None) -> str:
    """The SCRAM-SHA-256 verifier of an ASCII password."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return (
        f"SCRAM-SHA-256${ITERATIONS}:{b64encode(salt).decode()}"
        f"${b64encode(stored).decode()}:{b64encode(server).decode()}"
    )
