"""Drops or hashes personal data of a row before it is written. Pure.

    Personal(policy, hash_key).clean(table, row)

It works on rows, the one form in which everything reaches the database: of lists, events, previews and
proxied responses. A dropped value is null, as if Stripe had none. A hashed text is `hash_` and the first
128 bits of its HMAC-SHA256: equal texts are equal, so they join and count, and without the key none can
be guessed. What is not a text (the parts of a date of birth) cannot be hashed, and is dropped instead.

Inside of JSON, names and types of objects decide, at any depth. A value without changes is returned as it
is, and rows of tables that hold nothing personal cost one look-up.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

import msgspec

from pinstripe.catalog.model import field_at, object_types
from pinstripe.catalog.personal import UNREVIEWED, Action, Policy, is_free_text, is_whole, kind_at
from pinstripe.catalog.tables import LOGS, Column, Table

Value = Any

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode
_HASHED = re.compile(r"hash_[0-9a-f]{32}")
# Ids as Stripe makes them (seen in recorded answers): `ch_`, a mode or none, 14 characters or more.
_STRIPE_ID = re.compile(r"[a-z]{2,12}(?:_test|_live)?_[A-Za-z0-9]{14,64}")
_EVENT = "event"
_PAYLOAD = ("data", "object")


@dataclass(frozen=True, slots=True)
class _Step:
    """What to do with one column. `inside`: its JSON is searched; else all of the value goes."""

    at: int
    column: Column
    action: Action
    inside: bool = False


class Personal:
    """Applies one policy. `hash_key`: 32 bytes, for a policy that hashes."""

    def __init__(self, policy: Policy, hash_key: bytes = b"") -> None:
        self.policy = policy
        self._hash_key = hash_key
        self._plans: dict[str, tuple[Table, Sequence[_Step]]] = {}

    @property
    def fingerprint(self) -> str:
        """Tells one key from another, and nothing else of it."""
        return hmac.digest(self._hash_key, b"fingerprint", "sha256").hex()[:16]

    def clean(self, table: Table, row: list[Value]) -> None:
        """Drop and hash in a row that is about to be written: JSON as text, `_extra` behind the columns."""
        plan = self._plan(table)
        payload: Value = None
        if table.object_type == _EVENT:
            # Where the user has retyped the column it stands in `_extra`.
            payload = _decoded(next((row[s.at] for s in plan if s.column.path == _PAYLOAD), None))
        for step in plan:
            value = row[step.at]
            if value is None:
                continue
            if step.column.read != "json":
                row[step.at] = self._apply(step.action, value)
                continue
            old = _decode(value)
            new = self._json(table, step, old, payload)
            if new is not old:
                row[step.at] = None if new is None else _encode(new).decode()
        extra = row[len(table.columns)]
        if extra is not None:
            kept = self._extra(table, _decode(extra))
            row[len(table.columns)] = _encode(kept).decode() if kept else None

    def clean_columns(self, table: Table, values: Mapping[str, Value]) -> dict[str, Value]:
        """The columns in `values`, decoded, that change, with their new value. `_extra` too."""
        changed: dict[str, Value] = {}
        for step in self._plan(table):
            name = step.column.name
            old = values.get(name)
            if old is None:
                continue
            if step.column.read == "json":
                new = self._json(table, step, old, values.get("data_object"))
            else:
                new = self._apply(step.action, old)
            if new != old:
                changed[name] = new
        extra = values.get("_extra")
        if isinstance(extra, dict):
            kept = self._extra(table, extra) or None
            if kept != extra:
                changed["_extra"] = kept
        return changed

    def hashed(self, text: str) -> str:
        """The hash of a text; of one that is a hash already, itself."""
        if _HASHED.fullmatch(text):
            return text
        digest = hmac.digest(self._hash_key, text.encode("utf-8", "surrogatepass"), "sha256")
        return f"hash_{digest.hex()[:32]}"

    def _plan(self, table: Table) -> Sequence[_Step]:
        planned = self._plans.get(table.name)
        # The database may have fewer columns than the catalog, and another one of ours others.
        if planned is None or planned[0] is not table:
            steps = (self._step(table, at, column) for at, column in enumerate(table.columns))
            planned = self._plans[table.name] = table, [s for s in steps if s is not None]
        return planned[1]

    def _step(self, table: Table, at: int, column: Column) -> _Step | None:
        path, name = column.place, table.object_type
        if not path or column.read in ("id", "ids", "object", "parent", "deleted"):
            return None
        if name == _EVENT and path[0] == "data":
            whole = self.policy.by_place.get((name, path))
            return _Step(at, column, whole or "keep", inside=whole is None)
        action = self.policy.action(name, path)
        found = kind_at(name, path)
        is_named = (name, path) in self.policy.by_place
        # All of what stands in an address or in a date of birth goes, not the texts alone.
        goes_whole = is_named or (found is not None and found[1] < len(path))
        if column.read == "json":
            searched = not is_named and (found is None or found[0] == UNREVIEWED)
            if is_whole(path[-1]) and searched:
                return None
            return (
                _Step(at, column, action, inside=searched) if searched or action != "keep" else None
            )
        if action == "keep":
            return None
        if column.read not in ("text", "texts"):
            return _Step(at, column, "drop") if goes_whole else None
        known = field_at(object_types()[name].fields, path)
        is_fixed = known is not None and not is_free_text(known)
        return _Step(at, column, action) if goes_whole or not is_fixed else None

    def _json(self, table: Table, step: _Step, value: Value, payload: Value) -> Value:
        if not step.inside:
            return self._apply(step.action, value)
        if table.object_type == _EVENT:
            # What was before has fields of the object that the event carries, and not its type.
            name = payload.get("object") if type(payload) is dict else None
            return self._walk(value, name if type(name) is str else "", ())
        return self._walk(value, table.object_type, step.column.path)

    def _extra(self, table: Table, extra: dict[str, Value]) -> dict[str, Value]:
        """Fields beside the columns; what is dropped leaves no key."""
        name = "" if table.name in LOGS else table.object_type  # By names alone: see `_json`.
        kept = {k: self._field(k, v, name, ()) for k, v in extra.items()}
        return {key: value for key, value in kept.items() if value is not None}

    def _walk(self, value: Value, name: str, path: tuple[str, ...]) -> Value:
        """`value`, which stands at `path` of an object of type `name`, searched at any depth."""
        if type(value) is list:
            items = [self._walk(item, name, path) for item in value]
            return items if any(map(is_not, items, value)) else value
        if type(value) is str:
            return self._unreviewed(value) if kind_at(name, path or ("",)) else value
        if type(value) is not dict:
            return value
        own = value.get("object")
        if type(own) is str and own in object_types():
            name, path = own, ()
        new = {key: self._field(key, item, name, path) for key, item in value.items()}
        return new if any(new[key] is not value[key] for key in value) else value

    def _field(self, key: str, value: Value, name: str, above: tuple[str, ...]) -> Value:
        kind = type(value)
        if value is None or kind is bool or kind is int or kind is float:
            return value
        path = (*above, key)
        placed = self.policy.by_place.get((name, path))
        if placed is not None:
            return self._apply(placed, value)
        found = kind_at(name, path)
        if found is not None and found[0] != UNREVIEWED:
            return self._apply(self.policy.by_kind[found[0]], value)
        if kind is str:
            return value if found is None else self._unreviewed(value)
        return value if is_whole(key) else self._walk(value, name, path)

    def _unreviewed(self, text: str) -> Value:
        """A text of which only the place is known. Ids stay: they are references to rows."""
        if _STRIPE_ID.fullmatch(text):
            return text
        return self._apply(self.policy.by_kind[UNREVIEWED], text)

    def _apply(self, action: Action, value: Value) -> Value:
        if action == "keep":
            return value
        if action == "drop":
            return None
        if type(value) is str:
            return self.hashed(value)
        if type(value) is list:
            return [self._apply(action, item) for item in value]
        if type(value) is dict:
            return {key: self._apply(action, item) for key, item in value.items()}
        return None


def _decoded(value: Value) -> Value:
    return _decode(value) if value is not None else None


ERASER = Personal(Policy.everything("drop"))
"""What an erasure leaves of a row."""

_TEXT_IN_JSON = re.compile(r'"([^"\\]{3,255})"')


def is_shared(column: Column) -> bool:
    """Whether rows of many customers may have the same id there: a tax id of the account's own on each
    invoice, a file that is evidence in many disputes.
    """
    return column.references == ("tax_id",) or (
        column.references == ("file",) and len(column.path) > 1
    )


class Erased:
    """The objects whose personal data was erased, by id: no later snapshot brings it back.

    `version` counts the erasures of the schema; 0 is none. `unnoted`: what is new of theirs, uncommitted.
    """

    def __init__(self) -> None:
        self.version = 0
        self.ids: set[str] = set()
        self.unnoted: set[tuple[str, str]] = set()

    def forget(self, table: Table, key: str, row: list[Value]) -> bool:
        """Erase a row that belongs to one of the objects; return whether it tells of more of theirs."""
        if not self.ids or not self._belongs(table, key, row):
            return False
        ERASER.clean(table, row)
        theirs = [
            (column.references[0], value)
            for column, value in zip(table.columns, row, strict=False)
            if len(column.references) == 1 and column.references[0] in OWNED and type(value) is str
        ]
        new = {place for place in ((table.name, key), *theirs) if place[1] not in self.ids}
        self.ids |= {place[1] for place in new}
        self.unnoted |= new
        return bool(new)

    def _belongs(self, table: Table, key: str, row: list[Value]) -> bool:
        if table.name in NOBODYS:
            return False
        if key in self.ids:
            return True
        width = len(table.columns)
        if table.name in LOGS:
            # Whole objects stand in it.
            texts = (v for v in row[: width + 1] if type(v) is str)
            return any(not self.ids.isdisjoint(_TEXT_IN_JSON.findall(text)) for text in texts)
        return any(
            (not self.ids.isdisjoint(v) if type(v) is list else type(v) is str and v in self.ids)
            and not is_shared(column)
            for column, v in zip(table.columns, row, strict=False)
        )


OWNED = frozenset(
    {
        *("bank_account", "card", "charge", "checkout_session", "confirmation_token", "discount"),
        *("dispute", "file", "identity_verification_report", "identity_verification_session"),
        *("invoice", "mandate", "payment_attempt_record", "payment_intent", "payment_method"),
        *("payment_record", "quote", "refund", "setup_attempt", "setup_intent", "source"),
        *("subscription", "subscription_schedule"),
    }
)
"""Tables whose rows belong to one customer, so that what a customer's row refers to there is theirs too:
the card of a single payment names no customer itself. Not `tax_id`: those of customers name them."""

NOBODYS = frozenset(
    {"account", "application", "person", "v2_core_account", "v2_core_account_person"}
)
"""Tables whose rows are no customer's, whatever they refer to."""
