"""The result of a verification: one `TableReport` a table, one `Report` in all. Values only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pinstripe.client.api_errors import permission_of
from pinstripe.sync.verify.compare import Difference

ProofState = Literal["verified", "partly", "unverified"]
"""`partly`: not every row could be compared; `unverified`: Stripe did not list the table at all."""


@dataclass(slots=True)
class TableReport:
    """One table. All numbers are of rows, except `requests`.

    `listed`: Stripe listed so many. `remaining`: differences that persist. `repaired`: those that do not.
    `more`: suspicions beyond those remembered one by one; they count as differences. `moving`: changed
    during verification, so not judged. `unlisted`: rows that no list returns; `unchecked` of them were not
    fetched. `partial`: rows that lack what Stripe returns on request only, and are marked so.
    """

    table: str
    state: ProofState = "verified"
    reason: str = ""
    remedy: str = ""
    failed: bool = False
    rows: int = 0
    listed: int = 0
    requests: int = 0
    found: Counter[str] = field(default_factory=Counter)
    remaining: list[Difference] = field(default_factory=list)
    repaired: list[Difference] = field(default_factory=list)
    more: int = 0
    moving: int = 0
    partial: int = 0
    unlisted: int = 0
    unchecked: int = 0
    oldest: datetime | None = None
    newest: datetime | None = None

    @property
    def differences(self) -> int:
        return len(self.remaining) + self.more

    def mark_partial(self, reason: str, remedy: str = "") -> None:
        """Not all of it is proven. The first reason stays."""
        if self.state == "verified":
            self.state = "partly"
        self.reason, self.remedy = self.reason or reason, self.remedy or remedy


@dataclass(slots=True)
class Report:
    """All tables. `since`: the second on Stripe's clock at which the run began; `margin_s`: rows that an
    event of so many seconds before it concerns count as changing too, and are left out if they
    differ.
    """

    schema: str
    since: float
    started_at: datetime
    finished_at: datetime
    tables: dict[str, TableReport]
    requests: int
    digest: str
    margin_s: int = 0

    @property
    def left_out(self) -> int:
        """Rows that differed and are not judged: they were changing."""
        return sum(t.moving for t in self.tables.values())

    @property
    def unproven(self) -> list[TableReport]:
        """Tables that were not compared in full: rows that were changing, lists that failed, what the
        key may not read, rows that no list returns. Not: rows beyond the sample, and what the account
        does not have.
        """
        return [
            t
            for t in self.tables.values()
            if t.moving
            or t.failed
            or (t.state == "unverified" and t.rows)
            or (t.state != "verified" and permission_of(t.reason))
        ]

    @property
    def differences(self) -> int:
        return sum(t.differences for t in self.tables.values())

    @property
    def repaired(self) -> int:
        return sum(len(t.repaired) for t in self.tables.values())
