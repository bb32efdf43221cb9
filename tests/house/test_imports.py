"""Imports run down only: late ones, and those for types alone, count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.house.tree import PACKAGE, dotted, modules, parsed, shown

# From the ground up. A module may import what stands in a line above its own, nothing beside it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("settings",),
    ("setting_rules",),
    ("config", "catalog", "client", "secrecy"),
    ("rows",),
    ("store", "diagram"),
    ("mirror", "status"),
    ("source",),
    ("doctor", "webhook_endpoints"),
    ("sync", "gateway"),
    ("console",),
    ("service",),
    ("progress", "serving"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# A Stripe of our own beside all that: it must not know what it is there to test.
SIMULATOR = "simulator"
SIMULATOR_MAY = {"errors", "catalog"}
SIMULATOR_FOR = {"cli"}


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything of ours that a module imports, anywhere in it."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path)}:{node.lineno} relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if _is_module(name) else str(node.module)), node.lineno


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def ours(path: Path) -> Iterator[tuple[str, int]]:
    """(part, line): the first name below `pinstripe` of each import of ours."""
    for name, line in imported(path):
        parts = name.split(".")
        if parts[0] == "pinstripe" and len(parts) > 1:
            yield parts[1], line


def part(path: Path) -> str:
    """The part of the house that a module belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {part(p) for p in modules("src/pinstripe")} - {"__init__"}
    assert parts - set(RANK) == {SIMULATOR}


def test_imports_run_down_only() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {target}"
        for path in modules("src/pinstripe")
        for target, line in ours(path)
        if part(path) in RANK
        and target in RANK
        and target != part(path)
        and RANK[target] >= RANK[part(path)]
    ]
    assert wrong == []


def test_the_simulator_knows_the_catalog_and_nothing_else_of_ours() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {target}"
        for path in modules("src/pinstripe")
        for target, line in ours(path)
        if (part(path) == SIMULATOR and target not in SIMULATOR_MAY | {SIMULATOR})
        or (target == SIMULATOR and part(path) not in SIMULATOR_FOR | {SIMULATOR})
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        dotted(path): {name for name, _ in imported(path) if name.startswith("pinstripe.")}
        - {dotted(path)}
        for path in modules("src/pinstripe")
        if path.name != "__init__.py"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_the_package_imports_nothing_that_is_not_declared() -> None:
    """The standard library, the dependencies of pyproject.toml, and ourselves."""
    import tomllib

    text = (PACKAGE.parents[1] / "pyproject.toml").read_text()
    declared = tomllib.loads(text)["project"]["dependencies"]
    names = {d.split(">")[0].split("=")[0].replace("-", "_") for d in declared}
    allowed = names | set(sys.stdlib_module_names) | {"pinstripe"}
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in modules("src/pinstripe")
        for name, line in imported(path)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []
