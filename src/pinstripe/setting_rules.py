"""What the words of a setting may be, and what they become: one function for each kind of value.

    port = whole_number("8377", "--port", least=0, most=65535)

`where` is the flag or the variable that the words came from: an error names it. No value that may be a
secret is repeated in one.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import Error as NotBase64
from collections.abc import Collection
from typing import Literal, TypeAlias
from urllib.parse import quote, urlsplit

from pinstripe.errors import Misconfigured, redact
from pinstripe.settings import STRIPE_URL

Rate: TypeAlias = float | Literal["default", "none"]
"""Requests a second. `default` is half of what Stripe allows for the mode of the key."""

_SCHEMA_BYTES = 63
"""Postgres cuts longer names, silently."""
_TOKEN_CHARACTERS = 16
"""Shorter ones can be guessed."""
_SECRET_KEY_BYTES = 32
"""What AES-128-CBC with HMAC-SHA256 takes, 16 for each (the Fernet format)."""


def rate(text: str, where: str, *, ceiling: float) -> Rate:
    if text == "default":
        return "default"
    if text == "none":
        return "none"
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0.1 <= rate <= ceiling:  # not-a-number fails this too
        raise Misconfigured(
            f"{where} is {redact(text)!r}: it must be a number of requests a second from 0.1 to "
            f"{ceiling:g}.",
            hint=f"Stripe allows at most {ceiling:g}; leave it out for half of what Stripe allows.",
        )
    return rate


def number_of(text: str, where: str, *, unit: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: it must be a number of {unit} from {least:g} to {most:g}.",
            hint="Leave it out for the default.",
        )
    return number


def database_url(text: str, where: str) -> str | None:
    if not text:
        return None
    if re.match(r"[a-z_]+\s*=", text):
        pairs = _keywords(text)
        if pairs is not None:
            return "postgresql://?" + "&".join(f"{k}={quote(v, safe='/')}" for k, v in pairs)
    scheme = re.match(r"(postgres|postgresql)(\+[a-z0-9]+)?://", text)
    if scheme is None:
        # Not repeated: it may be a password.
        raise Misconfigured(
            f"{where} is not the URL of a Postgres database.",
            hint="Its form: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, or libpq's host=... dbname=...",
        )
    return f"{scheme[1]}://{text[scheme.end() :]}"  # without SQLAlchemy's name of a driver


_KEYWORD = re.compile(
    r"\s*([a-z_]+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)*))(?=\s|$)", re.S
)


def _keywords(text: str) -> list[tuple[str, str]] | None:
    """The pairs of `host=... password='it\\'s'`; None if it is none."""
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        pair = _KEYWORD.match(text, at)
        if pair is None:
            return None
        found.append((pair[1], re.sub(r"\\(.)", r"\1", pair[2] or pair[3] or "", flags=re.S)))
        at = pair.end()
    return found


def stripe_url(text: str, where: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not the address of an API.",
            hint=f"Give scheme and host, like {STRIPE_URL}.",
        )
    return text.rstrip("/")


def account(text: str, where: str) -> str | None:
    if text and not text.startswith("acct_"):
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not the id of an account.",
            hint="Ids of connected accounts begin with acct_.",
        )
    return text or None


def schema(text: str, where: str) -> str:
    reserved = text in ("pinstripe", "information_schema") or text.startswith("pg_")
    if not text or reserved or len(text.encode()) > _SCHEMA_BYTES or "\0" in text:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: no schema of this name can hold the tables.",
            hint="Choose another name of at most 63 bytes; pg_..., information_schema and "
            "pinstripe are taken.",
        )
    return text


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def whole_number(text: str, where: str, *, least: int, most: int, unit: str = "") -> int:
    if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: it must be a whole number from {least} to {most}{unit}.",
            hint="Leave it out for the default.",
        )
    return int(text)


def host(text: str, where: str) -> str:
    """A name or an address to listen at; an IPv6 address without its brackets."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not re.fullmatch(r"[A-Za-z0-9._:%-]+", bare):
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not an address to listen at.",
            hint="127.0.0.1 is this machine alone, 0.0.0.0 every address it has.",
        )
    return bare


def public_url(text: str, where: str) -> str | None:
    if not text:
        return None
    parts = urlsplit(text)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not an address that others can call.",
            hint="Give scheme and host, like https://pinstripe.example.com.",
        )
    return text.rstrip("/")


def token(text: str, where: str) -> str | None:
    """A secret that the user made up. Never repeated."""
    if not text:
        return None
    if len(text) < _TOKEN_CHARACTERS or not text.isascii() or not text.isprintable() or " " in text:
        raise Misconfigured(
            f"{where} is no good token.",
            hint=f"Take at least {_TOKEN_CHARACTERS} letters and digits, without spaces: "
            "`openssl rand -hex 24` makes one.",
        )
    return text


def webhook_secrets(text: str, where: str) -> tuple[str, ...]:
    """Several while one takes the place of another."""
    secrets = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not all(secret.startswith("whsec_") for secret in secrets):
        raise Misconfigured(
            f"{where} holds something that is not the signing secret of a webhook endpoint.",
            hint="They begin with whsec_; Stripe's dashboard shows them at the endpoint. Separate "
            "several by commas.",
        )
    return secrets


def secret_keys(text: str, where: str) -> tuple[str, ...]:
    """Keys of 32 bytes in base64, as the Fernet format wants them. The first is the newest."""
    keys = tuple(word.strip() for word in text.split(",") if word.strip())
    return tuple(secret_key(key, where) for key in keys)


def secret_key(text: str, where: str) -> str:
    """One such key; either alphabet of base64 will do."""
    key = text.replace("+", "-").replace("/", "_")
    try:
        decoded = urlsafe_b64decode(key.encode())
    except (NotBase64, ValueError):
        decoded = b""
    if len(decoded) != _SECRET_KEY_BYTES:
        raise Misconfigured(
            f"{where} holds no key of 32 bytes in base64.",
            hint="`openssl rand -base64 32` makes one. Keep it: what it encrypted is lost without it.",
        )
    return key


def count(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise Misconfigured(
            f"{where} is {redact(text)!r}.", hint="It must be a whole number above zero."
        )
    return int(text)


def one_of(text: str, where: str, *, allowed: Collection[str]) -> str:
    if text.lower() not in allowed:
        raise Misconfigured(
            f"{where} is {redact(text)!r}.", hint=f"It must be one of: {', '.join(allowed)}."
        )
    return text.lower()


def switch(text: str, where: str) -> bool:
    if text.lower() in ("", "0", "no", "off", "false"):
        return False
    return bool(one_of(text, where, allowed=("1", "yes", "on", "true")))
