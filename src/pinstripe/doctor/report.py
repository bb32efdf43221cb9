"""Results of the doctor, as values for a page, JSON and the exit code.

Nothing here holds a secret: a key is its hint, a URL has no password.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

FindingState = Literal["ok", "note", "warning", "problem"]
ResourceState = Literal[
    "readable",
    "not_permitted",  # 403: the key lacks a permission
    "not_enabled",  # the account does not use the product
    "refused",  # Stripe said no for another reason
    "failed",  # no answer of Stripe's
    "not_tried",  # it hangs under a parent, and there is none to ask for
]
AbilityName = Literal["events", "previews", "webhooks_read", "webhooks_write"]
AbilityState = Literal["yes", "no", "unknown"]

# What ends a sync before it begins stands first: exit codes as in `errors`.
_WORST_FIRST = (2, 3, 5, 4)


class Finding(msgspec.Struct, frozen=True):
    """The result of one check. `exit_code` is that of `pinstripe check` if it is a problem."""

    about: str
    state: FindingState
    message: str
    remedy: str = ""
    exit_code: int = 0


class Resource(msgspec.Struct, frozen=True):
    """One path of Stripe's that tables are read from. `message` is Stripe's own where it refused."""

    path: str
    product: str
    tables: tuple[str, ...]
    state: ResourceState
    permission: str = ""
    """As Stripe names it (`plan_read`, or its title where it has no such name), "" where it names none."""
    message: str = ""
    remedy: str = ""
    permission_title: str = ""
    """What the dashboard calls it: "Prices Read"."""
    edit_url: str = ""
    """Where the key is edited in the dashboard, if Stripe gives a link."""


class Ability(msgspec.Struct, frozen=True):
    """A capability beyond reading a list. `how` is the evidence."""

    name: AbilityName
    state: AbilityState
    how: str
    permission: str = ""
    remedy: str = ""
    permission_title: str = ""
    edit_url: str = ""


class Network(msgspec.Struct, frozen=True):
    """The way to Stripe. `tls` is the protocol's version, "" where the way is not encrypted or unseen."""

    base_url: str
    proxy: str = ""
    tls: str = ""
    certificate_issuer: str = ""


class Recipe(msgspec.Struct, frozen=True):
    """The least that a restricted key needs, by product, and what this key lacks of it.

    `read` maps a product to its resources; `write` likewise, for managing webhooks only.
    """

    create_at: str
    edit_at: str
    read: dict[str, tuple[str, ...]]
    write: dict[str, tuple[str, ...]]
    lacking: tuple[str, ...]
    """Permissions as Stripe names them."""
    lacking_unnamed: tuple[str, ...]
    """Paths that the key may not read, and whose permission Stripe does not name."""


class KeyReport(msgspec.Struct, frozen=True):
    """What a key is and may do. `clock_ahead_s`: Stripe's clock less ours, known to `clock_within_s`."""

    key: str
    kind: Literal["standard", "restricted"]
    mode: Literal["live", "test"]
    account_id: str | None
    account_name: str | None
    api_version: str
    default_api_version: str | None
    clock_ahead_s: float | None
    clock_within_s: float | None
    network: Network
    requests: int
    resources: tuple[Resource, ...]
    abilities: tuple[Ability, ...]
    findings: tuple[Finding, ...]
    recipe: Recipe


class DatabaseReport(msgspec.Struct, frozen=True):
    """Facts about a database and what our user can do there. None if it could not be reached."""

    place: str
    """Host, port and database."""
    schema: str
    version: str | None
    user: str | None
    clock_ahead_s: float | None
    free_connections: int | None
    findings: tuple[Finding, ...]


def worst(findings: Iterable[Finding]) -> int:
    """The exit code of the gravest problem; 0 without one.

    >>> worst([Finding("a", "problem", "", exit_code=4), Finding("b", "problem", "", exit_code=3)])
    3
    """
    codes = {f.exit_code for f in findings if f.state == "problem"}
    return next((code for code in _WORST_FIRST if code in codes), max(codes, default=0))
