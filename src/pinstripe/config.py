"""The settings of one process as a value, read by the table in `settings` and checked.

    config = read_config({"schema": "billing"}, os.environ)

What is given as a flag wins over the environment, and that over the default. Nothing is read at import
and no `.env` file ever: a `Config` is a value, made once by the command line and handed down. Which
tables exist and of what mode a key is, is for others to know; here are only rules about the words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from pinstripe.errors import Misconfigured, redact
from pinstripe.settings import SETTINGS, STRIPE_URL, Setting

Rate: TypeAlias = float | Literal["default", "none"]
"""Requests a second. `default` is half of what Stripe allows for the mode of the key."""

ACCOUNT_CEILING = 100.0
ENDPOINT_CEILING = 25.0
"""Requests a second that Stripe allows a live account, and each endpoint of any account
(https://docs.stripe.com/rate-limits)."""
_TEST_ACCOUNT_CEILING = 25.0

_LEVELS = ("debug", "info", "warning", "error")
_SCHEMA_BYTES = 63
"""Postgres cuts longer names, silently."""


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process, checked each for itself. Its repr shows no secret."""

    api_key: str | None = field(default=None, repr=False)
    database_url: str | None = field(default=None, repr=False)
    stripe_url: str = STRIPE_URL
    stripe_account: str | None = None
    schema: str = "stripe"
    tables: tuple[str, ...] = ()
    rate_limit: Rate = "default"
    endpoint_rate_limit: Rate = "default"
    data_dir: Path = Path(".pinstripe")
    poll_interval: float = 0.5
    event_window: float = 600.0
    hold_poll_rate: bool = False
    changes: bool = False
    change_days: float = 7.0
    demo_scale: int = 20_000
    log_level: str = "warning"
    log_json: bool = False
    debug: bool = False

    def rates(self, mode: Literal["live", "test"]) -> tuple[float | None, float | None]:
        """(account, endpoint) requests a second for a key of this mode; None is no limit."""
        account = ACCOUNT_CEILING if mode == "live" else _TEST_ACCOUNT_CEILING
        return (
            _in_force(self.rate_limit, account / 2),
            _in_force(self.endpoint_rate_limit, ENDPOINT_CEILING / 2),
        )

    def choose_tables(self, known: Collection[str]) -> list[str]:
        """Those of `known` that are to be synced. Misconfigured names what is like an unknown one."""
        wanted: set[str] = set()
        unwanted: set[str] = set()
        for word in self.tables:
            name = word.removeprefix("-")
            matching = {table for table in known if fnmatchcase(table, name)}
            if not matching:
                raise _unknown_table(name, known)
            (unwanted if word.startswith("-") else wanted).update(matching)
        only_excluded = all(word.startswith("-") for word in self.tables)
        chosen = [t for t in known if (only_excluded or t in wanted) and t not in unwanted]
        if not chosen:
            raise Misconfigured(
                "--tables leaves no table to sync.", hint="Name at least one table, or none at all."
            )
        return chosen


def read_config(given: Mapping[str, str | bool | None], environment: Mapping[str, str]) -> Config:
    """The settings in force: `given` by name (None: not given), else `environment`, else defaults.

    Raises Misconfigured naming the flag or variable. An empty variable counts as not set.
    """
    values = {s.name: _written(s, given.get(s.name), environment) for s in SETTINGS}
    config = Config(
        api_key=values["api_key"][0] or None,
        database_url=_database_url(*values["database_url"]),
        stripe_url=_stripe_url(*values["stripe_url"]),
        stripe_account=_account(*values["stripe_account"]),
        schema=_schema(*values["schema"]),
        tables=_words(values["tables"][0]),
        rate_limit=_rate(*values["rate_limit"], ceiling=ACCOUNT_CEILING),
        endpoint_rate_limit=_rate(*values["endpoint_rate_limit"], ceiling=ENDPOINT_CEILING),
        data_dir=Path(values["data_dir"][0]).expanduser(),
        poll_interval=_number_of(*values["poll_interval"], unit="seconds", least=0.1, most=3600.0),
        event_window=_number_of(*values["event_window"], unit="seconds", least=10.0, most=86400.0),
        hold_poll_rate=_switch(*values["hold_poll_rate"]),
        changes=_switch(*values["changes"]),
        change_days=_number_of(*values["change_days"], unit="days", least=0.01, most=3650.0),
        demo_scale=_count(*values["demo_scale"]),
        log_level=_one_of(*values["log_level"], allowed=_LEVELS),
        log_json=_switch(*values["log_json"]),
        debug=_switch(*values["debug"]),
    )
    if "none" in (config.rate_limit, config.endpoint_rate_limit) and is_stripe(config.stripe_url):
        raise Misconfigured(
            "Without a rate limit only a simulator may be asked, not Stripe.",
            hint="Give a number of requests a second, at most 100 (--endpoint-rate-limit: 25).",
        )
    return config


def is_stripe(url: str) -> bool:
    """Whether the address is Stripe's own.

    >>> is_stripe("https://api.stripe.com"), is_stripe("http://localhost:4242")
    (True, False)
    """
    host = urlsplit(url).hostname or ""
    return host == "stripe.com" or host.endswith(".stripe.com")


def _written(
    setting: Setting, flag: str | bool | None, environment: Mapping[str, str]
) -> tuple[str, str]:
    """(value as text, where it was given)."""
    if flag is not None and flag is not False:
        return ("yes" if flag is True else flag.strip()), setting.flag
    text = environment.get(setting.env, "").strip()
    return (text, setting.env) if text else (setting.default, setting.flag)


def _in_force(rate: Rate, default: float) -> float | None:
    if rate == "none":
        return None
    return default if rate == "default" else rate


def _rate(text: str, where: str, *, ceiling: float) -> Rate:
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


def _number_of(text: str, where: str, *, unit: str, least: float, most: float) -> float:
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


def _database_url(text: str, where: str) -> str | None:
    if not text:
        return None
    if not text.startswith(("postgres://", "postgresql://")):
        # Not repeated: it may be a password.
        raise Misconfigured(
            f"{where} is not the URL of a Postgres database.",
            hint="Its form: postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
        )
    return text


def _stripe_url(text: str, where: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not the address of an API.",
            hint=f"Give scheme and host, like {STRIPE_URL}.",
        )
    return text.rstrip("/")


def _account(text: str, where: str) -> str | None:
    if text and not text.startswith("acct_"):
        raise Misconfigured(
            f"{where} is {redact(text)!r}: not the id of an account.",
            hint="Ids of connected accounts begin with acct_.",
        )
    return text or None


def _schema(text: str, where: str) -> str:
    reserved = text in ("pinstripe", "information_schema") or text.startswith("pg_")
    if not text or reserved or len(text.encode()) > _SCHEMA_BYTES or "\0" in text:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: no schema of this name can hold the tables.",
            hint="Choose another name of at most 63 bytes; pg_..., information_schema and "
            "pinstripe are taken.",
        )
    return text


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def _count(text: str, where: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise Misconfigured(
            f"{where} is {redact(text)!r}.", hint="It must be a whole number above zero."
        )
    return int(text)


def _one_of(text: str, where: str, *, allowed: Collection[str]) -> str:
    if text.lower() not in allowed:
        raise Misconfigured(
            f"{where} is {redact(text)!r}.", hint=f"It must be one of: {', '.join(allowed)}."
        )
    return text.lower()


def _switch(text: str, where: str) -> bool:
    if text.lower() in ("", "0", "no", "off", "false"):
        return False
    return bool(_one_of(text, where, allowed=("1", "yes", "on", "true")))


def _unknown_table(name: str, known: Collection[str]) -> Misconfigured:
    near = get_close_matches(name, known, n=3, cutoff=0.5) or [t for t in known if name in t][:3]
    return Misconfigured(
        f"There is no table {redact(name)!r}.",
        hint=(f"Did you mean {' or '.join(near)}? " if near else "")
        + "`pinstripe schema tables` lists all.",
    )
