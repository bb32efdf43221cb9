"""What to paste: commands and lines of code that connect to the database and to the gateway. Pure.

Each works as it stands, with the password filled in where it is known; tests run them literally.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from pinstripe.console.addresses import DatabasePlace, Gateway, Login
from pinstripe.store.ddl import qualified

_KEY = '-u "$STRIPE_API_KEY:"'


@dataclass(frozen=True, slots=True)
class Snippet:
    """`name` is its element's id. `told` says what it needs or does."""

    name: str
    title: str
    text: str
    told: str = ""


def of_database(place: DatabasePlace, login: Login, schema: str, table: str) -> Iterator[Snippet]:
    """Reading with SQL. `table` is one that there is."""
    url = place.url(login)
    look = f"SELECT count(*) FROM {qualified(schema, table)}"
    yield Snippet("psql", "psql", f"psql {shlex.quote(url)} -c {shlex.quote(look)}")
    yield Snippet(
        "sqlalchemy",
        "SQLAlchemy",
        "from sqlalchemy import create_engine, text\n\n"
        f"engine = create_engine({_text(_with_driver(url))})\n"
        "with engine.connect() as connection:\n"
        f"    print(connection.execute(text({_text(look)})).scalar())",
        "Needs sqlalchemy and psycopg.",
    )
    yield Snippet(
        "prisma",
        "Prisma",
        f'DATABASE_URL="{_prisma(place, login, schema)}"',
        "In .env; then npx prisma db pull.",
    )


def of_proxy(gateway: Gateway) -> Iterator[Snippet]:
    """Writing through the proxy. Each needs STRIPE_API_KEY in the environment."""
    yield Snippet(
        "curl",
        "curl",
        f"curl -i {shlex.quote(f'{gateway.base}/v1/customers')} {_KEY} -d email=ada@example.com",
        "Pinstripe-Mirrored: yes in the answer tells that the row is there.",
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
        "Needs stripe 13 or later.",
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
        "Needs the package stripe.",
    )


def of_wait(gateway: Gateway) -> Iterator[Snippet]:
    """Waiting, for everything or for one object."""
    yield Snippet(
        "wait-all",
        "Everything so far",
        f"curl {shlex.quote(f'{gateway.wait}?timeout=30')} {_KEY}",
        "Answers when the database holds what Stripe had when you asked.",
    )
    yield Snippet(
        "wait-object",
        "One object",
        f"curl {shlex.quote(f'{gateway.wait}?object=cus_...')} {_KEY}",
        "The surest form: it is fetched now, and written.",
    )


def of_webhook(gateway: Gateway, *, stored: bool) -> Iterator[Snippet]:
    """Making the endpoint at Stripe."""
    base = "https://..." if gateway.is_local else gateway.base
    sync = f" --sync {gateway.sync_id}" if stored else ""
    yield Snippet(
        "webhook-create",
        "Let Pinstripe make the endpoint",
        f"pinstripe webhook create{sync} --public-url {shlex.quote(base)}",
        "With a key that may write webhook endpoints. Its signing secret is kept with the sync."
        if stored
        else "With a key that may write webhook endpoints. It prints the setting that holds the secret.",
    )


def tunnel(place: DatabasePlace) -> str:
    """How another machine reaches a database that listens on this one only."""
    target = place.socket if place.reach == "socket" else f"{place.host}:{place.port}"
    return f"ssh -N -L 15432:{target} THIS_MACHINE"


def _text(value: str) -> str:
    """A string of Python and of JavaScript alike."""
    return json.dumps(value, ensure_ascii=False)


def _with_driver(url: str) -> str:
    return "postgresql+psycopg" + url[url.index(":") :]


def _prisma(place: DatabasePlace, login: Login, schema: str) -> str:
    """Prisma wants a host even for a socket, and the schema in the URL."""
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
