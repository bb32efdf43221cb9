"""Removes the secrets from a value before it becomes a row. Pure.

    without_secrets({"object": "payment_intent", "client_secret": "pi_1_secret_x", ...})

Fields that are secrets by the reviewed rules (`catalog.secrets`) become null. As a second net, a text in
any other field (a redirect URL, metadata, a new field) has recognisable secrets cut out, as errors and logs
have. The same value is returned where there is nothing to remove. Secret columns cost nothing, since
`layout` fills none; JSON and free text are walked only if they contain one of a few words (`may_hold`).
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import is_
from typing import Any

import msgspec

from pinstripe.catalog.model import Field
from pinstripe.catalog.secrets import SECRET_NAMES, SECRET_PLACES
from pinstripe.errors import cut_secrets

Value = Any
Paths = tuple[tuple[str, ...], ...]

# Chosen by the user: a key "password" in it is no field of Stripe's, and its value is the user's.
_FREE_KEYS = "metadata"
_EVENTS = ("event", "v2.core.event")
_encode = msgspec.json.Encoder().encode


def may_hold(text: str) -> bool:
    """Whether `text` (JSON or plain) may hold a secret that is known by its look or its common name.

    Every such secret has one of these in it. "secret" finds `client_secret` and `pi_1_secret_x`.
    """
    return "secret" in text or "_test_" in text or "_live_" in text or "whsec_" in text


def without_secret_text(text: str) -> str:
    """`text`, as a column of its own, without secrets."""
    return cut_secrets(text) if may_hold(text) else text


def json_without_secrets(value: Value) -> str:
    """`value` as JSON without secrets, for a column that holds anything."""
    return _encode(without_secrets(value)).decode()


def free_json_without_secrets(value: Value) -> str:
    """As `json_without_secrets`, for an object whose keys the user has chosen."""
    text = _encode(value).decode()
    if not may_hold(text):
        return text
    return _encode(_values(value) if type(value) is dict else without_secrets(value)).decode()


def has_free_keys(field: Field | None) -> bool:
    """Whether the keys of this field are the user's."""
    return field is not None and field.name == _FREE_KEYS


def without_secrets(value: Value) -> Value:
    """`value` without secrets, at any depth."""
    return _walk(value, ())


def names_secrets(field: Field | None) -> bool:
    """Whether parts of this field are secrets by names that `may_hold` does not find."""
    inner = _inner(field) if field is not None else ()
    return any(part.name in SECRET_NAMES or names_secrets(part) for part in inner)


def holds_objects(field: Field | None) -> bool:
    """Whether objects of some type, or anything at all, may stand in this field."""
    if field is None or field.kind in ("any", "resource", "expandable", "list"):
        return True
    return any(holds_objects(part) for part in _inner(field))


def _inner(field: Field) -> tuple[Field, ...]:
    return field.fields if field.items is None else (*field.fields, field.items)


def _walk(value: Value, secret: Paths) -> Value:
    """`secret`: paths that are secrets below this value, by the type of the object around it."""
    kind = type(value)
    if kind is dict:
        return _walk_object(value, secret)
    if kind is str:
        return without_secret_text(value)
    if kind is not list:
        return value
    items = [_walk(item, secret) for item in value]
    return value if all(map(is_, items, value)) else items


def _walk_object(value: dict[str, Value], secret: Paths) -> dict[str, Value]:
    name = value.get("object")
    if type(name) is str:
        secret = SECRET_PLACES.get(name, ())
        if name in _EVENTS:
            secret = _of_payload(value)
    changed: dict[str, Value] = {}
    # Written out for speed: of an event's hundred fields most are texts and numbers.
    for key, old in value.items():
        kind = type(old)
        if old is None or kind is int or kind is bool:
            new = old if key not in SECRET_NAMES else None
        elif (key in SECRET_NAMES and not _is_object(old)) or (secret and (key,) in secret):
            new = None
        elif kind is str:
            new = cut_secrets(old) if "_" in old and may_hold(old) else old
        elif key == _FREE_KEYS and kind is dict:
            new = _values(old)
        else:
            below = tuple(path[1:] for path in secret if path[0] == key) if secret else ()
            new = _walk(old, below)
        if new is not old:
            changed[key] = new
    return {**value, **changed} if changed else value


def _values(free: dict[str, Value]) -> dict[str, Value]:
    """An object with the user's own keys: only its values can show a secret."""
    new = {key: _walk(item, ()) for key, item in free.items()}
    return free if all(new[key] is free[key] for key in free) else new


def _is_object(value: Value) -> bool:
    """Whether an object of Stripe's stands where a secret would (`secret` of a type to come)."""
    return type(value) is dict and type(value.get("object")) is str


def _of_payload(event: Mapping[str, Value]) -> Paths:
    """What is secret in an event: what it says of before has fields of an object, but not its type.

    https://docs.stripe.com/api/events/object (`data.previous_attributes`), and for thin events
    https://docs.stripe.com/api/v2/core/events/object (`changes` beside `related_object.type`).
    """
    data, related = event.get("data"), event.get("related_object")
    obj = data.get("object") if type(data) is dict else None
    name = obj.get("object") if type(obj) is dict else None
    if name is None and type(related) is dict:
        name = related.get("type")
    places = SECRET_PLACES.get(name, ()) if type(name) is str else ()
    before = (("data", "previous_attributes"), ("changes", "before"), ("changes", "after"))
    return tuple((*place, *path) for path in places for place in before)
