"""Objects that have no id: the balance, settings of the account, a customer's cash balance.

Made from the catalog's types on first reading and kept as changed after that.
"""

from __future__ import annotations

import msgspec

from pinstripe_simulator.money import amount_of
from pinstripe_simulator.routes import Routes
from pinstripe_simulator.shape import Scope, sample
from pinstripe_simulator.table import StripeObject


class Singletons:
    """By type and owner ("" is the account itself)."""

    def __init__(self, routes: Routes, *, livemode: bool) -> None:
        self._routes = routes
        self._livemode = livemode
        self._kept: dict[tuple[str, str], bytes] = {}

    def read(self, type_name: str, owner: str) -> StripeObject:
        kept = self._kept.get((type_name, owner))
        if kept is not None:
            found: StripeObject = msgspec.json.decode(kept)
            return found
        return self._make(type_name, owner)

    def write(self, type_name: str, owner: str, changed: StripeObject) -> None:
        self._kept[type_name, owner] = msgspec.json.encode(changed)

    def _make(self, type_name: str, owner: str) -> StripeObject:
        kind = self._routes.objects[type_name]
        scope = Scope(known=(), references=(), lists=(), livemode=self._livemode)
        made = _filled(sample(kind, 2, scope), len(self._kept))
        if not isinstance(made, dict):
            raise TypeError(type_name)
        if "customer" in made:
            made["customer"] = owner
        if type_name == "balance":
            money = [{"amount": 123_456_789, "currency": "usd", "source_types": {"card": 1}}]
            made |= {"available": money, "pending": money, "livemode": self._livemode}
        return made


def _filled(value: object, index: int) -> object:
    """A sample whose holes have no object to be filled from."""
    if isinstance(value, dict):
        return {k: _filled(v, index) for k, v in value.items()}
    if isinstance(value, list):
        return [_filled(v, index) for v in value]
    if isinstance(value, str) and value.startswith("\x01"):
        return amount_of(index)
    return value.replace("\x03", "x") if isinstance(value, str) else value
