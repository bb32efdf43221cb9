"""The settings of one process as a value, read by the table in `settings` and checked.

    config = read_config({"schema": "billing"}, os.environ)

What is given as a flag wins over the environment, and that over the default. Nothing is read at import
and no `.env` file ever: a `Config` is a value, made once by the command line and handed down. Which
tables exist and of what mode a key is, is for others to know. What a value may be: `setting_rules`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal, TypedDict
from urllib.parse import urlsplit

from pinstripe import setting_rules as rules
from pinstripe.errors import Misconfigured, redact
from pinstripe.setting_rules import Rate
from pinstripe.settings import SETTINGS, STRIPE_URL, Setting

__all__ = ["ACCOUNT_CEILING", "ENDPOINT_CEILING", "Config", "Rate", "is_stripe", "read_config"]

ACCOUNT_CEILING = 100.0
ENDPOINT_CEILING = 25.0
"""Requests a second that Stripe allows a live account, and each endpoint of any account
(https://docs.stripe.com/rate-limits)."""
_TEST_ACCOUNT_CEILING = 25.0

_LEVELS = ("debug", "info", "warning", "error")


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
    host: str = "127.0.0.1"
    port: int = 8377
    public_url: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    reader_url: str | None = field(default=None, repr=False)
    wait_token: str | None = field(default=None, repr=False)
    wait_settle: float = 0.25
    webhook_secret: tuple[str, ...] = field(default=(), repr=False)
    webhook_tolerance: float = 300.0
    secret_key: tuple[str, ...] = field(default=(), repr=False)
    mirror_patience: float = 2.0
    proxy_body_limit: int = 32
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
        database_url=rules.database_url(*values["database_url"]),
        stripe_url=rules.stripe_url(*values["stripe_url"]),
        stripe_account=rules.account(*values["stripe_account"]),
        schema=rules.schema(*values["schema"]),
        tables=rules.words(values["tables"][0]),
        rate_limit=rules.rate(*values["rate_limit"], ceiling=ACCOUNT_CEILING),
        endpoint_rate_limit=rules.rate(*values["endpoint_rate_limit"], ceiling=ENDPOINT_CEILING),
        data_dir=Path(values["data_dir"][0]).expanduser(),
        poll_interval=rules.number_of(
            *values["poll_interval"], unit="seconds", least=0.1, most=3600.0
        ),
        event_window=rules.number_of(
            *values["event_window"], unit="seconds", least=10.0, most=86400.0
        ),
        hold_poll_rate=rules.switch(*values["hold_poll_rate"]),
        changes=rules.switch(*values["changes"]),
        change_days=rules.number_of(*values["change_days"], unit="days", least=0.01, most=3650.0),
        demo_scale=rules.count(*values["demo_scale"]),
        **_of_the_gateway(values),
        log_level=rules.one_of(*values["log_level"], allowed=_LEVELS),
        log_json=rules.switch(*values["log_json"]),
        debug=rules.switch(*values["debug"]),
    )
    if "none" in (config.rate_limit, config.endpoint_rate_limit) and is_stripe(config.stripe_url):
        raise Misconfigured(
            "Without a rate limit only a simulator may be asked, not Stripe.",
            hint="Give a number of requests a second, at most 100 (--endpoint-rate-limit: 25).",
        )
    return config


class _Gateway(TypedDict):
    """The settings of `pinstripe serve` alone."""

    host: str
    port: int
    public_url: str | None
    admin_token: str | None
    reader_url: str | None
    wait_token: str | None
    wait_settle: float
    webhook_secret: tuple[str, ...]
    webhook_tolerance: float
    secret_key: tuple[str, ...]
    mirror_patience: float
    proxy_body_limit: int


def _of_the_gateway(values: Mapping[str, tuple[str, str]]) -> _Gateway:
    seconds = partial(rules.number_of, unit="seconds")
    return _Gateway(
        host=rules.host(*values["host"]),
        port=rules.whole_number(*values["port"], least=0, most=65535),
        public_url=rules.public_url(*values["public_url"]),
        admin_token=rules.token(*values["admin_token"]),
        reader_url=rules.database_url(*values["reader_url"]),
        wait_token=rules.token(*values["wait_token"]),
        wait_settle=seconds(*values["wait_settle"], least=0.0, most=60.0),
        webhook_secret=rules.webhook_secrets(*values["webhook_secret"]),
        webhook_tolerance=seconds(*values["webhook_tolerance"], least=1.0, most=86400.0),
        secret_key=rules.secret_keys(*values["secret_key"]),
        mirror_patience=seconds(*values["mirror_patience"], least=0.0, most=60.0),
        proxy_body_limit=rules.whole_number(
            *values["proxy_body_limit"], unit=" MB", least=1, most=4096
        ),
    )


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


def _unknown_table(name: str, known: Collection[str]) -> Misconfigured:
    near = get_close_matches(name, known, n=3, cutoff=0.5) or [t for t in known if name in t][:3]
    return Misconfigured(
        f"There is no table {redact(name)!r}.",
        hint=(f"Did you mean {' or '.join(near)}? " if near else "")
        + "`pinstripe schema tables` lists all.",
    )
