"""Operations out of the SDK's service classes: method, path, parameters, what comes back."""

from __future__ import annotations

import ast
import re
from typing import Any

from pinstripe.catalog.model import Field, Operation
from tools.catalog.source import (
    Module,
    Place,
    UnknownShape,
    attributes,
    resolve,
    service_modules,
)

_KINDS = {"list", "search", "retrieve", "create", "update", "delete"}
# How deep a body's parameters are recorded. Deeper ones are known to exist, not by name.
_DEPTH = 3
_FRAME = {"expand", "idempotency_key", "stripe_version", "stripe_account", "stripe_context"}


def operations(names: dict[tuple[str, str], str]) -> tuple[Operation, ...]:
    """Every operation, by path and method."""
    found: dict[tuple[str, str], Operation] = {}
    for service in service_modules():
        for cls in service.classes.values():
            for item in cls.body:
                if isinstance(item, ast.FunctionDef):
                    operation = _operation(service, item, names)
                    if operation is not None:
                        found.setdefault((operation.path, operation.method), operation)
    return tuple(found[key] for key in sorted(found))


def _operation(
    service: Module, function: ast.FunctionDef, names: dict[tuple[str, str], str]
) -> Operation | None:
    call = _request_call(function)
    if call is None:
        return None
    method = str(ast.literal_eval(call.args[0])).upper()
    path = _path(call.args[1])
    bases = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "base_address"]
    returns, is_list = _returns(service, function, names)
    return Operation(
        method=method,  # type: ignore[arg-type]
        path=path,
        kind=_kind(function.name, method, path, is_list),  # type: ignore[arg-type]
        returns=returns,
        params=_params(service, function),
        base=bases[0] if bases else "api",
    )


def _request_call(function: ast.FunctionDef) -> ast.Call | None:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "_request"
        ):
            return node
    return None


def _path(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Constant)
    ):
        return str(node.func.value.value)
    raise UnknownShape(f"path {ast.unparse(node)}")


def _returns(
    service: Module, function: ast.FunctionDef, names: dict[tuple[str, str], str]
) -> tuple[tuple[str, ...], bool]:
    if function.returns is None:
        raise UnknownShape(f"{service.name}.{function.name} has no return type")
    text = ast.unparse(function.returns).strip("'\"")
    listed = re.match(r"(?:ListObject|SearchResultObject)\[(.*)\]$", text)
    inner = listed.group(1) if listed else text
    found: list[str] = []
    for name in re.findall(r"\w+", inner):
        if name in ("Union", "Any", "None", "str"):
            continue
        place = resolve(name, Place(service))
        known = names.get((place.module.name, place.scope[-1].name))
        if known:
            found.append(known)
    return tuple(found), listed is not None


def _kind(name: str, method: str, path: str, is_list: bool) -> str:
    if path.endswith("/search"):
        return "search"
    if method == "GET":
        return "list" if is_list else "retrieve"
    if method == "DELETE":
        return "delete"
    return name if name in _KINDS and name not in ("list", "search", "retrieve") else "action"


def _params(service: Module, function: ast.FunctionDef) -> tuple[Field, ...]:
    for argument in function.args.args:
        if argument.arg == "params" and argument.annotation is not None:
            found = re.findall(r"\w+Params", ast.unparse(argument.annotation))
            if found:
                return _fields(resolve(found[0], Place(service)), 1)
    return ()


def _fields(place: Place, depth: int) -> tuple[Field, ...]:
    return tuple(
        _param(place, name[:-1] if name.endswith("_") else name, annotation, depth)
        for name, annotation, _ in attributes(place.scope[-1])
        if depth > 1 or name not in _FRAME - {"expand"}
    )


def _param(place: Place, name: str, annotation: ast.expr, depth: int) -> Field:
    required = not ast.unparse(annotation).startswith("NotRequired")
    if not required and isinstance(annotation, ast.Subscript):
        annotation = annotation.slice
    shape = _shape(place, annotation, depth)
    if name == "created" and shape["kind"] == "object":
        shape["kind"] = "time"
    return Field(name=name, nullable=not required, **shape)


def _shape(place: Place, node: ast.expr, depth: int) -> dict[str, Any]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _shape(place, ast.parse(node.value, mode="eval").body, depth)
    if isinstance(node, ast.BinOp):
        return _either(_shape(place, node.left, depth), _shape(place, node.right, depth))
    if isinstance(node, ast.Name):
        return _named(place, node.id, depth)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        head, inner = node.value.id, node.slice
        if head == "Literal":
            values = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            constants = [v.value for v in values if isinstance(v, ast.Constant)]
            if all(isinstance(c, str) for c in constants):
                return {"kind": "string", "enum": tuple(constants)}
            return {"kind": "boolean" if isinstance(constants[0], bool) else "integer"}
        if head in ("Optional", "NotRequired"):
            return _shape(place, inner, depth)
        if head == "Union":
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            shape = _shape(place, parts[0], depth)
            for part in parts[1:]:
                shape = _either(shape, _shape(place, part, depth))
            return shape
        if head == "List":
            return {"kind": "array", "items": Field(name="", **_shape(place, inner, depth))}
        if head in ("Dict", "UntypedStripeObject", "Mapping"):
            return {"kind": "map"}
    raise UnknownShape(f"{place}: parameter {ast.unparse(node)}")


def _named(place: Place, name: str, depth: int) -> dict[str, Any]:
    scalars = {
        "str": "string",
        "int": "integer",
        "float": "number",
        "bool": "boolean",
        "Decimal": "decimal",
        "datetime": "time_iso",
        "object": "any",
        "Any": "any",
        "Dict": "map",
        "None": "any",
    }
    if name in scalars:
        return {"kind": scalars[name]}
    target = resolve(name, place)
    fields = _fields(target, depth + 1) if depth < _DEPTH else ()
    return {"kind": "object", "fields": fields}


def _either(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Of two alternatives, the one that says more: `Literal[''] | X` is an X that can be unset."""
    if a["kind"] == b["kind"] == "string":
        # `Literal[...] | str` is an open enum; '' stands for "unset".
        values = tuple(v for v in (*a.get("enum", ()), *b.get("enum", ())) if v)
        return {"kind": "string", "enum": values} if values else {"kind": "string"}
    if a["kind"] == "string" and not any(a.get("enum", ())):
        return b if b["kind"] != "any" else a
    order = ["object", "array", "map", "time", "integer", "number", "decimal", "boolean", "string"]
    ranked = sorted((a, b), key=lambda s: order.index(s["kind"]) if s["kind"] in order else 99)
    return ranked[0]
