"""Members of sets: what belongs to an object, added and removed at will.

A set is every list inside an object (items of a subscription, lines of an invoice) and every list that
an owner's address has (persons of an account), and the entitlements of a customer, which name no owner.
Stripe tells of a member by its own event where there is one, else by the owner's `updated`, else not
at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pinstripe_simulator.account import Account
from pinstripe_simulator.events import Cause, difference
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.lists import shared_out
from pinstripe_simulator.objects import INSIDE
from pinstripe_simulator.replies import StripeError
from pinstripe_simulator.table import StripeObject, Table

_ENTITLEMENT = "entitlements.active_entitlement"
_SUMMARY = "entitlements.active_entitlement_summary"
_CREDIT = "customer_balance_transaction"
# Not deletable by a client, but taken away: lines of a draft, entitlements of a subscription that ended.
_GO = frozenset({"line_item", _ENTITLEMENT})


@dataclass(frozen=True)
class MemberKind:
    """Objects in `child` that belong to one in `owner`: by `back`, a field of theirs, or ("") by place."""

    owner: Table
    child: Table
    back: str

    @property
    def name(self) -> str:
        return f"{self.owner.kind.name}/{self.child.kind.name}"

    @property
    def may_go(self) -> bool:
        """Whether members can be taken out."""
        return self.child.kind.deletable or self.child.kind.name in _GO


class Members:
    """Changes the sets of one account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._world = account.world
        self.kinds = {kind.name: kind for kind in _kinds(account)}

    def of(self, kind: MemberKind, position: int) -> list[int]:
        """Positions of the members, newest first."""
        if kind.child.kind.name == _ENTITLEMENT:
            found = shared_out(kind.child, kind.owner, position)
            return [p for p in found if not kind.child.gone(p)]
        return self._world.objects.children(kind.owner, position, kind.child, kind.back)

    def told(self, kind: MemberKind) -> bool:
        """Whether events tell of every change of such a set."""
        by_owner = bool(self._owner_event(kind))
        return by_owner or bool(
            self._event(kind, "created") and (self._event(kind, "deleted") or not kind.may_go)
        )

    def change(
        self,
        kind: MemberKind,
        position: int,
        *,
        add: int = 0,
        remove: Sequence[int] = (),
        cause: Cause,
        silent: bool = False,
    ) -> list[str]:
        """Take out what is at the positions `remove` of the child's table, and add new members; the ids
        of those. StripeError if the owner is gone or such members never leave.
        """
        if kind.owner.gone(position) or (remove and not kind.may_go):
            raise StripeError(400, f"{kind.name} cannot be changed so")
        ledger = Ledger(self._world, self._account.events, cause)
        before = self._world.objects.load(kind.owner, position)
        told = False
        for at in remove:
            gone = self._world.objects.load(kind.child, at)
            event = self._event(kind, "deleted")
            ledger.delete(gone, event="" if silent else event)
            told = told or bool(event)
        made = [self._make(kind, before, ledger, silent=silent) for _ in range(add)]
        told = told or bool(made and self._event(kind, "created"))
        if not silent and not told:
            self._tell_owner(kind, position, before, ledger)
        return made

    def _make(self, kind: MemberKind, owner: StripeObject, ledger: Ledger, *, silent: bool) -> str:
        id, child = str(owner["id"]), kind.child
        fields = self._world.routes.fields[child.kind.name]
        values: StripeObject = {
            f: id
            for f, (_, target) in child.links.items()
            if target == kind.owner.name and f in fields
        }
        if kind.owner.kind.name in fields:
            values[kind.owner.kind.name] = id
        if kind.back:
            values[kind.back] = id
        event = "" if silent else self._event(kind, "created")
        by_place = not kind.back
        made = ledger.make(
            child.kind.name,
            values,
            parent=id if by_place else "",
            under=kind.owner.kind.name if by_place else "",
            event=event,
        )
        return str(made["id"])

    def _event(self, kind: MemberKind, verb: str) -> str:
        """The event that tells of the member itself; "" if Stripe has none."""
        verbs = ("created", "paid", "updated") if verb == "created" else (verb,)
        names = (self._account.events.name(kind.child.kind.name, v) for v in verbs)
        return next(filter(None, names), "")

    def _tell_owner(
        self, kind: MemberKind, position: int, before: StripeObject, ledger: Ledger
    ) -> None:
        if kind.child.kind.name == _ENTITLEMENT:
            ledger.tell(f"{_SUMMARY}.updated", self._summary(kind, position))
            return
        if kind.child.kind.name == _CREDIT:
            ledger.change(before, {"balance": int(before.get("balance") or 0) - 100}, event="")
        after = self._world.objects.load(kind.owner, position)
        event = self._owner_event(kind)
        if event.endswith(".updated"):
            ledger.tell(event, after, previous=difference(before, after))
        elif event:  # Where there is none, nobody is told (items of a value list).
            ledger.tell(event, after)

    def _owner_event(self, kind: MemberKind) -> str:
        """The owner's update, or else an event of it that is no end; "" if there is none."""
        if kind.child.kind.name == _ENTITLEMENT:
            return f"{_SUMMARY}.updated"
        name = kind.owner.kind.name
        found = (e.name for e in self._account.spec.events if name in e.carries)
        other = next((e for e in found if not e.endswith((".deleted", ".created"))), "")
        return self._account.events.name(name, "updated") or other

    def _summary(self, kind: MemberKind, position: int) -> StripeObject:
        objects, owner = self._world.objects, kind.owner.id_at(position)
        found = self.of(kind, position)
        return {
            "object": _SUMMARY,
            "customer": owner,
            "entitlements": {
                "object": "list",
                "data": [objects.load(kind.child, p) for p in found[:INSIDE]],
                "has_more": len(found) > INSIDE,
                "url": f"/v1/customer/{owner}/entitlements",
            },
            "livemode": self._world.plan.livemode,
        }


def _kinds(account: Account) -> Iterator[MemberKind]:
    """Every set once. Where a type hangs under two kinds of owner (a bank account), each is one."""
    tables = account.world.tables
    shown: set[tuple[str, str]] = set()
    for owner in tables.values():
        for name, back in owner.lists.values():
            shown.add((owner.name, name))
            yield MemberKind(owner, tables[name], back)
    for child in tables.values():
        if child.parent is not None and (child.parent[1], child.name) not in shown:
            yield MemberKind(tables[child.parent[1]], child, "")
    yield MemberKind(tables["customer"], tables[_ENTITLEMENT], "")
