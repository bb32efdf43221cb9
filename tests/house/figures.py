"""The shape of the house in figures, and where each counts; `test_structure` holds their limits.

    python -m tests.house.figures           the table, the four trips included (a minute)
    python -m tests.house.figures --names   and what is counted, by name

The product is everything under `src` but the simulator; a module is a file of it that is no `__init__`.
"""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from tests.house.tree import ROOT, parsed, product, shown

from pinstripe.store.embedded import EmbeddedPostgres
from pinstripe.store.pool import connect

SOURCE = ROOT / "src"
STORE = "store/"
"""What stands below a folder of this name may speak SQL to the bookkeeping."""

_ALIAS = re.compile(r"[A-Z]\w*[a-z]\w*")
_BOOKKEEPING = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|to_regclass\(')\s*pinstripe\.")
_WORDS = {"reason", "message", "hint", "remedy", "trouble"}
_MATCHING = {"startswith", "endswith", "find", "index", "count", "partition", "rpartition"}
_PATTERNS = {"search", "match", "fullmatch", "findall", "finditer"}


@cache
def modules() -> tuple[Path, ...]:
    return tuple(p for p in product() if p.name != "__init__.py")


@cache
def lines() -> int:
    return sum(len(p.read_text().splitlines()) for p in modules())


@cache
def folders() -> Counter[str]:
    """Modules beside each other, by folder."""
    return Counter(shown(p.parent).removeprefix("src/") for p in modules())


@cache
def only_children() -> tuple[str, ...]:
    """Modules that one other imports, and that one stands in the same folder.

    That an `__init__` passes names on counts for nothing.
    """
    importers: defaultdict[str, set[str]] = defaultdict(set)
    for path in modules():
        for name in _imported(path) - {_dotted(path)}:
            importers[name].add(_dotted(path))
    return tuple(
        sorted(
            name
            for name, who in importers.items()
            if len(who) == 1 and _folder(min(who)) == _folder(name)
        )
    )


def _imported(path: Path) -> set[str]:
    """The modules of the product that this one imports, anywhere in it."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & _names() or {str(node.module)}
    return found & _names()


@cache
def _names() -> frozenset[str]:
    return frozenset(map(_dotted, modules()))


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def _folder(dotted: str) -> str:
    return dotted.rpartition(".")[0]


@cache
def doubled_names() -> dict[str, list[str]]:
    """Public names of classes and aliases that two or more modules define, and those modules."""
    defined: defaultdict[str, list[str]] = defaultdict(list)
    for path in modules():
        for name in set(_defined(path)):
            if not name.startswith("_"):
                defined[name].append(_dotted(path))
    return {name: where for name, where in sorted(defined.items()) if len(where) > 1}


def _defined(path: Path) -> Iterator[str]:
    for node in parsed(path).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if _ALIAS.fullmatch(node.targets[0].id):
                yield node.targets[0].id
        elif isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
            yield ast.unparse(node.target)


@cache
def sql_outside() -> tuple[str, ...]:
    """`file: line` of SQL on tables of `pinstripe.*` that does not stand in `store`."""
    return tuple(
        f"{shown(path)}:{node.lineno}"
        for path in modules()
        if STORE not in shown(path)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _BOOKKEEPING.search(node.value)
    )


@cache
def decided_on_words() -> dict[str, str]:
    """Expression -> `file:line`, of all that ask what the text of a reason, message or hint is."""
    return {
        ast.unparse(node): f"{shown(path)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.expr) and _matches_words(node)
    }


def _matches_words(node: ast.expr) -> bool:
    if isinstance(node, ast.Compare):
        return isinstance(node.ops[0], ast.In | ast.NotIn) and _is_text(node.comparators[0])
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    if node.func.attr in _PATTERNS:
        return any(map(_is_text, node.args))
    return node.func.attr in _MATCHING and _is_text(node.func.value)


def _is_text(node: ast.expr) -> bool:
    """Whether this is a text for people: `reason`, `error.message`, `(end.reason or "").lower()`."""
    if isinstance(node, ast.BoolOp):
        return any(map(_is_text, node.values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return _is_text(node.func.value)
    return (getattr(node, "attr", "") or getattr(node, "id", "")) in _WORDS


async def trips() -> dict[str, tuple[int, int]]:
    """Trip -> (files, functions)."""
    from tests.house.trips import TRIPS

    found = {}
    with TemporaryDirectory() as directory:
        async with EmbeddedPostgres(Path(directory) / "postgres", fsync=False) as server:
            for name, trip in TRIPS.items():
                async with connect(server.url) as admin:
                    await admin.execute(f"CREATE DATABASE {name}")
                url = server.url.replace("/pinstripe?", f"/{name}?")
                entered = await trip(url, Path(directory))
                found[name] = (len({file for file, _ in entered}), len(entered))
    return found


def table() -> Iterator[tuple[str, str]]:
    """What is counted, and how many."""
    (widest, most), *_ = folders().most_common(1)
    yield "modules of the product", str(len(modules()))
    yield "lines of the product", f"{lines():,}"
    yield "modules in the widest folder", f"{most} ({widest})"
    yield "modules that exactly one sibling imports", str(len(only_children()))
    yield "public names that two modules define", str(len(doubled_names()))
    yield "statements on `pinstripe.*` outside of store", str(len(sql_outside()))
    yield "decisions on words", str(len(decided_on_words()))
    for trip, (files, functions) in asyncio.run(trips()).items():
        yield f"trip {trip}", f"{files} files, {functions} functions"


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    if "--names" in sys.argv:
        print("\n".join(("Only children:", *only_children(), "", "Doubled names:")))
        print("\n".join(f"{name}: {', '.join(where)}" for name, where in doubled_names().items()))
        print("\n".join(("", "SQL:", *sql_outside(), "", "Words:")))
        print("\n".join(f"{where} {text}" for text, where in decided_on_words().items()), "\n")
    for what, count in table():
        print(f"| {what} | {count} |")


if __name__ == "__main__":
    main()
