"""What is to be pasted, for addresses that need care."""

from __future__ import annotations

import ast
import shlex

from pinstripe.console import snippets
from pinstripe.console.addresses import Login, database_at, gateway_at

LOGIN = Login("reader", "a'b c$d")


def texts(pieces: object) -> dict[str, str]:
    assert hasattr(pieces, "__iter__")
    return {piece.name: piece.text for piece in pieces}


def test_a_password_with_quotes_stays_one_word_of_the_shell() -> None:
    place = database_at("postgresql://me:x@db/billing")
    found = texts(snippets.of_database(place, LOGIN, 'sch"ema', "customer"))
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
    found = texts(snippets.of_database(socket, Login("r", "p"), "shop", "customer"))
    assert found["prisma"] == (
        'DATABASE_URL="postgresql://r:p@localhost:5433/b?host=/run/my%20pg&schema=shop"'
    )
    network = database_at("postgresql://me@[::1]/b?sslmode=require")
    found = texts(snippets.of_database(network, Login("r", "p"), "shop", "customer"))
    assert found["prisma"] == (
        'DATABASE_URL="postgresql://r:p@[::1]:5432/b?schema=shop&sslmode=require"'
    )


def test_a_host_that_says_more_than_a_name_cannot_leave_its_quotes() -> None:
    gateway = gateway_at("", 'http://evil";touch x;"', "shop")
    found = texts(snippets.of_proxy(gateway))
    ast.parse(found["python"])
    assert shlex.split(found["curl"])[2] == 'http://evil";touch x;"/v1/customers'


def test_the_webhook_command_names_a_stored_sync_only() -> None:
    gateway = gateway_at("https://pin.example", "", "shop")
    (stored,) = snippets.of_webhook(gateway, stored=True)
    assert stored.text == "pinstripe webhook create --sync shop --public-url https://pin.example"
    (default,) = snippets.of_webhook(gateway, stored=False)
    assert "--sync" not in default.text
