"""What each SQLSTATE of Postgres means for us, one by one: its scope and its remedy.

The codes are those of https://www.postgresql.org/docs/current/errcodes-appendix.html. Their first two
digits decide nothing: 53100 (the disk is full) and 53300 (too many connections) share them, as do 42501
(a right is missing) and 42704 (the server does not have this parameter). A code that is not here is
trouble of one table (`UNKNOWN`), never a reason to end the process. `translate` makes errors of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pinstripe.errors import Drifted, Misconfigured, PinstripeError, Scope, Unreachable, Unwritable


@dataclass(frozen=True, slots=True)
class Remedy:
    """The error to raise, how far its cause reaches (see `errors.Scope`), and what to do."""

    kind: type[PinstripeError]
    scope: Scope
    hint: str


POOLER_HINT = (
    "This looks like a connection pooler in transaction or statement mode: connect to Postgres "
    "directly, or to the pooler in session mode."
)
WRITABLE_HINT = "Connect to the primary, and see default_transaction_read_only."
_OURS = "This may be a mistake of Pinstripe's: report it with this code."
_BACK = "The work is tried again when the server is back."
_RETYPED = "Give the column the type that `pinstripe schema ddl` shows."
_TRIGGER = "See the trigger or function of your own on this table, and mend or drop it."

UNKNOWN = Remedy(
    Drifted, "table", "See the server's log for this code, and triggers and extensions of your own."
)

_GROUPS: tuple[tuple[type[PinstripeError], Scope, tuple[tuple[str, str], ...]], ...] = (
    # Transient: the same statement is retried.
    (
        Unreachable,
        "passing",
        (
            (_BACK, "08000 08001 08003 08004 08006 08007"),
            (
                "It was rolled back in favour of another transaction; Pinstripe retries.",
                "40000 40001 40002 40003 40P01 72000",
            ),
            (
                "Raise max_connections, or the limit of the user or database, or close other connections.",
                "53300",
            ),
            (
                "Another session holds a lock; see pg_locks and pg_blocking_pids(). Pinstripe retries.",
                "55P03 55006",
            ),
            (
                "The statement was cancelled, by a user or by statement_timeout; Pinstripe retries.",
                "57014",
            ),
            (
                "The server is starting, shutting down or has ended the session; Pinstripe retries.",
                "57000 57P01 57P02 57P03",
            ),
            (
                "A time limit of the server's ended the session: idle_in_transaction_session_timeout, "
                "transaction_timeout or idle_session_timeout. Set it to 0 for Pinstripe's user.",
                "25P03 25P04 57P05",
            ),
        ),
    ),
    # The address or the login is wrong: nothing works until an operator corrects it.
    (
        Misconfigured,
        "server",
        (
            ("Correct user and password in DATABASE_URL.", "28P01"),
            (
                "See the server's pg_hba.conf, and user, password and sslmode in DATABASE_URL.",
                "28000",
            ),
            ("Create it (CREATE DATABASE ...), or correct dbname in DATABASE_URL.", "3D000"),
            ("The database was dropped: create it anew.", "57P04"),
            ("Correct the role that DATABASE_URL or ALTER ROLE ... SET names.", "0P000"),
            (POOLER_HINT, "08P01 25P01 26000 34000 3B001 42P05"),
        ),
    ),
    # The server takes no writes at all until an operator acts.
    (
        Unwritable,
        "server",
        (
            (WRITABLE_HINT, "25006"),
            ("Make room on the server's disk.", "53100"),
            (
                "If it is shared memory, raise max_locks_per_transaction and restart the server: "
                "partitions take many locks. Else give the server more memory.",
                "53200",
            ),
            ("Raise temp_file_limit, or what the message names.", "53400"),
            ("The server lacks a resource; see its log.", "53000"),
            (
                "The server's disk or files are in trouble; see its log.",
                "58000 58030 58P01 58P02 58P03",
            ),
            ("See the server's configuration and its log.", "F0000 F0001"),
        ),
    ),
    # One table, until an operator acts.
    (
        Unwritable,
        "table",
        (
            (
                "Give the user of DATABASE_URL the right, see the how-to on your own Postgres.",
                "42501",
            ),
        ),
    ),
    (
        Drifted,
        "table",
        (
            (
                "A table or column of ours is gone: Pinstripe makes it again at its next start "
                "(the migration).",
                "42P01 42703",
            ),
            (
                "The schema is gone: Pinstripe makes it again at its next start (the migration).",
                "3F000 42P15",
            ),
            (_RETYPED, "42804 42846 42P18 42P21 42P22"),
            (
                "A function, operator or type is missing here: restore it, or see the trigger or "
                "extension that names it.",
                "42704 42725 42883",
            ),
            (
                "Something else stands where Pinstripe wants a table or an index of its own: move or "
                "rename it.",
                "42701 42710 42723 42809 42P06 42P07 42P16 42P17",
            ),
            (
                "The primary key that Pinstripe made is missing: put it back, ADD PRIMARY KEY (id).",
                "42P10",
            ),
            ("Make the column an ordinary one: it was made GENERATED.", "428C9"),
            ("Something of your own depends on it (a view, say): drop that first.", "2B000 2BP01"),
            (
                "Make it an ordinary table again: it is a view, or in a state that takes no writes.",
                "55000",
            ),
            (
                "The server or an extension cannot do this to the table; make it an ordinary one.",
                "0A000 55P04",
            ),
            ("The server does not let this parameter be changed: see its value.", "55P02"),
            ("A sequence has reached its end: ALTER SEQUENCE ... NO MAXVALUE.", "2200H"),
            ("Drop columns of your own: a table has too many.", "54011"),
            (
                "The server found data of this table damaged: restore it, or drop the table, and "
                "Pinstripe copies it anew.",
                "XX001",
            ),
            ("The server found an index damaged: REINDEX TABLE.", "XX002"),
            (
                "The table is a foreign one, and its server refuses: see the foreign data wrapper.",
                "HV000 HV001 HV002 HV004 HV005 HV006 HV007 HV008 HV009 HV00A HV00B HV00C HV00D HV00J HV00K "
                "HV00L HV00M HV00N HV00P HV00Q HV00R HV010 HV014 HV021 HV024 HV090 HV091",
            ),
            (
                _OURS,
                "03000 0B000 0F000 0F001 0L000 0LP01 0Z000 0Z002 24000 25000 25001 25002 25003 25004 25005 "
                "25007 25008 25P02 2D000 3B000 42000 42601 42602 42611 42622 42702 42712 42803 42830 42939 "
                "42P02 42P03 42P04 42P08 42P09 42P11 42P12 42P13 42P14 42P19 42P20 54023",
            ),
        ),
    ),
    # One row: the others of its batch are written.
    (
        Drifted,
        "row",
        (
            ("A unique index of your own refuses the row: drop it.", "23505"),
            (
                "A foreign key of your own refuses the row. On a synced table: drop it; references may "
                "come before what they name. On a table of yours: add ON DELETE CASCADE or ON DELETE SET "
                "NULL.",
                "23503 23001",
            ),
            ("Drop the NOT NULL of the column: Stripe sends nulls there.", "23502"),
            (
                "A constraint that Pinstripe did not make stands on the table: drop it.",
                "23000 23514 23P01 44000",
            ),
            (
                "The row is larger than Postgres allows, or a value too long for an index: drop indexes "
                "of your own on long texts.",
                "54000 54001",
            ),
            (
                "The database's encoding lacks a character: create a database WITH ENCODING 'UTF8' "
                "TEMPLATE template0.",
                "22021 22P05",
            ),
            (
                f"The column cannot hold a value of Stripe's. {_RETYPED}",
                "22000 22001 22002 22003 22004 22005 22007 22008 22009 22015 22018 22022 22026 22030 "
                "22032 22P02 22P03 22P04",
            ),
            (
                f"Evaluating an expression on the row failed. {_TRIGGER}",
                "10608 22006 2200B 2200C 2200D 2200F 2200G 2200L 2200M 2200N 2200S 2200T 22010 22011 "
                "22012 22013 22014 22016 22019 22023 2201B 2201E 2201F 2201G 2201W 2201X 22024 22025 "
                "22027 2202E 2202G 2202H 22031 22033 22034 22035 22036 22037 22038 22039 2203A 2203B "
                "2203C 2203D 2203E 2203F 2203G 22P01 22P06",
            ),
            (
                _TRIGGER,
                "02000 02001 09000 20000 21000 27000 2F000 2F002 2F003 2F004 2F005 38000 38001 38002 38003 "
                "38004 39000 39001 39004 39P01 39P02 39P03 P0000 P0001 P0002 P0003 P0004",
            ),
            # "invalid memory alloc request size 1073741824" has this code: a row of a gigabyte.
            ("The server failed over this row; see its log, and the row's largest value.", "XX000"),
        ),
    ),
)

REMEDIES: dict[str, Remedy] = {
    code: Remedy(kind, scope, hint)
    for kind, scope, remedies in _GROUPS
    for hint, codes in remedies
    for code in codes.split()
}
"""By SQLSTATE."""

RESTRICTED = Remedy(
    Drifted,
    "row",
    "A row-level security policy of your own refuses the row: drop it, or give our user BYPASSRLS.",
)
"""42501 of a policy, which speaks of one row; that of a missing right speaks of the table."""

ALTERED = Remedy(Unreachable, "passing", "A table was altered meanwhile; Pinstripe retries.")
"""0A000 of a prepared statement whose result has other columns now."""

ENDED = Remedy(
    Unreachable,
    "passing",
    "A pooler in front of Postgres seems to refuse or end sessions: see its limits of clients and servers, "
    "and the user in DATABASE_URL. Pinstripe retries.",
)
"""08P01 and XX000 that end the session: the codes that poolers give to whatever they say themselves
(pgbouncer's send_pooler_error; Supavisor's "MaxClientsInSessionMode")."""

_CORRECT = "Correct or remove it: in DATABASE_URL (options), PGOPTIONS, or ALTER ROLE ... SET."

AT_START: dict[str, Remedy] = {
    "22023": Remedy(Misconfigured, "server", f"A parameter has a wrong value. {_CORRECT}"),
    "42501": Remedy(Misconfigured, "server", f"Our user may not do this. {_CORRECT}"),
    "42601": Remedy(Misconfigured, "server", f"`options` cannot be read. {_CORRECT}"),
    "42602": Remedy(Misconfigured, "server", f"A parameter has a wrong name. {_CORRECT}"),
    "42704": Remedy(
        Misconfigured, "server", f"The server does not have this parameter. {_CORRECT}"
    ),
    "55P02": Remedy(Misconfigured, "server", f"Sessions cannot set this parameter. {_CORRECT}"),
    "08P01": Remedy(
        Misconfigured,
        "server",
        "A pooler in front of Postgres refuses this parameter at the start of a session: add it to "
        "the pooler's ignore_startup_parameters, or connect to Postgres directly.",
    ),
}
"""What a code means while a session starts: nothing but the address and its parameters is at work then."""
