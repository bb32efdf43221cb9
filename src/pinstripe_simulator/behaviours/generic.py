"""Creates, updates, deletes and actions of any type, from the catalog alone.

A parameter that is also a field of the object is taken over (references must exist, metadata is
merged, `""` unsets); an action sets the status that its name implies, if the type knows that
status.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pinstripe.catalog.model import Field, spec
from pinstripe_simulator.answers import Request, singleton
from pinstripe_simulator.beyond_types import ALWAYS_THERE
from pinstripe_simulator.ledger import Ledger
from pinstripe_simulator.params import Params
from pinstripe_simulator.replies import missing, missing_at
from pinstripe_simulator.table import StripeObject

_STATES: Mapping[str, tuple[str, ...]] = {
    "accept": ("accepted",),
    "activate": ("active", "published"),
    "approve": ("approved", "closed"),
    "archive": ("archived", "inactive"),
    "cancel": ("canceled", "cancelled"),
    "cancel_action": ("online",),
    "capture": ("succeeded", "closed"),
    "close": ("closed", "lost"),
    "confirm": ("succeeded",),
    "deactivate": ("inactive", "archived"),
    "decline": ("declined", "closed"),
    "deliver": ("delivered",),
    "disable": ("disabled",),
    "disconnect": ("disconnected",),
    "enable": ("enabled",),
    "expire": ("expired",),
    "fail": ("failed",),
    "finalize": ("open",),
    "mark_uncollectible": ("uncollectible",),
    "post": ("posted",),
    "reactivate": ("active",),
    "redact": ("redacted",),
    "reject": ("rejected",),
    "release": ("released",),
    "resume": ("active",),
    "return": ("returned",),
    "reverse": ("reversed",),
    "submit": ("submitted",),
    "succeed": ("succeeded",),
    "unarchive": ("active",),
    "uninstall": ("uninstalled",),
    "verify": ("verified",),
    "void": ("void", "voided"),
}
_ACTIVE = {"activate": True, "reactivate": True, "archive": False, "deactivate": False}
_VERBS = {
    "canceled": "canceled",
    "cancelled": "canceled",
    "closed": "closed",
    "expired": "expired",
    "void": "voided",
    "voided": "voided",
    "succeeded": "succeeded",
    "reversed": "reversed",
    "failed": "failed",
    "returned": "returned",
    "posted": "posted",
    "accepted": "accepted",
    "released": "released",
    "redacted": "redacted",
}


def perform(request: Request, ledger: Ledger) -> object:
    """The operation by its kind."""
    kind = request.operation.kind
    if kind == "delete":
        return delete(request, ledger)
    if kind == "create" or not request.match.path_values:
        return create(request, ledger)
    world = request.account.world
    type_of = world.routes.objects.get(request.type_name)
    if type_of is None or not type_of.has_id:
        return change_singleton(request, ledger)
    found = target(request, ledger)
    changes = taken_over(ledger, request, found)
    event = "updated"
    if kind == "action":
        action = request.operation.path.rpartition("/")[2]
        changes, event = _acted(request, found, action, changes)
    changed = ledger.change(found, changes)
    if event != "updated":
        ledger.tell(event, changed)
    return changed


def target(request: Request, ledger: Ledger) -> StripeObject:
    """The object that the path names."""
    id = request.match.path_values[-1]
    for type_name in request.operation.returns:
        found = request.account.world.get(type_name, id)
        if found is not None:
            return found
    raise missing_at(request.type_name, id, request.match.place)


def create(
    request: Request, ledger: Ledger, *, event: str = "created", **more: object
) -> StripeObject:
    """A new object of the operation's type; `more` overrides what the parameters say."""
    world = request.account.world
    kind = world.routes.objects.get(request.type_name)
    if kind is None:
        return {}
    if not kind.has_id:
        return change_singleton(request, ledger)
    parent = world.routes.parent(request.operation)
    owner_id = request.match.path_values[0] if parent else ""
    if parent:
        ledger.get(parent, owner_id)
    fields = world.routes.fields[kind.name]
    values = taken_over(ledger, request, {"object": kind.name})
    if parent in fields and owner_id:
        values[parent] = owner_id
    chosen = str(request.params.get("id") or "")
    return ledger.make(
        kind.name, values | more, id=chosen, parent=owner_id, under=parent, event=event
    )


def change_singleton(request: Request, ledger: Ledger) -> StripeObject:
    """Objects without id: taken over and kept per owner."""
    owner = request.match.path_values[0] if request.match.path_values else ""
    found = singleton(request)
    found |= taken_over(ledger, request, found)
    if request.type_name != "account":
        request.account.singletons.write(request.type_name, owner, found)
    return found


def delete(request: Request, ledger: Ledger) -> object:
    if request.operation.returns:
        return ledger.delete(target(request, ledger))
    # Of a v2 object: `DeletedObject` of the SDK.
    path, key = request.operation.path, request.match.path_values[-1]
    shown = (o for o in spec().operations if o.kind == "retrieve" and o.path == path)
    gone: StripeObject = {"id": key, "object": next(shown).returns[0]}
    ledger.delete(gone)
    return gone


def taken_over(ledger: Ledger, request: Request, found: StripeObject) -> StripeObject:
    """The changes that the parameters make to fields of the same name."""
    fields = request.account.world.routes.fields[str(found["object"])]
    made: StripeObject = {}
    for name, value in request.params.items():
        field = fields.get(name)
        if name == "metadata":
            made[name] = merged_metadata(found.get(name), value)
        elif field is None or name in ("expand", "id", "object", "status") or field.kind == "list":
            continue
        elif field.kind in ("expandable", "resource"):
            if isinstance(value, str) or value is None:
                made[name] = _reference(ledger, field, value, name)
        elif field.kind == "object" and isinstance(value, dict):
            path = f"{found['object']}.{name}"
            made[name] = inner(field, found.get(name), value, path)
        elif field.kind == "array":
            made[name] = _array(ledger, field, value, name)
        else:
            is_code = name == "currency" and isinstance(value, str)
            made[name] = value.lower() if is_code else value
    return made


def merged_metadata(before: object, given: object) -> dict[str, str]:
    """Stripe merges metadata; an empty value deletes its key, an empty string all of it."""
    if not isinstance(given, dict):
        return {}
    kept = dict(before) if isinstance(before, dict) else {}
    kept |= given
    return {k: v for k, v in kept.items() if v not in ("", None)}


def _reference(ledger: Ledger, field: Field, id: object, param: str) -> object:
    known = [t for t in field.targets if ledger.world.tables_of(t)]
    if not id:
        return None
    if known and not any(ledger.world.get(t, str(id)) for t in known):
        raise missing(known[0], str(id), param=param, status=400)
    return id


def inner(field: Field, before: object, given: Params, path: str) -> Params:
    """An inline object with all its keys, the ones not given as they were or empty."""
    made: dict[str, Any] = {
        f.name: empty(f, f"{path}.{f.name}") for f in field.fields if not f.on_request
    }
    if isinstance(before, dict):
        made |= before
    known = {f.name: f for f in field.fields}
    for name, value in given.items():
        deeper = known.get(name)
        if deeper is not None and deeper.kind == "object" and isinstance(value, dict):
            made[name] = inner(deeper, made.get(name), value, f"{path}.{name}")
        elif deeper is not None:
            made[name] = value
    return made


def empty(field: Field, path: str) -> object:
    """What a property is before anything is known of it."""
    if path not in ALWAYS_THERE:
        return None
    return {f.name: empty(f, f"{path}.{f.name}") for f in field.fields if not f.on_request}


def _array(ledger: Ledger, field: Field, value: object, param: str) -> list[object]:
    if not isinstance(value, list):
        return []
    items = field.items
    if items is not None and items.kind in ("resource", "expandable"):
        ids = [v for v in value if isinstance(v, str)]
        if items.kind == "expandable":
            return list(ids)
        return [ledger.get(items.targets[0], id, param=param) for id in ids]
    return list(value)


def _acted(
    request: Request, found: StripeObject, action: str, changes: StripeObject
) -> tuple[StripeObject, str]:
    """What an action of that name does; the event it makes."""
    fields = request.account.world.routes.fields[str(found["object"])]
    event = "updated"
    known = fields["status"].enum if "status" in fields else ()
    for state in _STATES.get(action, ()):
        if state in known:
            changes["status"] = state
            event = _VERBS.get(state, "updated")
            break
    if action in _ACTIVE and "active" in fields:
        changes["active"] = _ACTIVE[action]
    if action == "approve" and "closed_reason" in fields:
        changes |= {"open": False, "closed_reason": "approved"}
        event = "closed"
    for name in (f"{action}ed_at", f"{changes.get('status', '')}_at"):
        if name in fields:
            changes[name] = request.account.clock.seconds()
    return changes, event
