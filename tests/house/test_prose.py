"""What the pages tell people to type exists, and the guarantees name tests that exist."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house.tree import ROOT, files, modules, parsed, shown

from pinstripe.cli.app import app

BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.M | re.S)
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
GUARANTEES = ROOT / "docs" / "concepts" / "guarantees.md"
# Senses and persons in place of the field's words (request, poll, notify, caller).
OLD_WORDS = re.compile(
    r"\b(hears?|heard|rings?|rung|told|whoever|somebody|who(?:ever)? asks|(?:a|the|two|few) looks?"
    r"|looks? at (?:once|it)|looked at|asks? (?:Stripe(?!'s)|anew|again))\b"
)
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_MAKE_ERRORS = ("HTTPError", "failure", "_refusal", "_no")
_CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def commands(program: str) -> Iterator[tuple[Path, list[str]]]:
    """(page, words after the program) of every line in a `sh` block that runs `program`."""
    for page in files():
        if page.suffix != ".md":
            continue
        for block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\||;|>", line):
                    words = shlex.split(part, comments=True)
                    while words and _ASSIGNMENT.match(words[0]):
                        words.pop(0)
                    if words and words[0] == program:
                        yield page, words[1:]


def test_every_make_target_in_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.M))
    found = list(commands("make"))
    assert found, "no page shows a target any more: is the pattern still right?"
    unknown = [
        f"{shown(page)}: make {word}"
        for page, words in found
        for word in words
        if not _ASSIGNMENT.match(word) and word not in targets
    ]
    assert unknown == []


def test_every_command_and_flag_in_the_docs_exists(capsys: pytest.CaptureFixture[str]) -> None:
    found = list(commands("pinstripe"))
    assert found, "no page shows a command any more: is the pattern still right?"
    wrong = [
        f"{shown(page)}: pinstripe {' '.join(words)}"
        for page, words in found
        if not _is_known(words, capsys)
    ]
    assert wrong == []


def _is_known(words: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the help of the command that the words name speaks of every flag in them."""
    names: list[str] = []
    here = app
    for word in words:
        if word.startswith("-") or word not in here:
            break
        names.append(word)
        here = here[word]
    if not names:
        return words in (["--help"], [])
    capsys.readouterr()
    app([*names, "--help"], exit_on_error=False, result_action="return_value")
    told = capsys.readouterr().out
    flags = [w.partition("=")[0] for w in words[len(names) :] if w.startswith("-")]
    return all(re.search(rf"(?<![\w-]){re.escape(f)}(?![\w-])", told) for f in flags)


def test_the_page_of_the_api_names_every_code_of_an_error() -> None:
    page = (ROOT / "docs" / "reference" / "http.md").read_text()
    codes = {code for path in modules("src") for code in _codes(parsed(path))}
    assert len(codes) > 20
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []


def _codes(module: ast.Module) -> Iterator[str]:
    """The code of each error that the module makes for a caller of the gateway."""
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _MAKE_ERRORS:
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from [w for w in words if isinstance(w, str) and _CODE.fullmatch(w)][:1]


def test_pages_for_users_speak_as_the_field_does() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "quickstart.md"]
    for folder in ("how-to", "concepts"):
        pages += sorted((ROOT / "docs" / folder).glob("*.md"))
    said = [
        f"{shown(page)}:{text.count(chr(10), 0, found.start()) + 1} {found.group()}"
        for page in pages
        for text in [page.read_text()]
        for found in OLD_WORDS.finditer(text)
    ]
    assert said == []


def test_every_guarantee_names_tests_that_exist() -> None:
    named = NAMED_TEST.findall(GUARANTEES.read_text())
    assert named
    assert [f"{path}::{name}" for path, name in named if name not in _tests_in(ROOT / path)] == []


def test_every_guarantee_has_a_test() -> None:
    rows = re.findall(r"^\| (?!guarantee|---)(.*) \|$", GUARANTEES.read_text(), re.M)
    assert rows
    assert [row.partition("|")[0] for row in rows if not NAMED_TEST.search(row)] == []


def _tests_in(path: Path) -> set[str]:
    if not path.exists():
        return set()
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(parsed(path)) if isinstance(node, kinds)}
