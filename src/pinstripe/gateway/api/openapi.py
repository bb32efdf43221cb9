"""The OpenAPI 3.1 description of the gateway, built from the route list and the types of its answers.

Nothing in it is written by hand: summaries are docstrings, schemas come from the Structs that are encoded
and decoded. The proxy is left out: it speaks Stripe's API, which Stripe describes.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from textwrap import dedent
from typing import TypeAlias, cast, get_args, get_type_hints

import msgspec

from pinstripe.gateway.api.endpoint import Endpoint, Policy
from pinstripe.gateway.http.errors import JSON, ErrorBody

Json: TypeAlias = "dict[str, object]"

_REF = "#/components/schemas/{name}"
_SECURITY: dict[Policy, list[Json]] = {
    "admin": [{"admin": []}],
    "wait": [{"admin": []}, {"wait": []}, {"stripe": []}],
    "signature": [{"signature": []}],
    "anyone": [],
}
_SCHEMES: Json = {
    "admin": {
        "type": "http",
        "scheme": "bearer",
        "description": "PINSTRIPE_ADMIN_TOKEN. Without one the gateway listens on loopback only and "
        "asks for none.",
    },
    "wait": {"type": "http", "scheme": "bearer", "description": "PINSTRIPE_WAIT_TOKEN."},
    "stripe": {"type": "http", "scheme": "bearer", "description": "A Stripe key of the account."},
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Stripe-Signature",
        "description": "As Stripe signs webhooks.",
    },
}
_PARAMETER = re.compile(r"\{(\w+)\}")


def describe(endpoints: Sequence[Endpoint]) -> Json:
    """The whole document."""
    kinds = sorted(_kinds(endpoints), key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, schema_hook=_any, ref_template=_REF)
    for kind in _reachable(kinds):
        _annotate(cast(Json, schemas[kind.__name__]), field_docs(kind))
    paths: dict[str, Json] = {}
    names: set[object] = set()
    for endpoint in endpoints:
        operation = _operation(endpoint)
        if operation["operationId"] in names:
            operation["operationId"] = f"{endpoint.name}_{endpoint.method.lower()}"
        names.add(operation["operationId"])
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pinstripe",
            "version": version("pinstripe"),
            "description": "Syncs, how they stand, events and changes; waiting and webhooks.",
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": _SCHEMES},
    }


def _operation(endpoint: Endpoint) -> Json:
    found: Json = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "security": _SECURITY[endpoint.policy],
        "parameters": _parameters(endpoint),
        "responses": _responses(endpoint),
    }
    if endpoint.description:
        found["description"] = endpoint.description
    if endpoint.body is not None:
        found["requestBody"] = {
            "required": True,
            "content": {JSON: {"schema": _ref(endpoint.body)}},
        }
    return found


def _parameters(endpoint: Endpoint) -> list[Json]:
    found: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    query = endpoint.query or endpoint.takes
    return found + (query_parameters(query) if query is not None else [])


def query_parameters(kind: type) -> list[Json]:
    """Of a query Struct, each with what its field's docstring says."""
    docs = field_docs(kind)
    (_,), schemas = msgspec.json.schema_components([kind], ref_template=_REF)
    shape = cast(Json, schemas[kind.__name__])
    found: list[Json] = []
    for name, schema in cast(Json, shape["properties"]).items():
        parameter: Json = {"name": name, "in": "query", "schema": schema}
        if name in docs:
            parameter["description"] = docs[name]
        found.append(parameter)
    return found


def _responses(endpoint: Endpoint) -> Json:
    failure: Json = {
        "description": "What is wrong, and what to do about it.",
        "content": {JSON: {"schema": _ref(ErrorBody)}},
    }
    content: Json = {}
    if endpoint.stream is not None:
        content = {endpoint.media: {"schema": {"type": "string"}}}
    elif endpoint.shape is not None:
        content = {JSON: {"schema": _ref(endpoint.shape)}}
    elif endpoint.media != JSON:
        content = {endpoint.media: {"schema": {"type": "string"}}}
    ok: Json = {"description": "Done."}
    if content:
        ok["content"] = content
    found: Json = {str(endpoint.status): ok, "default": failure}
    for status, kind in endpoint.also.items():
        content = {JSON: {"schema": _ref(kind)}}
        found[str(status)] = {"description": _first_line(kind), "content": content}
    return found


def _kinds(endpoints: Sequence[Endpoint]) -> set[type]:
    kinds: set[type] = {ErrorBody}
    for endpoint in endpoints:
        named = (endpoint.shape, endpoint.body, endpoint.stream, *endpoint.also.values())
        kinds |= {kind for kind in named if kind is not None}
    return kinds


def _reachable(kinds: Iterable[type]) -> set[type]:
    """These and all Structs and dataclasses that their fields speak of."""
    found: set[type] = set()
    open_kinds: list[object] = list(kinds)
    while open_kinds:
        kind = open_kinds.pop()
        open_kinds += get_args(kind)
        if isinstance(kind, type) and kind not in found and _has_fields(kind):
            found.add(kind)
            open_kinds += get_type_hints(kind).values()
    return found


def _any(kind: type) -> Json:
    """The schema of a value that may be anything."""
    if kind is object:
        return {"description": "Any value."}
    raise NotImplementedError(kind)


def _has_fields(kind: type) -> bool:
    return issubclass(kind, msgspec.Struct) or is_dataclass(kind)


def _annotate(schema: Json, docs: dict[str, str]) -> None:
    """Puts what the class says of its fields into its schema."""
    for name, shape in cast("dict[str, Json]", schema.get("properties", {})).items():
        if name in docs:
            shape["description"] = docs[name]


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Field -> its docstring, the text below it in the class, on one line. Inherited fields too."""
    base = kind.__base__
    found = dict(field_docs(base)) if base not in (None, object, msgspec.Struct) else {}
    [body] = [
        n for n in ast.parse(dedent(inspect.getsource(kind))).body if isinstance(n, ast.ClassDef)
    ]
    for line, after in pairwise(body.body):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    found[line.target.id] = " ".join(text.split())
    return found


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _ref(kind: type) -> Json:
    return {"$ref": _REF.format(name=kind.__name__)}
