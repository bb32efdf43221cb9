"""A database URL with every parameter that other programs give it, as arguments for the driver.

A parameter is used, has no effect for a reason that stands here, or is refused by name: none is passed on
in the hope that the server knows it, and none that asks for security is dropped. What the URL leaves out
comes from the service file and from libpq's environment variables, in libpq's order:
https://www.postgresql.org/docs/current/libpq-connect.html (parameters, service file, variables).
`store.tls` makes the certificates' part of it.
"""

from __future__ import annotations

import configparser
import getpass
import os
import random
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from pinstripe.errors import Misconfigured
from pinstripe.store.tls import TLS_PARAMETERS, Tls, make_tls, mode_of

FORM = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_ODD = f"Its form: {FORM}; write odd characters as %XX (@ is %40, / is %2F, # is %23)."

_USED = frozenset(
    (
        *("host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service"),
        *("options", "connect_timeout", "tcp_user_timeout", "requirepeer", "channel_binding"),
        *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
        *("target_session_attrs", "load_balance_hosts", "krbsrvname", "gsslib"),
    )
)

_NO_EFFECT: dict[str, str] = {
    # libpq's.
    "application_name": "sessions are named by what they do: a take-over of the lease needs it",
    "fallback_application_name": "sessions are named by what they do",
    "client_encoding": "the driver speaks UTF-8 and the server converts",
    "sslcompression": "TLS libraries do not compress any more, libpq neither",
    "oauth_issuer": "used only where the server asks for OAuth, which the driver then refuses",
    "oauth_client_id": "as oauth_issuer",
    "oauth_client_secret": "as oauth_issuer",
    "oauth_scope": "as oauth_issuer",
    # Prisma's. Its `schema` is that of its own tables: ours is PINSTRIPE_SCHEMA.
    "schema": "the schema of another program's tables",
    **dict.fromkeys(
        ("connection_limit", "pool_timeout", "statement_cache_size", "socket_timeout"),
        "Prisma's own pool",
    ),
    "pgbouncer": "whether a pooler lets sessions last is tried at the start",
    # node-postgres's, postgres.js's.
    "uselibpqcompat": "sslmode is libpq's here",
    "encoding": "as client_encoding",
    **dict.fromkeys(
        ("max", "min", "idle_timeout", "max_lifetime", "prepare", "fetch_types"), "a pool's own"
    ),
    # SQLAlchemy's, Rails's, pgx's, lib/pq's.
    **dict.fromkeys(
        (
            *("async_fallback", "prepared_statement_cache_size", "pool", "pool_size"),
            *("prepared_statements", "checkout_timeout", "reaping_frequency", "conn_max_age"),
            *("pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime"),
            *("pool_max_conn_idle_time", "pool_health_check_period", "default_query_exec_mode"),
            *("statement_cache_capacity", "description_cache_capacity", "prefer_simple_protocol"),
            *("binary_parameters", "disable_prepared_binary_result"),
        ),
        "a driver's own pool or cache",
    ),
    # Marks that providers put into the URLs that they hand out.
    "supa": "Supabase's mark",
    "workaround": "Supabase's mark for Vercel",
    "pooler": "a provider's mark",
}
"""Parameters that change nothing here, and why that is right."""

_OFF = frozenset({"", "0", "no", "off", "false", "disable"})

_REFUSED: dict[str, tuple[frozenset[str], str]] = {
    "require_auth": (
        frozenset({""}),
        "The driver logs in by whatever method the server asks for. Take it out, and use "
        "sslmode=verify-full, so that none but your server can ask.",
    ),
    "gssencmode": (
        frozenset({"", "disable", "prefer"}),
        "The driver cannot encrypt by GSSAPI: use TLS.",
    ),
    "gssdelegation": (_OFF, "The driver does not delegate credentials."),
    "replication": (_OFF, "Pinstripe needs an ordinary session, not one of replication."),
    "min_protocol_version": (frozenset({"", "3.0"}), "The driver speaks protocol 3.0."),
    "max_protocol_version": (
        frozenset({"", "3.0", "3.2", "latest"}),
        "The driver speaks protocol 3.0.",
    ),
    "scram_client_key": (frozenset({""}), "The driver logs in with a password: give that."),
    "scram_server_key": (frozenset({""}), "The driver logs in with a password: give that."),
    "sslidentity": (frozenset({""}), "This is Prisma's: give sslcert and sslkey as libpq does."),
}
"""Parameters that are refused by name unless they have one of these values, and the remedy."""

_LIBPQ = (_USED | TLS_PARAMETERS | _REFUSED.keys()) - {"sslidentity", "ssl", "sslaccept"} | {
    *("application_name", "fallback_application_name", "client_encoding", "sslcompression")
}

_VARIABLES: dict[str, str] = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGREQUIREAUTH": "require_auth",
    "PGCHANNELBINDING": "channel_binding",
    "PGSERVICE": "service",
    "PGOPTIONS": "options",
    "PGSSLMODE": "sslmode",
    "PGREQUIRESSL": "requiressl",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLSNI": "sslsni",
    "PGREQUIREPEER": "requirepeer",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGGSSENCMODE": "gssencmode",
    "PGGSSDELEGATION": "gssdelegation",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGLOADBALANCEHOSTS": "load_balance_hosts",
    "PGMINPROTOCOLVERSION": "min_protocol_version",
    "PGMAXPROTOCOLVERSION": "max_protocol_version",
}
"""libpq's environment variables. PGCLIENTENCODING, PGAPPNAME, PGDATESTYLE, PGTZ and PGGEQO set what a
session of ours sets itself.
"""

_CHOICES: dict[str, tuple[str, ...]] = {
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
    "load_balance_hosts": ("disable", "random"),
    "channel_binding": ("disable", "prefer", "require"),
    "gsslib": ("gssapi", "sspi"),
}

_SOCKET_OPTIONS: tuple[tuple[str, int, str], ...] = (
    ("keepalives_idle", socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    ("keepalives_interval", socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    ("keepalives_count", socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    ("tcp_user_timeout", socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
)


class UrlParts(NamedTuple):
    """A URL cut where libpq cuts it, still encoded."""

    user: str
    password: str | None
    hosts: str
    path: str
    query: str

    def __repr__(self) -> str:
        return f"UrlParts({self.hosts}/{self.path})"


@dataclass(frozen=True, slots=True)
class DatabaseTarget:
    """Where to connect to and how, for `asyncpg.connect`."""

    hosts: list[str] | None
    ports: list[int] | None
    user: str | None
    password: str | None = field(repr=False)
    database: str | None
    passfile: str | None
    tls: Tls
    settings: dict[str, str]
    target_session_attrs: str | None
    krbsrvname: str | None
    gsslib: str | None
    timeout_s: float | None
    """For each host; None for our own limit."""
    socket_options: tuple[tuple[int, int, int], ...]
    requirepeer: str
    """The user of this machine that the server behind a socket must run as; "" for any."""


class _Value(NamedTuple):
    text: str
    origin: str
    """The name by which the user gave it: a parameter's, or a variable's."""


_Values = dict[str, _Value]


def split_url(url: str) -> UrlParts:
    """As libpq does, not as for web pages: `#` and `?` may stand in a password. An `@` too, which libpq
    would take for its end. Raises Misconfigured.

    >>> split_url("postgresql://me:p#1@db:5432/x?sslmode=require").hosts
    'db:5432'
    """
    scheme, mark, rest = url.partition("://")
    if not mark or scheme not in ("postgresql", "postgres"):
        raise Misconfigured("The database URL is none of Postgres's.", hint=f"Its form: {FORM}.")
    login = ""
    end = re.search("[@/]", rest)
    if end and end.group() == "@":
        authority = re.split("[/?]", rest[end.start() :], maxsplit=1)[0]
        cut = end.start() + authority.rindex("@")
        login, rest = rest[:cut], rest[cut + 1 :]
    where, _, query = rest.partition("?")
    hosts, _, path = where.partition("/")
    user, colon, password = login.partition(":")
    return UrlParts(user, password if colon else None, hosts, path, query)


def pairs(query: str) -> list[tuple[str, str]]:
    """The parameters, decoded. A `+` is a plus: libpq decodes %XX and nothing else."""
    cut = [part.partition("=") for part in query.split("&") if part]
    return [(unquote(name), unquote(value)) for name, _, value in cut]


def url_for_libpq(url: str) -> str:
    """`url` as libpq itself takes it: with those parameters only that it knows, odd characters as %XX."""
    parts = split_url(url)
    password = None if parts.password is None else unquote(parts.password)
    return _written(parts, unquote(parts.user), password, _LIBPQ)


def url_with_login(url: str, user: str, password: str | None) -> str:
    """`url` for libpq with another user and password, and no other secret: it is shown."""
    named = _LIBPQ - {"user", "password", "passfile", "sslpassword"}
    return _written(split_url(url), user, password, named)


def _written(parts: UrlParts, user: str, password: str | None, named: frozenset[str]) -> str:
    login = quote(user, safe="") + ("" if password is None else f":{quote(password, safe='')}")
    given = {"dbname" if n == "database" else n: value for n, value in pairs(parts.query)}
    if given.get("sslaccept") == "strict":
        given = {"sslrootcert": "system"} | given | {"sslmode": "verify-full"}
    elif given.keys() & {"ssl", "sslmode"}:
        given["sslmode"] = mode_of(given).replace("no-verify", "require")
    kept = [f"{n}={quote(value, safe='/')}" for n, value in given.items() if n in named]
    query = f"?{'&'.join(kept)}" if kept else ""
    return f"postgresql://{login}{'@' if login else ''}{parts.hosts}/{parts.path}{query}"


def read_url(url: str, environ: Mapping[str, str] = os.environ) -> DatabaseTarget:
    """What `url` asks for. Raises Misconfigured, which names the parameter and never a value."""
    values = _of_url(url)
    service = values.pop("service", None) or _variable(environ, "PGSERVICE")
    file = values.pop("servicefile", None)
    if service and service.text:
        values = _of_service(service, file, environ) | values
    variables = {n: _variable(environ, v) for v, n in _VARIABLES.items() if v != "PGSERVICE"}
    values = {name: value for name, value in variables.items() if value} | values
    for name, value in values.items():
        _check(name, value)
    hosts, ports, names = _addresses(values)
    sockets = bool(hosts) and all(host.startswith("/") for host in hosts)
    return DatabaseTarget(
        hosts=hosts or None,
        ports=ports,
        user=_text(values, "user"),
        password=_text(values, "password") or _of_passfile(values, hosts, ports, names),
        database=_text(values, "dbname"),
        passfile=_text(values, "passfile"),
        tls=make_tls({n: v.text for n, v in values.items()}, names, only_sockets=sockets),
        settings={"options": options} if (options := _text(values, "options")) else {},
        target_session_attrs=_text(values, "target_session_attrs"),
        krbsrvname=_text(values, "krbsrvname"),
        gsslib=_text(values, "gsslib"),
        timeout_s=_timeout(values),
        socket_options=() if sockets else tuple(_socket_options(values)),
        requirepeer=_text(values, "requirepeer") or "",
    )


def _of_url(url: str) -> _Values:
    parts = split_url(url)
    found = {"database": "dbname", "servicefile": "servicefile"}
    named = {"user": parts.user, "password": parts.password or "", "dbname": parts.path}
    values = {n: _Value(unquote(text), n) for n, text in named.items() if text}
    if parts.hosts:
        values["host"], values["port"] = _cut_ports(parts.hosts)
        if not values["port"].text.strip(","):
            del values["port"]
    for name, text in pairs(parts.query):
        values[found.get(name, name)] = _Value(text, name)
    return values


def _cut_ports(hosts: str) -> tuple[_Value, _Value]:
    """`a:1,[::1]:2` as hosts and ports, both separated by commas."""
    names, ports = [], []
    for spec in hosts.split(","):
        cut = re.fullmatch(r"\[([^\]]*)\](?::(.*))?|([^:\[\]]*)(?::(.*))?", spec)
        if cut is None:
            raise Misconfigured("The host in the database URL cannot be read.", hint=_ODD)
        names.append(unquote(cut[1] or cut[3] or ""))
        ports.append(unquote(cut[2] or cut[4] or ""))
    return _Value(",".join(names), "host"), _Value(",".join(ports), "port")


def _of_service(service: _Value, file: _Value | None, environ: Mapping[str, str]) -> _Values:
    """The section of that name: of the user's service file, else of the system's."""
    named = file.text if file else environ.get("PGSERVICEFILE")
    files = [Path(named)] if named else [Path.home() / ".pg_service.conf"]
    if "PGSYSCONFDIR" in environ:
        files.append(Path(environ["PGSYSCONFDIR"]) / "pg_service.conf")
    for path in files:
        parser = configparser.RawConfigParser(
            delimiters=("=",), comment_prefixes=("#",), strict=False
        )
        try:
            lines = path.read_text("utf-8").splitlines() if path.exists() else ()
            parser.read_string("\n".join(line.strip() for line in lines))  # No line goes on.
        except (configparser.Error, OSError, UnicodeDecodeError) as error:
            raise Misconfigured(
                f"The service file {path} cannot be read.",
                hint="Its lines are NAME=VALUE under [SERVICE].",
            ) from error
        if parser.has_section(service.text):
            return {
                name: _Value(text, f"{name} of the service {service.text}")
                for name, text in parser.items(service.text)
            }
    raise Misconfigured(
        f"There is no service {service.text} in {' or '.join(map(str, files))}.",
        hint="Write it there, or name the file by PGSERVICEFILE.",
    )


def _variable(environ: Mapping[str, str], name: str) -> _Value | None:
    return _Value(environ[name], name) if environ.get(name) else None


_PASSWORD = re.compile(r"((?:\\.|[^\\:])*):" * 4 + r"(.*?)\r?")
"""A line of a password file: `host:port:database:user:password`. A backslash escapes `:` and itself."""


def _of_passfile(
    values: _Values, hosts: list[str], ports: list[int] | None, names: Mapping[str, str]
) -> str | None:
    """The password of the first host that the password file names. The driver's own reading keeps the
    backslashes, and knows addresses only (https://www.postgresql.org/docs/current/libpq-pgpass.html).
    """
    try:
        path = Path(_text(values, "passfile") or Path.home() / ".pgpass")
        lines = [] if path.stat().st_mode & 0o077 else path.read_text("utf-8").split("\n")
        user = _text(values, "user") or getpass.getuser()
    except (OSError, RuntimeError, KeyError, UnicodeDecodeError):
        return None
    for host, port in zip(hosts or [""], ports or [5432], strict=True):
        place = names.get(host, "localhost" if host[:1] in ("", "/") else host)
        wanted = (place, str(port), _text(values, "dbname") or user, user)
        for found in filter(None, map(_PASSWORD.fullmatch, lines)):
            fields = [re.sub(r"\\(.)", r"\1", field) for field in found.groups()]
            if all(fields[n] in ("*", text) for n, text in enumerate(wanted)):
                return fields[4]
    return None


def _check(name: str, value: _Value) -> None:
    """Raise Misconfigured for parameters that are neither used nor without effect, without their values."""
    if name in _REFUSED:
        fine, remedy = _REFUSED[name]
        if value.text.lower() not in fine:
            raise Misconfigured(f"Of the database URL, {value.origin} cannot be met.", hint=remedy)
    elif name in _CHOICES and value.text not in _CHOICES[name]:
        raise Misconfigured(
            f"Of the database URL, {value.origin} has a value that it cannot have.",
            hint=f"It is one of: {', '.join(_CHOICES[name])}.",
        )
    elif name not in _USED | TLS_PARAMETERS | _NO_EFFECT.keys():
        raise Misconfigured(
            f"Of the database URL, neither libpq nor Pinstripe knows the parameter {name!r}.",
            hint="Take it out. A parameter of the server is set by options=-c%20NAME%3DVALUE.",
        )


def _text(values: _Values, name: str) -> str | None:
    value = values.get(name)
    return (value.text or None) if value else None


def _addresses(values: _Values) -> tuple[list[str], list[int] | None, dict[str, str]]:
    """Hosts to connect to, their ports, and the names of those that are given as addresses."""
    hosts = _list(values, "host")
    addresses = _list(values, "hostaddr")
    if hosts and addresses and len(hosts) != len(addresses):
        raise Misconfigured(
            "Of the database URL, host and hostaddr are lists of different lengths.",
            hint="Give one address for each host.",
        )
    names = dict(zip(addresses, hosts, strict=True)) if addresses and hosts else {}
    where = addresses or hosts
    ports = [_port(text) for text in _list(values, "port")]
    if len(ports) not in (0, 1, max(len(where), 1)):
        raise Misconfigured(
            "Of the database URL, host and port are lists of different lengths.",
            hint="Give one port, or one for each host.",
        )
    if len(ports) == 1:
        ports *= max(len(where), 1)
    if _text(values, "load_balance_hosts") == "random" and len(where) > 1:
        order = random.sample(range(len(where)), len(where))
        where = [where[n] for n in order]
        ports = [ports[n] for n in order] if ports else []
    return where, ports or ([5432] * len(where) if where else None), names


def _list(values: _Values, name: str) -> list[str]:
    text = _text(values, name)
    return text.split(",") if text else []


def _port(text: str) -> int:
    if not text:
        return 5432
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise Misconfigured("The port in the database URL is no port.", hint=_ODD)
    return int(text)


def _whole(values: _Values, name: str) -> int | None:
    text = _text(values, name)
    if text is None:
        return None
    if not re.fullmatch("-?[0-9]{1,9}", text.strip()):
        raise Misconfigured(
            f"Of the database URL, {values[name].origin} is not a whole number.",
            hint="Correct it, or leave it out.",
        )
    return int(text)


def _timeout(values: _Values) -> float | None:
    """As in libpq: for each host, at least 2 s. Its zero is for ever; here it is our own limit."""
    seconds = _whole(values, "connect_timeout")
    return None if seconds is None or seconds <= 0 else float(max(seconds, 2))


def _socket_options(values: _Values) -> Iterator[tuple[int, int, int]]:
    alive = _whole(values, "keepalives")
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(alive is None or alive != 0)
    for name, level, option in _SOCKET_OPTIONS:
        number = _whole(values, name)
        if number and number > 0 and hasattr(socket, option):  # macOS has not all of them
            yield level, getattr(socket, option), number
