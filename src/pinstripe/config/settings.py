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
        "The account's secret or restricted key (sk_..., rk_...). Prefer the environment to the "
        "flag: other users of the machine can see flags.",
        secret=True,
    ),
    Setting(
        "database_url",
        "DATABASE_URL",
        "",
        "URL",
        "Postgres to write to, as postgresql://USER:PASSWORD@HOST:PORT/DATABASE. Without it, "
        "Pinstripe runs its own Postgres in the data directory.",
        secret=True,
    ),
    Setting("stripe_url", "STRIPE_API_BASE", STRIPE_URL, "URL", "Base URL of Stripe's API."),
    Setting(
        "stripe_account",
        "STRIPE_ACCOUNT",
        "",
        "id",
        "A connected account (acct_...) to sync instead of the key's own; sent as Stripe-Account.",
    ),
    Setting("schema", "PINSTRIPE_SCHEMA", "stripe", "name", "Postgres schema for the tables."),
    Setting(
        "tables",
        "PINSTRIPE_TABLES",
        "",
        "names",
        "Tables to sync, comma-separated; all by default. Prefix with - to exclude, * matches "
        "anything: charge,issuing_* or -event. `pinstripe schema tables` lists them.",
    ),
    Setting(
        "since",
        "PINSTRIPE_SINCE",
        "",
        "dates",
        "Copy only objects created since this date: 2026-01-31, or by table, comma-separated: "
        "2025-01-01,event=2026-06-01. Older ones come only where rows refer to them.",
    ),
    Setting(
        "deep",
        "PINSTRIPE_DEEP",
        "",
        "",
        "Read lists that Stripe has only by parent (a customer's balance transactions) under every "
        "parent before the first copy counts as complete, instead of only where a row shows a sign.",
        switch=True,
    ),
    Setting(
        "personal_data",
        "PINSTRIPE_PERSONAL_DATA",
        "keep",
        "actions",
        "What to do with names, emails, addresses and other personal data: keep, hash or drop. Add "
        "exceptions by kind, comma-separated: drop,keep:text,hash:email.",
    ),
    Setting(
        "columns",
        "PINSTRIPE_COLUMNS",
        "",
        "columns",
        "Columns to treat otherwise, comma-separated: -customer.email leaves one out, "
        "hash:customer.phone hashes it, keep:charge.metadata keeps it. * matches anything.",
    ),
    Setting(
        "hash_key",
        "PINSTRIPE_HASH_KEY",
        "",
        "key",
        "Key of the hashes: 32 bytes in base64. By default, the file hash.key in the data directory, "
        "created on first use.",
        secret=True,
    ),
    Setting(
        "erase_deleted_after",
        "PINSTRIPE_ERASE_DELETED_AFTER",
        "",
        "days",
        "Erase the personal data of a customer this many days after their deletion. Off by default.",
    ),
    Setting(
        "foreign_keys",
        "PINSTRIPE_FOREIGN_KEYS",
        "",
        "",
        "Declare references between the tables as foreign keys that are not enforced, for tools "
        "that read them. Needs Postgres 18; older servers get none.",
        switch=True,
    ),
    Setting(
        "compat",
        "PINSTRIPE_COMPAT",
        "",
        "names",
        "Views in the shape of other products' Stripe tables, comma-separated: fivetran, sigma, supabase. "
        "Each gets a schema of its own, such as stripe_fivetran.",
    ),
    Setting(
        "rate_limit",
        "PINSTRIPE_RATE_LIMIT",
        "default",
        "requests/s",
        "Requests per second to the account, up to 100. Default: half of Stripe's limit, 50 with"
        " a live key, 12.5 with a test key. none: no limit, for simulators only.",
    ),
    Setting(
        "endpoint_rate_limit",
        "PINSTRIPE_ENDPOINT_RATE_LIMIT",
        "default",
        "requests/s",
        "Requests per second to each endpoint, up to 25. Default: 12.5, half of Stripe's limit.",
    ),
    Setting(
        "poll_interval",
        "PINSTRIPE_POLL_INTERVAL",
        "0.5",
        "seconds",
        "How often to poll the event log.",
    ),
    Setting(
        "event_window",
        "PINSTRIPE_EVENT_WINDOW",
        "600",
        "seconds",
        "How far back to re-read the event log for late events.",
    ),
    Setting(
        "replica_lag",
        "PINSTRIPE_REPLICA_LAG",
        "3",
        "seconds",
        "How old the state that Stripe shows in a response may be. A response that contradicts a "
        "newer row is asked for again after this time.",
    ),
    Setting(
        "clock_margin",
        "PINSTRIPE_CLOCK_MARGIN",
        "3",
        "seconds",
        "How far the Date of a response and the created of an event may be apart, either way.",
    ),
    Setting(
        "hold_poll_rate",
        "PINSTRIPE_HOLD_POLL_RATE",
        "",
        "",
        "Keep the poll interval even if it would exhaust the read quota of a live account.",
        switch=True,
    ),
    Setting(
        "verify_every",
        "PINSTRIPE_VERIFY_EVERY",
        "7d",
        "time",
        "How often to verify the copy while it is followed: hours (24h), days (7d) or off. Skipped, and "
        "said in status, where it would take more than half of the read allowance.",
    ),
    Setting(
        "changes",
        "PINSTRIPE_CHANGES",
        "",
        "",
        "Record the change feed: every row change, with old and new values, in pinstripe.change.",
        switch=True,
    ),
    Setting(
        "change_days", "PINSTRIPE_CHANGE_DAYS", "7", "days", "How long to keep change feed entries."
    ),
    Setting(
        "event_days",
        "PINSTRIPE_EVENT_DAYS",
        "0",
        "days",
        "How long to keep rows of the table `event`: 0 for ever, or at least 31.",
    ),
    Setting(
        "no_metrics",
        "PINSTRIPE_NO_METRICS",
        "",
        "",
        "Do not create the schema `metrics`, whose views compute revenue, churn and payouts.",
        switch=True,
    ),
    Setting(
        "data_dir",
        "PINSTRIPE_DATA_DIR",
        ".pinstripe",
        "directory",
        "Directory for secret.key, and for Pinstripe's own Postgres if no database URL is set.",
    ),
    Setting(
        "demo_scale",
        "PINSTRIPE_DEMO_SCALE",
        "20000",
        "objects",
        "Approximate number of objects in the demo account (`pinstripe run` without a key).",
    ),
    Setting(
        "host",
        "PINSTRIPE_HOST",
        "127.0.0.1",
        "address",
        "Address the gateway listens on. Non-local addresses require an admin token.",
    ),
    Setting("port", "PINSTRIPE_PORT", "8377", "port", "The gateway's port; 0 picks a free one."),
    Setting(
        "public_url",
        "PINSTRIPE_PUBLIC_URL",
        "",
        "URL",
        "Public URL of the gateway, if it is not its host and port. Used in the console and for "
        "webhook endpoints.",
    ),
    Setting(
        "admin_token",
        "PINSTRIPE_ADMIN_TOKEN",
        "",
        "token",
        "Token for the console and the API. Without it, the gateway listens on this machine only"
        " and requires no login.",
        secret=True,
    ),
    Setting(
        "reader_url",
        "PINSTRIPE_READER_URL",
        "",
        "URL",
        "Database URL with a read-only role, for the console's SQL page. Without it, Pinstripe "
        "creates such a role on first use, which needs CREATEROLE.",
        secret=True,
    ),
    Setting(
        "wait_token",
        "PINSTRIPE_WAIT_TOKEN",
        "",
        "token",
        "Token that allows waiting and nothing else. The account's own Stripe key works too.",
        secret=True,
    ),
    Setting(
        "wait_settle",
        "PINSTRIPE_WAIT_SETTLE",
        "0.25",
        "seconds",
        "How long a plain wait lets Stripe's event log settle before polling it: events can "
        "appear a little after their change.",
    ),
    Setting(
        "webhook_secret",
        "PINSTRIPE_WEBHOOK_SECRET",
        "",
        "secrets",
        "Signing secret of the webhook endpoint (whsec_...). Comma-separate several while "
        "rotating.",
        secret=True,
    ),
    Setting(
        "webhook_tolerance",
        "PINSTRIPE_WEBHOOK_TOLERANCE",
        "300",
        "seconds",
        "Maximum age of a webhook signature.",
    ),
    Setting(
        "secret_key",
        "PINSTRIPE_SECRET_KEY",
        "",
        "keys",
        "Encryption key for the Stripe keys of stored syncs: 32 bytes in base64. Comma-separate "
        "several while rotating, newest first. By default, the file secret.key in the data "
        "directory, created on first use.",
        secret=True,
    ),
    Setting(
        "mirror_patience",
        "PINSTRIPE_MIRROR_PATIENCE",
        "2",
        "seconds",
        "Longest time the proxy holds Stripe's response until Postgres has stored it. After that"
        " it is forwarded and mirrored later.",
    ),
    Setting(
        "proxy_body_limit",
        "PINSTRIPE_PROXY_BODY_LIMIT",
        "32",
        "MB",
        "Largest request body that the proxy forwards.",
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

SYNC_SETTINGS = (
    *("tables", "since", "deep", "personal_data", "columns", "erase_deleted_after", "verify_every"),
    *("rate_limit", "endpoint_rate_limit", "poll_interval", "event_window", "hold_poll_rate"),
    *("changes", "change_days", "event_days", "foreign_keys", "compat"),
)
"""The settings that each sync has of its own; the others are the service's."""

_NO_PLATFORM = ("poll_interval", "hold_poll_rate", "foreign_keys", "compat")
PLATFORM_SETTINGS = tuple(name for name in SYNC_SETTINGS if name not in _NO_PLATFORM)
"""The settings that each platform has of its own."""
