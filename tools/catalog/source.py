"""Reads the source of the `stripe` package: which class is meant by a name, where.

Works on the text with `ast`: `typing.get_type_hints` fails on the SDK's forward references, and
importing the package would run it. Promises: each class is found by (module, name), names are
resolved as Python's scoping would, and anything else stops with the place (`UnknownShape`).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from pathlib import Path


class UnknownShape(Exception):
    """The SDK holds something that the generator does not know; the message names it."""


@dataclass(frozen=True)
class Module:
    """One file: its classes, and what its imports call by which name."""

    name: str
    classes: dict[str, ast.ClassDef]
    imported: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """Where an annotation stands: the module and the chain of enclosing classes."""

    module: Module
    scope: tuple[ast.ClassDef, ...] = field(default=())

    def __str__(self) -> str:
        return ".".join([self.module.name, *(c.name for c in self.scope)])

    def inside(self, node: ast.ClassDef) -> Place:
        return Place(self.module, (*self.scope, node))


def package_root() -> Path:
    """The folder of the installed `stripe` package."""
    return Path(str(distribution("stripe").locate_file("stripe")))


def sdk_version() -> str:
    return distribution("stripe").version


def api_version() -> str:
    """What this SDK pins, from `_api_version.py`."""
    text = (package_root() / "_api_version.py").read_text()
    found = re.search(r'CURRENT = "([^"]+)"', text)
    if found is None:
        raise UnknownShape("no CURRENT in stripe/_api_version.py")
    return found.group(1)


@cache
def module(name: str) -> Module:
    """The parsed module; `name` is dotted (`stripe._charge`)."""
    parts = name.split(".")[1:]
    path = package_root().joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text())
    imported: dict[str, tuple[str, str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                imported[alias.asname or alias.name] = (node.module, alias.name)
    classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
    return Module(name, classes, imported)


def resolve(name: str, place: Place) -> Place:
    """The class that `name` means at `place`, as a Place whose last scope is the class."""
    for depth in range(len(place.scope), 0, -1):
        for node in place.scope[depth - 1].body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return Place(place.module, place.scope[:depth]).inside(node)
    if name in place.module.classes:
        return Place(place.module).inside(place.module.classes[name])
    if name in place.module.imported:
        other, original = place.module.imported[name]
        return Place(module(other)).inside(module(other).classes[original])
    raise UnknownShape(f"{place}: no class {name}")


def object_name(node: ast.ClassDef) -> str | None:
    """`OBJECT_NAME` of a resource class, else None."""
    for item in node.body:
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and item.target.id == "OBJECT_NAME"
            and isinstance(item.value, ast.Constant)
        ):
            return str(item.value.value)
    return None


def attributes(node: ast.ClassDef) -> list[tuple[str, ast.expr, str]]:
    """(name, annotation, docstring) of each annotated property, in the order of the source."""
    found: list[tuple[str, ast.expr, str]] = []
    for position, item in enumerate(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if ast.unparse(item.annotation).startswith("ClassVar"):
            continue
        doc = ""
        if position + 1 < len(node.body):
            after = node.body[position + 1]
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                doc = " ".join(str(after.value.value).split())
        found.append((item.target.id, item.annotation, doc))
    return found


def object_classes() -> dict[str, Place]:
    """Every object type by its `object` value, from `_object_classes.py`."""
    tree = ast.parse((package_root() / "_object_classes.py").read_text())
    found: dict[str, Place] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            name, (where, cls) = ast.literal_eval(key or value), ast.literal_eval(value)
            found[name] = resolve(cls, Place(module(where)))
    for generic in ("list", "search_result", "v2.search_result", "file_upload"):
        found.pop(generic, None)
    return found


def service_modules() -> list[Module]:
    """Every `*_service.py`, in the order of their names."""
    root = package_root()
    names = (p.relative_to(root).with_suffix("") for p in sorted(root.rglob("_*_service.py")))
    return [module(".".join(["stripe", *n.parts])) for n in names]
