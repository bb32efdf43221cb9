"""The table of settings as flags of a command.

    @with_settings("schema", "data_dir")
    def status(config: Config, *, exact: bool = False) -> None: ...

The command gets a `Config`; the command line shows its own parameters and those of the table, each with
the name of its environment variable.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Annotated, get_type_hints

from cyclopts import Group, Parameter

from pinstripe.config.config import read_config
from pinstripe.config.settings import SETTINGS, Setting

_GROUP = Group("Settings", sort_key=10)

ACCOUNT = ("api_key", "stripe_url", "stripe_account", "rate_limit", "endpoint_rate_limit", "tables")
PERSONAL = ("personal_data", "columns", "hash_key")
DATABASE = ("database_url", "schema", "data_dir")
LIVE = (
    "since",
    "deep",
    "poll_interval",
    "event_window",
    "replica_lag",
    "clock_margin",
    "hold_poll_rate",
    "changes",
    "change_days",
    "event_days",
    "erase_deleted_after",
    "verify_every",
    "no_metrics",
    "foreign_keys",
    "compat",
)
GATEWAY = (
    "host",
    "port",
    "public_url",
    "admin_token",
    "reader_url",
    "wait_token",
    "wait_settle",
    "webhook_secret",
    "webhook_tolerance",
    "secret_key",
    "mirror_patience",
    "proxy_body_limit",
)
OUTPUT = ("log_level", "log_json", "debug")

_MAY_BEGIN_WITH_A_HYPHEN = frozenset({"tables", "columns", "admin_token", "wait_token"})
"""`--tables '-event'` leaves a table out; a token is made of any characters."""


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a function of a `Config` into one of the settings `names`, for cyclopts."""
    chosen = [s for s in SETTINGS if s.name in (*names, *OUTPUT)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        _, *own = inspect.signature(command).parameters.values()
        parameters = [p.replace(annotation=hints[p.name]) for p in own]
        parameters += [_parameter(s) for s in chosen]

        def run(*words: object, **values: object) -> None:
            given = {s.name: _flag(values.pop(s.name, None)) for s in chosen}
            command(read_config(given, os.environ), *words, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        # cyclopts reads this instead of the signature above.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def _flag(value: object) -> str | bool | None:
    return value if isinstance(value, (str, bool)) else None


def _parameter(setting: Setting) -> inspect.Parameter:
    about = [f"default: {setting.default}"] if setting.default else []
    about.append(f"env: {setting.env}")
    shown = Parameter(
        name=setting.flag,
        help=f"{setting.help} [{', '.join(about)}]",
        group=_GROUP,
        negative="",
        show_default=False,
        allow_leading_hyphen=setting.name in _MAY_BEGIN_WITH_A_HYPHEN,
    )
    kind: object = bool if setting.switch else str | None
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if setting.switch else None,
        annotation=Annotated[kind, shown],
    )
