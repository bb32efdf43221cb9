"""The settings of one process as a value, read by the table in `settings` and checked.

    config = read_config({"schema": "billing"}, os.environ)

A flag wins over the environment, and that over the default. Nothing is read at import, and never a `.env`
file: the command line makes one `Config` and hands it down. There is one function for each kind of value
(`whole_number("8377", "--port", least=0, most=65535)`); its argument `where` is the flag or the variable
that an error names. No error repeats a value that may be a secret. Which tables exist is checked elsewhere.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode
from binascii import Error as NotBase64
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict
from urllib.parse import quote, urlsplit

from pinstripe.config.settings import SETTINGS, STRIPE_URL, Setting
from pinstripe.errors import Misconfigured, redact

Rate: TypeAlias = float | Literal["default", "none"]
"""Requests a second. `default` is half of what Stripe allows for the mode of the key."""

_SCHEMA_BYTES = 63
"""Postgres truncates longer names silently."""

_TOKEN_CHARACTERS = 16
"""Shorter ones can be guessed."""

_SECRET_KEY_BYTES = 32
"""Bytes of a key; what encrypts is derived from it (`encryption`)."""


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


COMPAT = ("sigma", "fivetran", "supabase")
"""Products whose tables `--compat` makes views of."""


def compat(text: str, where: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    unknown = [n for n in names if n not in COMPAT]
    if unknown:
        raise Misconfigured(
            f"{where} names {redact(unknown[0])!r}, for which there are no views.",
            hint=f"There are views for {', '.join(COMPAT[:-1])} and {COMPAT[-1]}.",
        )
    return names


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


def event_days(text: str, where: str) -> float:
    """Days; 0 is for ever. Fewer than Stripe keeps them itself would delete what its list still shows."""
    return 0.0 if text == "0" else number_of(text, where, unit="days", least=31.0, most=36500.0)


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
    if not text or reserved or len(text.encode()) > _SCHEMA_BYTES or {*"\0@"} & {*text}:
        raise Misconfigured(
            f"{where} is {redact(text)!r}: no schema of this name can hold the tables.",
            hint="Choose another name of at most 63 bytes, without an @; pg_..., information_schema and "
            "pinstripe are taken.",
        )
    return text


def words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def dates(text: str, where: str) -> tuple[tuple[str, int], ...]:
    """(table, Unix second) of each; the table is "" for a date that holds for all.

    >>> dates("2025-01-01,event=2025-06-01", "--since")
    (('', 1735689600), ('event', 1748736000))
    """
    found: dict[str, int] = {}
    for word in words(text):
        table, _, day = word.rpartition("=")
        try:
            moment = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
        except ValueError:
            raise Misconfigured(
                f"{where} has {redact(word)!r}: a date is written as 2026-01-31.",
                hint="One date for all tables, or table=date, comma-separated. Days begin at 0:00 UTC.",
            ) from None
        if moment > datetime.now(UTC):
            raise Misconfigured(
                f"{where} has {redact(word)!r}: a date in the future, from which there is nothing.",
                hint="Give a date of the past, or none for all objects. Days begin at 0:00 UTC.",
            )
        found[table] = int(moment.timestamp())
    return tuple(found.items())


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
    """Several, while one replaces another."""
    secrets = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not all(secret.startswith("whsec_") for secret in secrets):
        raise Misconfigured(
            f"{where} holds something that is not the signing secret of a webhook endpoint.",
            hint="They begin with whsec_; Stripe's dashboard shows them at the endpoint. Separate "
            "several by commas.",
        )
    return secrets


def secret_keys(text: str, where: str) -> tuple[str, ...]:
    """Keys of 32 bytes in base64. The first is the newest."""
    keys = tuple(word.strip() for word in text.split(",") if word.strip())
    return tuple(secret_key(key, where) for key in keys)


def secret_key(text: str, where: str) -> str:
    """One such key, in either alphabet of base64."""
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


def _every(text: str, where: str) -> timedelta | None:
    if text.lower() in ("off", "never", "no"):
        return None
    found = re.fullmatch(r"([0-9]{1,5})([hd])", text.lower())
    if found is None or int(found[1]) == 0:
        raise Misconfigured(
            f"{where} is {redact(text)!r}.", hint="Write hours or days, like 24h or 7d, or off."
        )
    number = int(found[1])
    return timedelta(hours=number) if found[2] == "h" else timedelta(days=number)


def _days(text: str, where: str) -> float | None:
    return number_of(text, where, unit="days", least=0.0, most=3650.0) if text else None


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
    if text.lower() in OFF:
        return False
    return bool(one_of(text, where, allowed=("1", "yes", "on", "true")))


ACCOUNT_CEILING = 100.0
ENDPOINT_CEILING = 25.0
"""Requests a second that Stripe allows a live account, and each endpoint of any account
(https://docs.stripe.com/rate-limits)."""

_TEST_ACCOUNT_CEILING = 25.0
_LEVELS = ("debug", "info", "warning", "error")
OFF = ("", "0", "no", "off", "false")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process, each checked alone. Its repr shows no secret."""

    api_key: str | None = field(default=None, repr=False)
    database_url: str | None = field(default=None, repr=False)
    stripe_url: str = STRIPE_URL
    stripe_account: str | None = None
    schema: str = "stripe"
    tables: tuple[str, ...] = ()
    since: tuple[tuple[str, int], ...] = ()
    """(table, Unix second) from which objects are copied; the table is "" for all others."""
    deep: bool = False
    personal_data: tuple[str, ...] = ("keep",)
    columns: tuple[str, ...] = ()
    hash_key: str | None = field(default=None, repr=False)
    erase_deleted_after: float | None = None
    verify_every: timedelta | None = timedelta(days=7)
    rate_limit: Rate = "default"
    endpoint_rate_limit: Rate = "default"
    data_dir: Path = Path(".pinstripe")
    poll_interval: float = 0.5
    event_window: float = 600.0
    replica_lag: float = 3.0
    clock_margin: float = 3.0
    hold_poll_rate: bool = False
    changes: bool = False
    foreign_keys: bool = False
    compat: tuple[str, ...] = ()
    change_days: float = 7.0
    event_days: float = 0.0
    no_metrics: bool = False
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

    def since_by_table(self, known: Collection[str]) -> Mapping[str, int]:
        """Table -> Unix second from which it is copied; only tables that have one.

        Raises Misconfigured, naming what is like an unknown table.
        """
        chosen = dict(self.since)
        of_all = chosen.pop("", None)
        for name in chosen.keys() - set(known):
            raise _unknown_table(name, known)
        return {**(dict.fromkeys(known, of_all) if of_all is not None else {}), **chosen}


def read_config(given: Mapping[str, str | bool | None], environment: Mapping[str, str]) -> Config:
    """The settings in force: `given` by name (None: not given), else `environment`, else defaults.

    Raises Misconfigured naming the flag or variable. An empty variable counts as not set.
    """
    values = {s.name: _written(s, given.get(s.name), environment) for s in SETTINGS}
    config = Config(
        api_key=values["api_key"][0] or None,
        database_url=database_url(*values["database_url"]),
        stripe_url=stripe_url(*values["stripe_url"]),
        stripe_account=account(*values["stripe_account"]),
        schema=schema(*values["schema"]),
        tables=words(values["tables"][0]),
        since=dates(*values["since"]),
        deep=switch(*values["deep"]),
        personal_data=words(values["personal_data"][0]),
        columns=words(values["columns"][0]),
        hash_key=secret_key(*values["hash_key"]) if values["hash_key"][0] else None,
        verify_every=_every(*values["verify_every"]),
        erase_deleted_after=_days(*values["erase_deleted_after"]),
        rate_limit=rate(*values["rate_limit"], ceiling=ACCOUNT_CEILING),
        endpoint_rate_limit=rate(*values["endpoint_rate_limit"], ceiling=ENDPOINT_CEILING),
        data_dir=Path(values["data_dir"][0]).expanduser(),
        poll_interval=number_of(*values["poll_interval"], unit="seconds", least=0.1, most=3600.0),
        event_window=number_of(*values["event_window"], unit="seconds", least=10.0, most=86400.0),
        replica_lag=number_of(*values["replica_lag"], unit="seconds", least=0.0, most=300.0),
        clock_margin=number_of(*values["clock_margin"], unit="seconds", least=0.0, most=300.0),
        hold_poll_rate=switch(*values["hold_poll_rate"]),
        changes=switch(*values["changes"]),
        foreign_keys=switch(*values["foreign_keys"]),
        compat=compat(*values["compat"]),
        change_days=number_of(*values["change_days"], unit="days", least=0.01, most=3650.0),
        event_days=event_days(*values["event_days"]),
        no_metrics=switch(*values["no_metrics"]),
        demo_scale=count(*values["demo_scale"]),
        **_of_the_gateway(values),
        log_level=one_of(*values["log_level"], allowed=_LEVELS),
        log_json=switch(*values["log_json"]),
        debug=switch(*values["debug"]),
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
    seconds = partial(number_of, unit="seconds")
    return _Gateway(
        host=host(*values["host"]),
        port=whole_number(*values["port"], least=0, most=65535),
        public_url=public_url(*values["public_url"]),
        admin_token=token(*values["admin_token"]),
        reader_url=database_url(*values["reader_url"]),
        wait_token=token(*values["wait_token"]),
        wait_settle=seconds(*values["wait_settle"], least=0.0, most=60.0),
        webhook_secret=webhook_secrets(*values["webhook_secret"]),
        webhook_tolerance=seconds(*values["webhook_tolerance"], least=1.0, most=86400.0),
        secret_key=secret_keys(*values["secret_key"]),
        mirror_patience=seconds(*values["mirror_patience"], least=0.0, most=60.0),
        proxy_body_limit=whole_number(*values["proxy_body_limit"], unit=" MB", least=1, most=4096),
    )


def checked_settings(
    settings: Mapping[str, str], allowed: Collection[str], owner: str
) -> dict[str, str]:
    """Return the settings of a stored sync or platform without empty ones.

    Raises Misconfigured for one that is not `allowed`; `owner` names what it would be of: "A sync".
    """
    for name in settings:
        if name not in allowed:
            hint = f"It may have: {', '.join(allowed)}."
            raise Misconfigured(f"{owner} has no setting {redact(name)!r}.", hint=hint)
    return {name: text for name, text in settings.items() if text}


def stored_config(words: Mapping[str, str | bool | None], *, base: Config, url: str) -> Config:
    """Return the settings of a stored sync or platform: its own `words`, and those of the process.

    `url`: the database that it is stored in.
    """
    return replace(
        read_config(words, {}),
        database_url=url,
        data_dir=base.data_dir,
        hash_key=base.hash_key,
        replica_lag=base.replica_lag,
        clock_margin=base.clock_margin,
        no_metrics=base.no_metrics,
        log_level=base.log_level,
        log_json=base.log_json,
        debug=base.debug,
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
