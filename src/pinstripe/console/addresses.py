"""Where things are, as somebody who connects has to write it: the gateway, and the database. Pure.

The gateway's address is `public_url` where somebody has set it to one that others can use; else the one
that the browser has used to reach the page. Of the database's address the login is never shown.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

from pinstripe.gateway.access import is_loopback
from pinstripe.store.database_url import pairs, split_url
from pinstripe.store.reader_role import url_as

PASSWORD = "PASSWORD"  # noqa: S105 (it is none)
"""Stands where a password belongs that nobody knows any more."""


@dataclass(frozen=True, slots=True)
class Login:
    """A role and its password; `PASSWORD` if it is not to be shown."""

    role: str
    password: str

    @property
    def known(self) -> bool:
        return self.password != PASSWORD


@dataclass(frozen=True, slots=True)
class Gateway:
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


def gateway_at(public_url: str, reached: str, sync_id: str) -> Gateway:
    """`reached`: scheme and host of the request that asks.

    >>> gateway_at("https://pin.example/", "http://10.0.0.7:8377", "default").wait
    'https://pin.example/wait/stripe/default'
    >>> gateway_at("http://0.0.0.0:8377", "http://10.0.0.7:8377", "default").base
    'http://10.0.0.7:8377'
    """
    host = urlsplit(public_url).hostname or ""
    says_nothing = not host or is_loopback(host) or _is_wildcard(host)
    return Gateway((reached if says_nothing else public_url).rstrip("/"), sync_id)


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

    def url(self, login: Login) -> str:
        """As psql and libpq take it."""
        return url_as(self._url, login.role, login.password)

    @property
    def socket(self) -> str:
        """The socket's file."""
        return f"{self.host}/.s.PGSQL.{self.port}"


def database_at(url: str) -> DatabasePlace:
    """What a database URL says of where the server is.

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
