"""The public surface as texts, one a file of `tests/data/surface/`: what users and their programs rely on.

Moving or renaming what is inside must not change a byte of them; a change on purpose is one that a
reviewer sees there. Written anew by

    SURFACE=write .venv/bin/pytest -q tests/house/test_surface.py tests/flows/test_surface.py

Here is what can be read without running a service; the latter file has the rest.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TypeAlias, cast

from cyclopts import App
from rich.console import Console
from tests.house.tree import ROOT, parsed, product

from pinstripe.catalog.tables import tables
from pinstripe.cli.app import app
from pinstripe.cli.runtime import BAD_USAGE, UNEXPECTED
from pinstripe.config.settings import SETTINGS
from pinstripe.console.routes import console_routes
from pinstripe.errors import PinstripeError
from pinstripe.gateway.api.openapi import describe
from pinstripe.gateway.app import ROUTES
from pinstripe.gateway.http.auth import Auth
from pinstripe.store.ddl import create_all

Json: TypeAlias = "dict[str, object]"

FOLDER = ROOT / "tests" / "data" / "surface"
WIDTH = 100

_LOGGERS = re.compile(r"_?log(ger)?")
_LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
_HEADER = re.compile(r"[A-Z][A-Za-z]*(-[A-Z][A-Za-z]*)+")
_OUR_HEADER = re.compile(r"pinstripe(-[a-z]+)+")
_OUR_NAME = re.compile(r"pinstripe_[a-z_]+")
_VARIABLE = re.compile(r"(STRIPE|PINSTRIPE|DATABASE)(_[A-Z]+)+")
# Words beside the structure: they may be put better without anybody's program noticing.
_PROSE = {"description", "summary", "title", "operationId"}


def compare(name: str, text: str) -> None:
    """Fails where the stored text differs; stores it instead if `SURFACE=write` is set."""
    path = FOLDER / name
    text = text.rstrip("\n") + "\n"
    if os.environ.get("SURFACE") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    stored = path.read_text() if path.exists() else ""
    changes = difflib.unified_diff(stored.splitlines(), text.splitlines(), "stored", "now", n=1)
    assert stored == text, "\n".join((f"{path} is the public surface (see {__name__})", *changes))


def help_text() -> str:
    """What `--help` of every command prints, hidden commands too."""
    return "\n".join(_help(app, ()))


def _help(command: App, words: tuple[str, ...]) -> Iterator[str]:
    out = io.StringIO()
    console = Console(file=out, width=WIDTH, color_system=None, force_terminal=False)
    app.help_print(list(words), console=console)
    yield " ".join(("$ pinstripe", *words, "--help"))
    yield "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
    for name in sorted(command):
        if not name.startswith("-"):
            yield from _help(command[name], (*words, name))


def exit_codes() -> str:
    """Errors and what a command ends with after one. Names too: `--json` prints them."""
    codes = {"bad usage": BAD_USAGE, "unexpected": UNEXPECTED}
    codes |= _exit_codes(PinstripeError.__name__, 0)
    return _lines({f"{name} {code}" for name, code in codes.items()})


def _exit_codes(name: str, code: int) -> dict[str, int]:
    """Of the class of this name and of all that derive from it; `code` is what it inherits."""
    for node in _code().classes[name].body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exit_code":
            code = ast.literal_eval(node.value)
    found = {name: code}
    for below in _code().classes.values():
        if name in map(ast.unparse, below.bases):
            found |= _exit_codes(below.name, code)
    return found


def settings() -> str:
    """Flag, environment name, default of each setting; then other variables that the code names."""
    lines = [
        f"{s.flag} {s.env} {'switch' if s.switch else 'value'}{' secret' if s.secret else ''} "
        f"{s.default!r}"
        for s in SETTINGS
    ]
    others = {v for v in _code().constants if _VARIABLE.fullmatch(v)} - {s.env for s in SETTINGS}
    return "\n".join((*lines, "", *sorted(others)))


def openapi() -> str:
    """Paths, parameters and shapes, with every reference replaced by what it refers to."""
    document = cast(Json, json.loads(json.dumps(describe(ROUTES))))
    schemas = cast("dict[str, Json]", cast(Json, document["components"])["schemas"])
    return json.dumps(_structure(document["paths"], schemas, ()), indent=1)


def openapi_words() -> str:
    """Names of types and operations, summaries and descriptions."""
    document = describe(ROUTES)
    schemas = cast("dict[str, Json]", cast(Json, document["components"])["schemas"])
    words = list(_words("", document))
    return "\n".join((*(f"schema {name}" for name in schemas), *words))


def _structure(value: object, schemas: dict[str, Json], within: tuple[str, ...]) -> object:
    if isinstance(value, list):
        return [_structure(v, schemas, within) for v in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = str(value["$ref"]).rpartition("/")[2]
        if name in within:
            return {"again": len(within) - within.index(name)}
        return _structure(schemas[name], schemas, (*within, name))
    return {
        key: _structure(v, schemas, within)
        for key, v in value.items()
        if key not in _PROSE or isinstance(v, dict)
    }


def _words(path: str, value: object) -> Iterator[str]:
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from _words(f"{path}/{place}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key in _PROSE and isinstance(part, str):
                yield f"{path}/{key}: {part}"
            else:
                yield from _words(f"{path}/{key}", part)


def routes() -> str:
    """Every path that the service answers, the console's pages included."""
    ours = [f"{e.method} {e.path} {e.policy} {e.status} {e.media}" for e in ROUTES]
    pages = [
        f"{' '.join(sorted(route.methods or ()))} {route.path}"
        for route in console_routes(Auth(admin_token=""))
    ]
    return "\n".join((*ours, "", *pages))


def ddl() -> str:
    """`pinstripe schema ddl` without its comments."""
    text = create_all("stripe", list(tables().values()))
    return "\n".join(line for line in text.splitlines() if not line.startswith("COMMENT ON"))


def ddl_comments() -> str:
    """A digest of the comments of each table; whole, they are three times as long as the rest."""
    texts: dict[str, str] = {}
    for line in create_all("stripe", list(tables().values())).splitlines():
        if line.startswith("COMMENT ON"):
            table = line.split()[3].split(".")[1]
            texts[table] = texts.get(table, "") + line + "\n"
    return _lines({f"{t} {hashlib.sha256(text.encode()).hexdigest()}" for t, text in texts.items()})


def bookkeeping() -> str:
    """The statements that make `pinstripe.*`, without comments."""
    (path,) = (ROOT / "src").rglob("bookkeeping.sql")
    lines = (line.partition("--")[0].rstrip() for line in path.read_text().splitlines())
    return "\n".join(filter(None, lines))


def log_events() -> str:
    """Event names that are logged, by level, with the fields that stand beside them."""
    return _lines(set(map(_logged, _code().logged)))


def _logged(call: ast.Call) -> str:
    event = call.args[0]
    assert isinstance(event, ast.Constant), f"{ast.unparse(call)} names no event"
    fields = sorted(k.arg or "**" for k in call.keywords if k.arg != "exc_info")
    return " ".join((str(event.value), cast(ast.Attribute, call.func).attr, *fields))


def _is_logged(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _LEVELS:
        return False
    logger = call.func.value
    name = getattr(logger, "id", "") or getattr(logger, "attr", "")
    return _LOGGERS.fullmatch(name) is not None


def names() -> str:
    """Names in the code that others know: headers, and what begins with `pinstripe_`.

    The latter are channels of NOTIFY, the cookie, the lock, the metadata of a webhook endpoint.
    """
    found = (_HEADER, _OUR_HEADER, _OUR_NAME)
    return _lines({v for v in _code().constants if any(p.fullmatch(v) for p in found)})


@dataclass(slots=True)
class _Code:
    """What the product's source has of these; text constants of bytes too."""

    constants: set[str] = field(default_factory=set)
    logged: list[ast.Call] = field(default_factory=list)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)


@cache
def _code() -> _Code:
    found = _Code()
    for path in product():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant):
                if isinstance(node.value, str):
                    found.constants.add(node.value)
                elif isinstance(node.value, bytes):
                    found.constants.add(node.value.decode("latin-1"))
            elif isinstance(node, ast.ClassDef):
                found.classes[node.name] = node
            elif isinstance(node, ast.Call) and _is_logged(node):
                found.logged.append(node)
    return found


def _lines(found: set[str]) -> str:
    return "\n".join(sorted(found))


TEXTS: dict[str, Callable[[], str]] = {
    "help.txt": help_text,
    "exit_codes.txt": exit_codes,
    "settings.txt": settings,
    "openapi.json": openapi,
    "openapi_words.txt": openapi_words,
    "routes.txt": routes,
    "ddl.sql": ddl,
    "ddl_comments.txt": ddl_comments,
    "bookkeeping.sql": bookkeeping,
    "log_events.txt": log_events,
    "names.txt": names,
}
