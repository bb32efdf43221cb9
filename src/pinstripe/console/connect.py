"""Connect: the addresses of the database and of the gateway, and what to paste to use them.

The database is shown as the reader sees it, a role that may read the tables of this schema and nothing
else. Its password is on the one page that answers the button, and nowhere after that. What the service's
own login is no page tells.
"""

from __future__ import annotations

from starlette.responses import Response

from pinstripe.console import snippets
from pinstripe.console.addresses import (
    PASSWORD,
    DatabasePlace,
    Gateway,
    Login,
    database_at,
    gateway_at,
)
from pinstripe.console.pages import Message
from pinstripe.console.visit import Visit
from pinstripe.errors import PinstripeError, Unreachable
from pinstripe.store.pool import Connection
from pinstripe.store.reader_role import drop_reader, find_reader, renew_reader, role_name

_LIKED = ("customer", "invoice", "charge", "product", "event")

_TABLES = "SELECT tablename::text FROM pg_tables WHERE schemaname = $1 ORDER BY 1 LIMIT 500"


async def show(visit: Visit) -> Response:
    """All addresses; the password of the reader is not known any more."""
    return await _page(visit, None, ())


async def make(visit: Visit) -> Response:
    """Makes the reader, or gives it a new password: shown in this answer only."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
    url = _database_url(visit)
    try:
        reader = await renew_reader(url, visit.sync.schema)
    except PinstripeError as error:
        return await _page(visit, None, (Message(error.message, error.hint, "bad"),), status=409)
    told = Message(
        "This password is shown now and never again. Copy what you need of this page.",
        "Whoever used the one before must be given the new one; sessions with it were ended.",
        "good",
    )
    return await _page(visit, Login(reader.role, reader.password), (told,))


async def drop(visit: Visit) -> Response:
    """Takes the role away."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
    try:
        dropped = await drop_reader(_database_url(visit), visit.sync.schema)
    except PinstripeError as error:
        return await _page(visit, None, (Message(error.message, error.hint, "bad"),), status=409)
    words = "The reader was removed; its sessions were ended." if dropped else "There is no reader."
    return await _page(visit, None, (Message(words, kind="good"),))


def gateway_of(visit: Visit) -> Gateway:
    """The addresses of the sync that the visit is about."""
    assert visit.sync is not None  # noqa: S101 (its route names it)
    request = visit.request
    reached = f"{request.url.scheme}://{request.headers.get('host', '')}"
    return gateway_at(visit.gateway.parts.public_url, reached, visit.sync.id)


async def _page(
    visit: Visit, login: Login | None, messages: tuple[Message, ...], *, status: int = 200
) -> Response:
    sync = visit.sync
    assert sync is not None  # noqa: S101 (its route names it)
    place = database_at(_database_url(visit))
    role, table = await _look(visit, sync.schema)
    login = login or Login(role or role_name(place.name, sync.schema), PASSWORD)
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
        tunnel=snippets.tunnel(place),
        of_database=list(snippets.of_database(place, login, sync.schema, table)),
        of_proxy=list(snippets.of_proxy(gateway)),
        of_wait=list(snippets.of_wait(gateway)),
        of_webhook=list(snippets.of_webhook(gateway, stored=sync.stored)),
        webhook_secrets=sync.webhook_secrets,
    )


async def _look(visit: Visit, schema: str) -> tuple[str | None, str]:
    """(the reader's role if there is one, a table to show the way with)."""
    try:
        async with visit.gateway.reads.connection() as connection:
            return await find_reader(connection, schema), await _some_table(connection, schema)
    except Unreachable:
        return None, _LIKED[0]
    except PinstripeError:
        # A role of that name which is not ours: the button says what to do about it.
        return None, _LIKED[0]


async def _some_table(connection: Connection, schema: str) -> str:
    there = [row[0] for row in await connection.fetch(_TABLES, schema)]
    return next((name for name in (*_LIKED, *there) if name in there), _LIKED[0])


def _bi_fields(place: DatabasePlace, login: Login, schema: str) -> list[tuple[str, str]]:
    """As Metabase asks for them; others use the same words."""
    through_tunnel = place.reach == "socket"
    return [
        ("Database type", "PostgreSQL"),
        ("Host", "localhost" if through_tunnel else place.host),
        ("Port", "15432" if through_tunnel else str(place.port)),
        ("Database name", place.name),
        ("Username", login.role),
        ("Password", login.password if login.known else "as shown when the reader was made"),
        ("Schemas", f"Only these: {schema}"),
    ]


def _database_url(visit: Visit) -> str:
    url = visit.gateway.parts.database_url()
    if not url:
        raise Unreachable("The database is not there yet.", hint="Try again in some seconds.")
    return url
