"""A module is one idea, a function is read in one go, and both say what they are for."""

from __future__ import annotations

import ast
import re

from tests.house.tree import modules, parsed, shown

MODULE_LINES = 600
# Longer modules, and why each is one idea all the same: "src/...": "reason".
LONG_MODULES = {
    "src/pinstripe/cli/app.py": "Every command, its flags and its help.",
    "src/pinstripe/gateway/proxy/mirroring.py": "All that may become of one answer.",
    "src/pinstripe/store/migrate.py": "All that brings a schema to the catalog, and fills it.",
    "src/pinstripe/mirror/writer.py": "All that one transaction does, and the session it does it in.",
}
FUNCTION_LINES = 50
SMALL_MODULE = 40
CODE = ("src", "tools", "benchmarks")
DRAWERS = {"utils", "util", "common", "helpers", "helper", "base", "core", "misc"}


def test_a_long_module_has_a_reason() -> None:
    sizes = {shown(p): len(p.read_text().splitlines()) for p in modules(*CODE)}
    long = {name for name, n in sizes.items() if n > MODULE_LINES}
    assert long == {name for name, reason in LONG_MODULES.items() if reason}


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{shown(path)}:{node.lineno} {node.name}": lines
        for path in modules(*CODE)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_every_module_of_some_size_says_what_it_is_for() -> None:
    silent = [
        shown(path)
        for path in modules(*CODE, "tests")
        if len(path.read_text().splitlines()) > SMALL_MODULE and not ast.get_docstring(parsed(path))
    ]
    assert silent == []


def test_no_module_is_a_drawer() -> None:
    assert [
        shown(p) for p in modules(*CODE, "tests") if set(p.with_suffix("").parts) & DRAWERS
    ] == []


def test_an_init_is_empty_or_a_list_of_names() -> None:
    allowed = (ast.ImportFrom, ast.Assign)
    full = [
        shown(path)
        for path in modules(*CODE)
        if path.name == "__init__.py"
        for node in parsed(path).body
        if not isinstance(node, allowed)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    assert full == []


def test_no_work_is_left_as_a_note() -> None:
    marks = re.compile(r"#.*\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")
    left = [
        f"{shown(path)}:{number}"
        for path in modules(*CODE, "tests")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert left == []
