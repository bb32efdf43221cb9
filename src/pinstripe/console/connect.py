"""Connect: the URLs of the database and the gateway, with commands and code to paste.

The database URL is that of the read-only user of this schema. Its password is in one response only, the
one that answers the button; the service's own login is on no page. The gateway's URL is `public_url` if
it is set, else the one that the browser used to reach the page.

The snippets are pure functions of these URLs. Tests run each one literally.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from starlette.responses import Response

from pinstripe.client.api_key import is_loopback
from pinstripe.console.page_context import PageContext
from pinstripe.console.templating import Notice
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.database_url import pairs, split_url, url_with_login
from pinstripe.store.ddl import qualified
from pinstripe.store.pool import Connection
from pinstripe.store.roles import drop_reader, find_reader, renew_reader, role_name

_LIKED = ("customer", "invoice", "charge", "product", "event")
_TABLES = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1 LIMIT 500"


async def show(visit: PageContext) -> Response:
    """All addresses; the password of the reader is not known any more."""
    return await _page(visit, None, ())


async def make(visit: PageContext) -> Response:
    """Create the read-only user or reset its password, which only this response shows."""
    url = _database_url(visit)
    try:
        reader = await renew_reader(url, visit.sync.schema)
    except PinstripeError as error:
        return await _page(visit, None, (Notice(error.message, error.hint, "bad"),), status=409)
    told = Notice(
        "This password is shown only once. Copy what you need from this page.",
        "Clients that used the old password need the new one; their sessions were closed.",
        "good",
    )
    return await _page(visit, DatabaseLogin(reader.role, reader.password), (told,))


async def drop(visit: PageContext) -> Response:
    """Delete the read-only user."""
    try:
        dropped = await drop_reader(_database_url(visit), visit.sync.schema)
    except PinstripeError as error:
        return await _page(visit, None, (Notice(error.message, error.hint, "bad"),), status=409)
    words = (
        "The read-only user was deleted and its sessions were closed."
        if dropped
        else "There is no read-only user."
    )
    return await _page(visit, None, (Notice(words, kind="good"),))


def gateway_of(visit: PageContext) -> GatewayAddress:
    """The addresses of the sync that the visit is about."""
    request = visit.request
    reached = f"{request.url.scheme}://{request.headers.get('host', '')}"
    return gateway_at(visit.gateway.parts.public_url, reached, visit.sync.id)


async def _page(
    visit: PageContext,
    login: DatabaseLogin | None,
    messages: tuple[Notice, ...],
    *,
    status: int = 200,
) -> Response:
    sync = visit.sync
    place = database_at(_database_url(visit))
    role, table = await _look(visit, sync.schema)
    login = login or DatabaseLogin(role or role_name(place.name, sync.schema), PASSWORD)
    gateway = gateway_of(visit)
    return visit.page(
        "connect.html",
        messages=messages,
        status=status,
        gateway=gateway,
        place=place,
        login=login,
        database_url=place.url(login),
        has_reader=role is not None,
        bi=_bi_fields(place, login, sync.schema),
        tunnel=tunnel(place),
        of_database=list(of_database(place, login, sync.schema, table)),
        of_proxy=list(of_proxy(gateway)),
        of_wait=list(of_wait(gateway)),
        of_webhook=list(of_webhook(gateway, stored=sync.stored)),
        webhook_secrets=sync.webhook_secrets,
    )


async def _look(visit: PageContext, schema: str) -> tuple[str | None, str]:
    """(the reader's role if there is one, a table to show the way with)."""
    try:
        async with visit.gateway.reads.connection() as connection:
            return await find_reader(connection, schema), await _some_table(connection, schema)
    except PinstripeError:
        # Postgres is away; or another role has that name: the button's response says what to do.
        return None, _LIKED[0]


async def _some_table(connection: Connection, schema: str) -> str:
    there = [row[0] for row in await connection.fetch(_TABLES, schema)]
    return next((name for name in (*_LIKED, *there) if name in there), _LIKED[0])


def _bi_fields(place: DatabasePlace, login: DatabaseLogin, schema: str) -> list[tuple[str, str]]:
    """Return the fields in Metabase's terms, which other tools share."""
    through_tunnel = place.reach == "socket"
    return [
        ("Database type", "PostgreSQL"),
        ("Host", "localhost" if through_tunnel else place.host),
        ("Port", "15432" if through_tunnel else str(place.port)),
        ("Database name", place.name),
        ("Username", login.role),
        ("Password", login.password if login.known else "as shown when the user was created"),
        ("Schemas", f"Only these: {schema}"),
    ]


def _database_url(visit: PageContext) -> str:
    url = visit.gateway.parts.database_url()
    if not url:
        raise Unreachable("The database is not available yet.", hint="Try again in a few seconds.")
    return url


PASSWORD = "PASSWORD"  # noqa: S105 (it is none)
"""Stands where a password belongs that nobody knows any more."""


@dataclass(frozen=True, slots=True)
class DatabaseLogin:
    """A role and its password; `PASSWORD` as a placeholder if it is not known."""

    role: str
    password: str

    @property
    def known(self) -> bool:
        return self.password != PASSWORD


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """The gateway's addresses for one sync. `base` has no slash at its end."""

    base: str
    sync_id: str

    @property
    def proxy(self) -> str:
        return f"{self.base}/api.stripe.com"

    @property
    def wait(self) -> str:
        return f"{self.base}/wait/stripe/{self.sync_id}"

    @property
    def webhook(self) -> str:
        return f"{self.base}/webhooks/stripe/{self.sync_id}"

    @property
    def is_local(self) -> bool:
        """Only this machine reaches it; Stripe does not."""
        return is_loopback(urlsplit(self.base).hostname or "")

    @property
    def host(self) -> str:
        return urlsplit(self.base).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.base)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def protocol(self) -> str:
        return urlsplit(self.base).scheme


def gateway_at(public_url: str, reached: str, sync_id: str) -> GatewayAddress:
    """`reached`: scheme and host of the current request.

    >>> gateway_at("https://pin.example/", "http://10.0.0.7:8377", "default").wait
    'https://pin.example/wait/stripe/default'
    >>> gateway_at("http://0.0.0.0:8377", "http://10.0.0.7:8377", "default").base
    'http://10.0.0.7:8377'
    """
    host = urlsplit(public_url).hostname or ""
    says_nothing = not host or is_loopback(host) or _is_wildcard(host)
    return GatewayAddress((reached if says_nothing else public_url).rstrip("/"), sync_id)


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class DatabasePlace:
    """Where Postgres listens. `host` of a socket is its directory; `url` holds the service's own login."""

    reach: Literal["socket", "loopback", "network"]
    host: str
    port: int
    name: str
    sslmode: str
    _url: str

    def __repr__(self) -> str:
        return f"DatabasePlace({self.reach}, {self.host}:{self.port}/{self.name})"

    def url(self, login: DatabaseLogin) -> str:
        """As psql and libpq take it."""
        return url_with_login(self._url, login.role, login.password)

    @property
    def socket(self) -> str:
        """The socket's file."""
        return f"{self.host}/.s.PGSQL.{self.port}"


def database_at(url: str) -> DatabasePlace:
    """Return where the server of a database URL is.

    >>> place = database_at("postgresql://me@/billing?host=/run/pg&port=5433")
    >>> place.reach, place.socket, place.name
    ('socket', '/run/pg/.s.PGSQL.5433', 'billing')
    >>> database_at("postgres://me:secret@127.0.0.1/billing")
    DatabasePlace(loopback, 127.0.0.1:5432/billing)
    """
    parts = split_url(url)
    query = dict(pairs(parts.query))
    host, _, port = unquote(parts.hosts.partition(",")[0]).rpartition(":")
    if not port.isdecimal():
        host, port = unquote(parts.hosts.partition(",")[0]), ""
    host, port = query.get("host") or host.strip("[]"), port or query.get("port", "")
    name = query.get("dbname") or unquote(parts.path)
    reach: Literal["socket", "loopback", "network"] = "network"
    if host.startswith(("/", "@")) or not host:
        reach, host = "socket", host or "/var/run/postgresql"
    elif is_loopback(host):
        reach = "loopback"
    number = int(port) if port.isdecimal() else 5432
    return DatabasePlace(reach, host, number, name, query.get("sslmode", ""), url)


_KEY = '-u "$STRIPE_API_KEY:"'


@dataclass(frozen=True, slots=True)
class Snippet:
    """`name` is the id of its element. `told` is the hint below it."""

    name: str
    title: str
    text: str
    told: str = ""


def of_database(
    place: DatabasePlace, login: DatabaseLogin, schema: str, table: str
) -> Iterator[Snippet]:
    """Reading with SQL. `table` is one that there is."""
    url = place.url(login)
    look = f"SELECT count(*) FROM {qualified(schema, table)}"
    yield Snippet("psql", "psql", f"psql {shlex.quote(url)} -c {shlex.quote(look)}")
    yield Snippet(
        "sqlalchemy",
        "SQLAlchemy",
        "from sqlalchemy import create_engine, text\n\n"
        f"engine = create_engine({_text('postgresql+psycopg' + url[url.index(':') :])})\n"
        "with engine.connect() as connection:\n"
        f"    print(connection.execute(text({_text(look)})).scalar())",
        "Requires sqlalchemy and psycopg.",
    )
    yield Snippet(
        "prisma",
        "Prisma",
        f'DATABASE_URL="{_prisma(place, login, schema)}"',
        "Add to .env, then run npx prisma db pull.",
    )


def of_proxy(gateway: GatewayAddress) -> Iterator[Snippet]:
    """Writing through the proxy. Each needs STRIPE_API_KEY in the environment."""
    yield Snippet(
        "curl",
        "curl",
        f"curl -i {shlex.quote(f'{gateway.base}/v1/customers')} {_KEY} -d email=ada@example.com",
        "Pinstripe-Mirrored: yes in the response means that the row is in the database.",
    )
    base = _text(gateway.base)
    yield Snippet(
        "python",
        "Python SDK",
        "import os\n\nimport stripe\n\n"
        "client = stripe.StripeClient(\n"
        '    os.environ["STRIPE_API_KEY"],\n'
        f'    base_addresses={{"api": {base}, "files": {base}}},\n'
        ")\n"
        'customer = client.v1.customers.create({"email": "ada@example.com"})\n'
        "print(customer.id)",
        "Requires stripe 13 or later.",
    )
    yield Snippet(
        "node",
        "Node SDK",
        "const Stripe = require('stripe');\n\n"
        "const stripe = new Stripe(process.env.STRIPE_API_KEY, {\n"
        f"  host: {_text(gateway.host)}, port: {gateway.port}, protocol: {_text(gateway.protocol)},\n"
        "});\n"
        "stripe.customers.create({email: 'ada@example.com'})\n"
        "  .then((customer) => console.log(customer.id));",
        "Requires the stripe package.",
    )


def of_wait(gateway: GatewayAddress) -> Iterator[Snippet]:
    """Waiting, for everything or for one object."""
    yield Snippet(
        "wait-all",
        "Everything up to now",
        f"curl {shlex.quote(f'{gateway.wait}?timeout=30')} {_KEY}",
        "Returns once the database holds everything Stripe had at the time of the request.",
    )
    yield Snippet(
        "wait-object",
        "One object",
        f"curl {shlex.quote(f'{gateway.wait}?object=cus_...')} {_KEY}",
        "The strongest guarantee: fetches the object now and writes it.",
    )


def of_webhook(gateway: GatewayAddress, *, stored: bool) -> Iterator[Snippet]:
    """Making the endpoint at Stripe."""
    base = "https://..." if gateway.is_local else gateway.base
    sync = f" --sync {gateway.sync_id}" if stored else ""
    yield Snippet(
        "webhook-create",
        "Create the endpoint with Pinstripe",
        f"pinstripe webhook create{sync} --public-url {shlex.quote(base)}",
        "Requires a key that can write webhook endpoints. The signing secret is stored with the "
        "sync."
        if stored
        else "Requires a key that can write webhook endpoints. Prints the signing secret's setting.",
    )


def tunnel(place: DatabasePlace) -> str:
    """How another machine reaches a database that listens on this one only."""
    target = place.socket if place.reach == "socket" else f"{place.host}:{place.port}"
    return f"ssh -N -L 15432:{target} THIS_MACHINE"


def _text(value: str) -> str:
    """A string of Python and of JavaScript alike."""
    return json.dumps(value, ensure_ascii=False)


def _prisma(place: DatabasePlace, login: DatabaseLogin, schema: str) -> str:
    """Prisma requires a host even for a socket, and the schema in the URL."""
    who = f"{quote(login.role, safe='')}:{quote(login.password, safe='')}"
    query = f"schema={quote(schema, safe='')}"
    if place.sslmode:
        query += f"&sslmode={quote(place.sslmode, safe='')}"
    name = quote(place.name, safe="")
    if place.reach == "socket":
        at = quote(place.host, safe="/")
        return f"postgresql://{who}@localhost:{place.port}/{name}?host={at}&{query}"
    host = f"[{place.host}]" if ":" in place.host else place.host
    return f"postgresql://{who}@{host}:{place.port}/{name}?{query}"
