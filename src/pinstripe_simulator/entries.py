"""Amounts of computed objects, and the balance transactions that they make.

Of each hundred balance transactions `coherence.PATTERN` says which kind of object each came from; both
ways are arithmetic. Charges that failed made none: their entries are Stripe's own fees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy

from pinstripe_simulator import coherence
from pinstripe_simulator.money import amount_of, fee_of
from pinstripe_simulator.relations import Interleaved
from pinstripe_simulator.table import Table
from pinstripe_simulator.template import Filler

_AVAILABLE_AFTER_S = 172_800
_AMOUNT_FROM = {"charge": "payment_intent", "refund": "charge"}
_BY_PREFIX = {"py": "payment", "pyr": "payment_refund"}
_TABLE = "balance_transaction"
_TURN = len(coherence.PATTERN)
_BY_HAND = 8
"""Every eighth payout from the start, beginning with the first, was not automatic."""


def entry_type(category: str, source: str) -> str:
    """The `type` of a balance transaction, which tells payments from charges as the source's id does."""
    return _BY_PREFIX.get(source.partition("_")[0], category)


class Entries:
    """The money of `tables`. `now` gives Unix seconds on Stripe's clock."""

    def __init__(self, tables: Mapping[str, Table], now: Callable[[], int]) -> None:
        self._tables = tables
        self._now = now
        counts = {name: tables[name].base for name in coherence.SOURCES}
        self._links = Interleaved(coherence.PATTERN, counts, tables[_TABLE].base)
        self._last: tuple[int, tuple[str, int] | None] = (-1, None)
        self.paid_out: dict[str, str] = {}
        """Balance transaction -> the automatic payout that paid it out, of those that are not computed."""

    def like(self, tables: Mapping[str, Table], now: Callable[[], int]) -> Entries:
        """The money of the tables of another account that is made alike."""
        made = copy(self)
        made._tables, made._now, made._last, made.paid_out = tables, now, (-1, None), {}
        return made

    @staticmethod
    def fillers() -> Mapping[str, Callable[[Table], Filler[Entries]]]:
        """Holes that hold money or name balance transactions."""
        return {
            "amount": lambda t: lambda e, i, c: b"%d" % e.amount(t, i),
            "entry": lambda t: lambda e, i, c: e._entry(t.name, i),
            "entry-amount": lambda t: lambda e, i, c: b"%d" % e._amount(i),
            "fee": lambda t: lambda e, i, c: b"%d" % fee_of(e._amount(i)),
            "net": lambda t: lambda e, i, c: b"%d" % e._net(i),
            "source": lambda t: lambda e, i, c: e._source_id(i),
            "entry-type": lambda t: lambda e, i, c: b'"%b"' % e._type(i).encode(),
            "entry-category": lambda t: lambda e, i, c: b'"%b"' % e._category(i).encode(),
            "entry-status": lambda t: lambda e, i, c: b'"%b"' % e.status(c).encode(),
            "automatic": lambda t: lambda e, i, c: b"true" if e.is_automatic(i) else b"false",
            "reconciled": lambda t: (
                lambda e, i, c: b'"completed"' if e.is_automatic(i) else b'"not_applicable"'
            ),
        }

    def is_automatic(self, payout: int) -> bool:
        """Of the payouts from the start: the first, a few others, and those without lines are by hand."""
        return payout % _BY_HAND != 0 and payout * _TURN <= self._tables[_TABLE].base

    def lines(self, payout: int) -> list[int]:
        """What an automatic payout from the start paid out: the hundred entries before the hundred of its
        own, but for the payout among them; and its own entry, which Stripe lists too
        (seen in an answer that https://github.com/airbytehq/airbyte/pull/46499 quotes).
        """
        own = self._links.entry("payout", payout)
        paid = range((payout - 1) * _TURN, payout * _TURN)
        lines = [entry for entry in paid if self._category(entry) != "payout"]
        return lines if own is None else [*lines, own]

    def first_unpaid(self) -> int:
        """From this entry on no payout from the start has paid anything out."""
        turns = min(self._tables["payout"].base - 1, self._tables[_TABLE].base // _TURN)
        return max(0, turns) * _TURN

    def amount(self, table: Table, index: int) -> int:
        """A refund has its charge's amount, a charge its payment intent's, a payout what it pays out."""
        if table.name == "payout" and self.is_automatic(index):
            own = self._links.entry("payout", index)
            return sum(self._net(entry) for entry in self.lines(index) if entry != own)
        while (field := _AMOUNT_FROM.get(table.kind.name)) is not None:
            relation, target = table.links[field]
            at = relation.to(index)
            if at is None:
                break
            table, index = self._tables[target], at
        return amount_of(index)

    def of(self, source: str) -> int | None:
        """The balance transaction that the object with that id made, if it is from the start."""
        for name in coherence.SOURCES:
            position = self._tables[name].position(source)
            if position is not None and position < self._tables[name].base:
                return self._links.entry(name, position)
        return None

    def status(self, created: int, available_on: int | None = None) -> str:
        """Turns by itself on the day, and no event tells of it; only a re-list shows it."""
        due = created + _AVAILABLE_AFTER_S if available_on is None else available_on
        return "available" if due <= self._now() else "pending"

    def _entry(self, name: str, index: int) -> bytes:
        at = self._links.entry(name, index)
        return b"null" if at is None else self._tables[_TABLE].quoted(at)

    def _source(self, entry: int) -> tuple[str, int] | None:
        """Table and index of what a balance transaction is for."""
        if self._last[0] == entry:  # Five holes of one object ask this.
            return self._last[1]
        found = self._links.source(entry)
        if found is not None:
            table = self._tables[found[0]]
            if table.sample(table.variant(found[1])).get(_TABLE) is None:
                found = None
        self._last = (entry, found)
        return found

    def _category(self, entry: int) -> str:
        found = self._source(entry)
        return found[0] if found else "stripe_fee"

    def _type(self, entry: int) -> str:
        found = self._source(entry)
        if found is None:
            return "stripe_fee"
        return entry_type(found[0], self._tables[found[0]].id_at(found[1]))

    def _amount(self, entry: int) -> int:
        found = self._source(entry)
        if found is None:
            return -amount_of(entry) % 500 - 500
        amount = self.amount(self._tables[found[0]], found[1])
        return amount if found[0] == "charge" else -amount

    def _net(self, entry: int) -> int:
        amount = self._amount(entry)
        return amount - fee_of(amount)

    def _source_id(self, entry: int) -> bytes:
        found = self._source(entry)
        return b"null" if found is None else self._tables[found[0]].quoted(found[1])
