"""Which lists under a parent Stripe refuses: those of single parents, or all of them.

A missing permission concerns every parent alike. Of anything else (a product that the account has not
enabled, a parent of another kind) a few refusals without one answer end the stream. Where others are
answered, the refused ones are left out, counted, and told in Stripe's words.
"""

from __future__ import annotations

from pinstripe.errors import NotPermitted, Refused

_ENOUGH = 5
"""Refusals without an answer that speak for all parents."""


class LeftOut:
    """The refusals of one stream."""

    def __init__(self, told: str = "", is_answered: bool = False) -> None:
        """`told`: what an earlier run said of those that it left out; `is_answered`: it had answers."""
        self.is_answered = is_answered
        self.count = 0
        self._told = told
        self._first = ""
        self._error: Refused | None = None
        self._for_all = False
        self._waiting: list[str] = []

    def refused(self, parent: str, error: Refused) -> None:
        """Stripe refuses the list of this parent."""
        self.count += 1
        self._for_all = isinstance(error, NotPermitted) and bool(error.permission)
        if self._error is None or self._for_all:
            self._first, self._error = parent, error
        self._waiting.append(parent)

    def ends(self, *, nothing_more: bool) -> Refused | None:
        """The refusal that speaks for all parents, if there is one."""
        of_all = nothing_more or len(self._waiting) >= _ENOUGH
        return self._error if self._for_all or (of_all and not self.is_answered) else None

    def to_pass(self) -> list[str]:
        """The parents to go on without, each once; none as long as nothing has been answered."""
        if not self.is_answered:
            return []
        passed, self._waiting = self._waiting, []
        return passed

    def words(self, parent_table: str) -> str:
        """What to say of the gap; "" if there is none."""
        if self._error is None or not self.is_answered:
            return self._told
        return f"Without {self.count} of {parent_table}, the first {self._first}: {self._error.message}"
