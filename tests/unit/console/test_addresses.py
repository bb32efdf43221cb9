"""Where things are, from URLs of every shape that users have."""

from __future__ import annotations

import pytest

from pinstripe.console.addresses import PASSWORD, Login, database_at, gateway_at

LOGIN = Login("reader", "p w")


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
    assert place.url(LOGIN) == "postgresql://reader:p%20w@db:6543/billing"


def test_a_password_that_is_not_known_says_so() -> None:
    assert not Login("reader", PASSWORD).known
    assert LOGIN.known


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
