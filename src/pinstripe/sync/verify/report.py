"""What a verification found: one `TableReport` a table, one `Report` in all. Values only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pinstripe.client.api_errors import permission_of
from pinstripe.sync.verify.compare import Difference

TableState = Literal["verified", "partly", "unverified"]
"""`partly`: not every row could be compared; `unverified`: Stripe did not show the table at all."""


@dataclass(slots=True)
class TableReport:
    """One table. All numbers are of rows, but `requests`.

    `listed`: Stripe showed so many. `remaining`: differences that still stand. `repaired`: those that
    do no more. `more`: suspicions beyond what is remembered one by one; they count as differences.
    `moving`: changed while it was looked at, so nothing is said of them. `unlisted`: rows that no list
    shows, of which `unchecked` were not asked for one by one. `partial`: rows that lack what Stripe
    gives on request only, and say so themselves.
    """

    table: str
    state: TableState = "verified"
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
    """All tables. `since`: the second on Stripe's clock at which the look began; `margin_s`: what an
    event of so many seconds before it tells of was changing too, and is left out where it differs.
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
        """Tables of which something that was to be compared was not: rows that were changing, lists that
        failed, what the key may not read, rows that no list shows. Not: what is beyond the sample of
        rows without a list, and what the account does not have.
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

    @property
    def failed(self) -> bool:
        """Something went wrong that was not Stripe's refusal."""
        return any(t.failed for t in self.tables.values())
