"""Names a scope: what one account of a platform is to the bookkeeping and to every statement.

    scope_of("stripe", "acct_1")   ->  "stripe@acct_1"
    relations("stripe@acct_1")     ->  "stripe_of_account": the views that show the rows of one account
    relations("shop")              ->  "shop": the tables of a sync that has its schema for itself

A platform keeps all its accounts in one schema, keyed `(_account_id, id)`. The bookkeeping names one of
them by its scope where it names a sync by its schema, and statements read and write the account's rows
through views (`ddl.create_view`). So every statement works for both, and its text is the same for all
accounts of a platform. Which account a session works for is the setting `SETTING`; without it, the views
raise an error or have no rows (docs/decisions/033-platforms.md).
"""

from __future__ import annotations

ACCOUNT = "_account_id"
"""The first column of a platform's tables, and of every key."""

SETTING = "pinstripe.account"
"""The setting of a session that says for which account it works."""

CURRENT = f"pg_catalog.current_setting('{SETTING}')"
"""The account of the session, in SQL. An error where the session has never set one."""

SCOPES_OF = (
    "(SELECT s.schema FROM pinstripe.sync s WHERE s.schema = $1 OR s.platform_id ="
    " (SELECT p.id FROM pinstripe.platform p WHERE p.schema = $1))"
)
"""The schema $1 and, if it is a platform's, the scopes of its accounts, in SQL."""

_AT = "@"
_VIEWS = "_of_account"
_PARTITIONS = "_partitions"
NAME_BYTES = 63 - len(_VIEWS)
"""The longest name of a platform's schema: the names made of it have to fit into Postgres's 63 bytes."""


def scope_of(schema: str, account_id: str) -> str:
    """Return the scope of one account of the platform in `schema`."""
    return f"{schema}{_AT}{account_id}"


def schema_of(scope: str) -> str:
    """Return the schema of the tables.

    >>> schema_of("stripe@acct_1"), schema_of("stripe")
    ('stripe', 'stripe')
    """
    return scope.partition(_AT)[0]


def account_of(scope: str) -> str:
    """Return the account of a platform that the scope names; "" for a sync with its own schema."""
    return scope.partition(_AT)[2]


def relations(scope: str) -> str:
    """Return the schema in which statements find the rows of a scope: its tables, or its views."""
    return views_of(schema_of(scope)) if account_of(scope) else scope


def views_of(schema: str) -> str:
    """Return the schema of the views that show a platform's rows by account."""
    return schema + _VIEWS


def partitions_of(schema: str) -> str:
    """Return the schema of the partitions of a platform's tables."""
    return schema + _PARTITIONS
