"""What is to be pasted, for addresses that need care.

Where things are, from URLs of every shape that users have.
"""

from __future__ import annotations

import ast
import shlex

import pytest

from pinstripe.console import connect
from pinstripe.console.connect import PASSWORD, DatabaseLogin, database_at, gateway_at

LOGIN = DatabaseLogin("reader", "a'b c$d")


def texts(pieces: object) -> dict[str, str]:
    assert hasattr(pieces, "__iter__")
    return {piece.name: piece.text for piece in pieces}


def test_a_password_with_quotes_stays_one_word_of_the_shell() -> None:
    place = database_at("postgresql://me:x@db/billing")
    found = texts(connect.of_database(place, LOGIN, 'sch"ema', "customer"))
    words = shlex.split(found["psql"])
    assert words == [
        "psql",
        "postgresql://reader:a%27b%20c%24d@db/billing",
        "-c",
        'SELECT count(*) FROM "sch""ema"."customer"',
    ]
    ast.parse(found["sqlalchemy"])


def test_prisma_gets_the_schema_and_a_host_even_for_a_socket() -> None:
    socket = database_at("postgresql://me@/b?host=/run/my pg&port=5433")
    found = texts(connect.of_database(socket, DatabaseLogin("r", "p"), "shop", "customer"))
    assert found["prisma"] == (
        'DATABASE_URL="postgresql://r:p@localhost:5433/b?host=/run/my%20pg&schema=shop"'
    )
    network = database_at("postgresql://me@[::1]/b?sslmode=require")
    found = texts(connect.of_database(network, DatabaseLogin("r", "p"), "shop", "customer"))
    assert found["prisma"] == (
        'DATABASE_URL="postgresql://r:p@[::1]:5432/b?schema=shop&sslmode=require"'
    )


def test_a_host_that_says_more_than_a_name_cannot_leave_its_quotes() -> None:
    gateway = gateway_at("", 'http://evil";touch x;"', "shop")
    found = texts(connect.of_proxy(gateway))
    ast.parse(found["python"])
    assert shlex.split(found["curl"])[2] == 'http://evil";touch x;"/v1/customers'


def test_the_webhook_command_names_a_stored_sync_only() -> None:
    gateway = gateway_at("https://pin.example", "", "shop")
    (stored,) = connect.of_webhook(gateway, stored=True)
    assert stored.text == "pinstripe webhook create --sync shop --public-url https://pin.example"
    (default,) = connect.of_webhook(gateway, stored=False)
    assert "--sync" not in default.text


CREDENTIALS = DatabaseLogin("reader", "p w")


@pytest.mark.parametrize(
    ("url", "reach", "host", "port", "name"),
    [
        ("postgresql://me:x@db.eu:6543/billing?sslmode=require", "network", "db.eu", 6543, "billing"),
        ("postgres://me@db/billing", "network", "db", 5432, "billing"),
        ("postgresql://me:x@[2001:db8::1]:5433/b", "network", "2001:db8::1", 5433, "b"),
        ("postgresql://localhost/b", "loopback", "localhost", 5432, "b"),
        ("postgresql://[::1]/b", "loopback", "::1", 5432, "b"),
        ("postgresql://me@/b?host=/run/pg", "socket", "/run/pg", 5432, "b"),
        ("postgresql://%2Frun%2Fpg/b", "socket", "/run/pg", 5432, "b"),
        ("postgresql:///b", "socket", "/var/run/postgresql", 5432, "b"),
        ("postgresql:///?host=db&port=7&dbname=b", "network", "db", 7, "b"),
    ],
)  # fmt: skip
def test_a_database_is_where_its_url_says(
    url: str, reach: str, host: str, port: int, name: str
) -> None:
    place = database_at(url)
    assert (place.reach, place.host, place.port, place.name) == (reach, host, port, name)


def test_the_services_own_login_is_neither_shown_nor_passed_on() -> None:
    place = database_at("postgresql://me:secret@db:6543/billing?user=me&password=secret")
    assert "secret" not in repr(place)
    assert place.url(CREDENTIALS) == "postgresql://reader:p%20w@db:6543/billing"


def test_a_password_that_is_not_known_says_so() -> None:
    assert not DatabaseLogin("reader", PASSWORD).known
    assert CREDENTIALS.known


@pytest.mark.parametrize(
    ("public_url", "base"),
    [
        ("https://pin.example", "https://pin.example"),
        ("http://127.0.0.1:8377", "http://reached:1"),
        ("http://[::]:8377", "http://reached:1"),
        ("", "http://reached:1"),
    ],
)
def test_the_gateway_is_where_others_reach_it(public_url: str, base: str) -> None:
    assert gateway_at(public_url, "http://reached:1", "shop").base == base


def test_ports_that_an_address_leaves_out_are_known() -> None:
    gateway = gateway_at("https://pin.example", "", "shop")
    assert (gateway.host, gateway.port, gateway.protocol) == ("pin.example", 443, "https")
    assert not gateway.is_local
