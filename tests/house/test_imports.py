"""Imports run down only: late ones, and those for types alone, count too."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from tests.house.tree import PACKAGE, dotted, modules, parsed, product, shown

# From the ground up. A module may import from a line above its own, and from its own part; parts that
# share a line do not import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "concurrency"),
    ("config",),
    ("catalog",),
    ("client", "encryption"),
    ("rows", "diagram"),
    ("store",),
    ("mirror",),
    ("source",),
    ("doctor",),
    ("sync.read_quota", "sync.refetch", "sync.upcoming", "gateway.syncs"),
    ("sync.events", "gateway.live"),
    ("sync.backfill", "gateway.http"),
    ("sync.scan",),
    ("sync.relist", "sync.verify", "gateway.proxy"),
    ("sync.follower", "gateway.deps", "gateway.wait"),
    ("sync.heartbeat", "gateway.api", "gateway.webhooks"),
    ("gateway.app",),
    ("console",),
    ("service",),
    ("platforms",),
    ("serving",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
# These two meet in Postgres only, so that they run in one process or in several.
STRANGERS = {"sync", "gateway"}
# A Stripe of our own beside the product: it must not know what it is there to test.
SIMULATOR = "pinstripe_simulator"
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


def part(name: str) -> str:
    """The part of the house that `pinstripe.….…` belongs to, as LAYERS names it.

    >>> part("pinstripe.sync.events.poller"), part("pinstripe.store.pool")
    ('sync.events', 'store')
    """
    below = name.split(".")[1:3]
    return ".".join(below) if below[0] in STRANGERS else below[0]


def imports() -> Iterator[tuple[str, str, str]]:
    """(`file:line`, importing part, imported part) of each import of the product from the product."""
    for path in product():
        for name, line in imported(path):
            if name.startswith("pinstripe."):
                yield f"{shown(path)}:{line} imports {name}", part(dotted(path)), part(name)


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {part(dotted(p)) for p in product() if p.name != "__init__.py"}
    assert parts == set(RANK)


def test_imports_run_down_only() -> None:
    wrong = [
        where
        for where, importer, target in imports()
        if importer != target and RANK[target] >= RANK[importer]
    ]
    assert wrong == []


def test_sync_and_gateway_meet_in_postgres_only() -> None:
    met = [
        where
        for where, importer, target in imports()
        if {importer.partition(".")[0], target.partition(".")[0]} == STRANGERS
    ]
    assert met == []


def test_the_simulator_knows_the_catalog_and_nothing_else_of_ours() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in modules(f"src/{SIMULATOR}")
        for name, line in imported(path)
        if name.startswith("pinstripe.") and part(name) not in SIMULATOR_MAY
    ] + [
        f"{shown(path)}:{line} imports {name}"
        for path in product()
        for name, line in imported(path)
        if name.startswith(SIMULATOR) and part(dotted(path)) not in SIMULATOR_FOR
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        dotted(path): {name for name, _ in imported(path) if name.startswith("pinstripe")}
        - {dotted(path)}
        for path in modules("src")
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
    names = {re.split(r"[\[>=]", d)[0].replace("-", "_") for d in declared}
    allowed = names | set(sys.stdlib_module_names) | {"pinstripe", SIMULATOR}
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in modules("src")
        for name, line in imported(path)
        if name.split(".")[0] not in allowed
    ]
    assert wrong == []
