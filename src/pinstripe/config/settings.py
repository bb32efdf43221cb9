"""The table of settings: the one place that names them.

Flags, environment variables and the reference page are generated from it. `config` parses and checks the
values. A name here is the name of a field of `Config`.
"""

from __future__ import annotations

from dataclasses import dataclass

STRIPE_URL = "https://api.stripe.com"


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table. `default` is written as a user would write it; "" is none."""

    name: str
    env: str
    default: str
    unit: str
    help: str
    switch: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        """
        >>> Setting("data_dir", "", "", "", "").flag
        '--data-dir'
        """
        return "--" + self.name.replace("_", "-")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "api_key",
        "STRIPE_API_KEY",
        "",
        "key",
        "The account's secret or restricted key (sk_..., rk_...). Better in the environment than as a "
        "flag: other users of the machine can see flags.",
        secret=True,
    ),
    Setting(
        "database_url",
        "DATABASE_URL",
        "",
        "URL",
        "Postgres to write to, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE. Without it "
        "Pinstripe runs a Postgres of its own in the data directory.",
        secret=True,
    ),
    Setting("stripe_url", "STRIPE_API_BASE", STRIPE_URL, "URL", "Where Stripe's API is."),
    Setting(
        "stripe_account",
        "STRIPE_ACCOUNT",
        "",
        "id",
        "A connected account (acct_...) to sync instead of the key's own: sent as Stripe-Account.",
    ),
    Setting("schema", "PINSTRIPE_SCHEMA", "stripe", "name", "The Postgres schema of the tables."),
    Setting(
        "tables",
        "PINSTRIPE_TABLES",
        "",
        "names",
        "Tables to sync, separated by commas; all by default. A leading - leaves a table out, "
        "* stands for any letters: charge,issuing_* or -event. `pinstripe schema tables` lists them.",
    ),
    Setting(
        "rate_limit",
        "PINSTRIPE_RATE_LIMIT",
        "default",
        "requests/s",
        "Requests a second to the account, up to 100. By default half of what Stripe allows: 50 with "
        "a live key, 12.5 with a test key. none: no limit, for simulators only.",
    ),
    Setting(
        "endpoint_rate_limit",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT",
        "default",
        "requests/s",
        "Requests a second to each endpoint, up to 25. By default 12.5, half of what Stripe allows.",
    ),
    Setting(
        "poll_interval",
        "PINSTRIPE_POLL_INTERVAL",
        "0.5",
        "seconds",
        "How often the event log is looked at while following.",
    ),
    Setting(
        "event_window",
        "PINSTRIPE_EVENT_WINDOW",
        "600",
        "seconds",
        "How far back the event log is read again, for events that show up late.",
    ),
    Setting(
        "hold_poll_rate",
        "PINSTRIPE_HOLD_POLL_RATE",
        "",
        "",
        "Keep the poll interval even where it would use up the read allowance of a live account.",
        switch=True,
    ),
    Setting(
        "changes",
        "PINSTRIPE_CHANGES",
        "",
        "",
        "Keep the change feed: every change of a row, with columns before and after, in "
        "pinstripe.change.",
        switch=True,
    ),
    Setting(
        "change_days",
        "PINSTRIPE_CHANGE_DAYS",
        "7",
        "days",
        "How long entries of the change feed are kept.",
    ),
    Setting(
        "data_dir",
        "PINSTRIPE_DATA_DIR",
        ".pinstripe",
        "directory",
        "Where Pinstripe's own Postgres keeps its data, if there is no database URL, and where secret.key "
        "is.",
    ),
    Setting(
        "demo_scale",
        "PINSTRIPE_DEMO_SCALE",
        "20000",
        "objects",
        "About how many objects the demo account has (`pinstripe run` without a key).",
    ),
    Setting(
        "host",
        "PINSTRIPE_HOST",
        "127.0.0.1",
        "address",
        "Where the gateway listens. Beyond this machine only with an admin token.",
    ),
    Setting("port", "PINSTRIPE_PORT", "8377", "port", "The gateway's port; 0 takes a free one."),
    Setting(
        "public_url",
        "PINSTRIPE_PUBLIC_URL",
        "",
        "URL",
        "Where others reach the gateway, if not at its host and port: shown in pages and used for "
        "webhook endpoints.",
    ),
    Setting(
        "admin_token",
        "PINSTRIPE_ADMIN_TOKEN",
        "",
        "token",
        "Lets its bearer use the console and the API. Without one the gateway listens on this machine "
        "only and asks for none.",
        secret=True,
    ),
    Setting(
        "reader_url",
        "PINSTRIPE_READER_URL",
        "",
        "URL",
        "The database as a role that may only read: the console's SQL box uses it. Without it Pinstripe "
        "makes such a role when the box is first used, which needs CREATEROLE.",
        secret=True,
    ),
    Setting(
        "wait_token",
        "PINSTRIPE_WAIT_TOKEN",
        "",
        "token",
        "Lets its bearer wait, and nothing else. The account's own Stripe key does so too.",
        secret=True,
    ),
    Setting(
        "wait_settle",
        "PINSTRIPE_WAIT_SETTLE",
        "0.25",
        "seconds",
        "How long a plain wait lets Stripe's event log settle before it looks: events may show up a "
        "little later than the change they tell of.",
    ),
    Setting(
        "webhook_secret",
        "PINSTRIPE_WEBHOOK_SECRET",
        "",
        "secrets",
        "The signing secret of the webhook endpoint (whsec_...); several, separated by commas, while "
        "one replaces another.",
        secret=True,
    ),
    Setting(
        "webhook_tolerance",
        "PINSTRIPE_WEBHOOK_TOLERANCE",
        "300",
        "seconds",
        "How old the signature of a webhook may be.",
    ),
    Setting(
        "secret_key",
        "PINSTRIPE_SECRET_KEY",
        "",
        "keys",
        "What the keys of stored syncs are encrypted with: 32 bytes in base64; several, separated by "
        "commas, while the first replaces the others. By default the file secret.key in the data "
        "directory, made when it is first needed.",
        secret=True,
    ),
    Setting(
        "mirror_patience",
        "PINSTRIPE_MIRROR_PATIENCE",
        "2",
        "seconds",
        "How long the proxy holds Stripe's answer back for Postgres to take it, at most. After that it "
        "passes it on, and mirrors it later.",
    ),
    Setting(
        "proxy_body_limit",
        "PINSTRIPE_PROXY_BODY_LIMIT",
        "32",
        "MB",
        "The largest request body that the proxy passes on.",
    ),
    Setting(
        "log_level",
        "PINSTRIPE_LOG",
        "warning",
        "level",
        "debug, info, warning or error, to stderr.",
    ),
    Setting("log_json", "PINSTRIPE_LOG_JSON", "", "", "Log lines as JSON.", switch=True),
    Setting(
        "debug",
        "PINSTRIPE_DEBUG",
        "",
        "",
        "Show the traceback of an unexpected error.",
        switch=True,
    ),
)
