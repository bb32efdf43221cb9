"""What is handed to the mirror: rows, when they were true, and the stream whose position they move.

Values and one protocol; nothing here writes. `Progress` is what a list or the event reader is to the
mirror: it says what its cursor will be once some steps are durable, and hears that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pinstripe.rows.extract import Found
from pinstripe.store.changes import Cause
from pinstripe.store.cursors import Checkpoint


@dataclass(frozen=True, slots=True)
class Truth:
    """The interval on Stripe's clock, Unix seconds, in which a snapshot was taken: [lo, hi).

    `cause`: the event or request that made Stripe change the object, for the change feed.
    """

    lo: float
    hi: float
    cause: Cause | None = None


Part = tuple[Found, Truth]
"""Rows and when they were true."""

Versions = Mapping[tuple[str, str], datetime]
"""Versions (`_synced_at`) of rows by table and key."""


class Progress(Protocol):
    """How far one stream is written; the mirror saves it in the transaction that makes it true."""

    def checkpoint(self, steps: Sequence[object]) -> Checkpoint:
        """The position once these steps are durable too, in the order given. Changes nothing."""

    def commit(self, steps: Sequence[object]) -> None:
        """These steps are durable."""
