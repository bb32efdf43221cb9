"""Every command line of every page, as the real command line reads it: run or not, it must parse."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclopts import CycloptsError, MissingArgumentError

from pinstripe.cli.app import app
from pinstripe.config.config import read_config
from pinstripe.store.database_url import read_url

ROOT = Path(__file__).parents[2]
GENERATED = {"docs/reference/cli.md", "docs/reference/settings.md"}
PAGES = sorted(
    path
    for folder in ("docs", "deploy")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".md", ".yaml", ".yml", ".service", ".sh"}
    and str(path.relative_to(ROOT)) not in GENERATED
)
PAGES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

_BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.M | re.S)
_SPAN = re.compile(r"`([^`\n]+)`")
# As a command: at the start, behind a pipe, a bracket, another command, a path.
_COMMAND = re.compile(r"(?:^|[|;&(=]\s*|\s|/)pinstripe ((?:'[^']*'|\"[^\"]*\"|[^|;&)>#\n'\"])+)")
_COMMANDS = (
    "run serve sync verify erase status check wait simulate demo",
    "syncs add,syncs change,syncs list,syncs remove,schema tables,schema ddl,schema erd,"
    "webhook create,reader create",
)
_OF_THE_BENCHMARKS = {f"docs/concepts/performance.md: --{flag}" for flag in ("full", "save")}
_ANY = (*_COMMANDS[0].split(), *_COMMANDS[1].split(","), "schema models")


@dataclass(frozen=True)
class Line:
    """What a page tells to type. `is_whole`: with all of its words, not only named in a sentence."""

    page: str
    words: tuple[str, ...]
    is_whole: bool

    def __str__(self) -> str:
        return f"{self.page}: pinstripe {shlex.join(self.words)}"


def lines() -> Iterator[Line]:
    for path in PAGES:
        if not path.exists():
            continue
        page, text = str(path.relative_to(ROOT)), path.read_text()
        is_markdown = path.suffix == ".md"
        blocks = _BLOCK.findall(text) if is_markdown else [text]
        for block in blocks:
            for line in block.replace("\\\n", " ").splitlines():
                if not line.lstrip().startswith("#"):
                    yield from _commands(page, line, is_whole=True)
        if is_markdown:
            for span in _SPAN.findall(_BLOCK.sub("", text).replace("\n", " ")):
                if span.startswith("pinstripe "):
                    yield from _commands(page, span, is_whole=False)


def _commands(page: str, text: str, *, is_whole: bool) -> Iterator[Line]:
    for found in _COMMAND.findall(text):
        try:
            words = shlex.split(found)
        except ValueError:
            continue  # a sentence of a program that speaks of us
        if words and re.fullmatch("[a-z-]+", words[0]) and words[0] in _names():
            yield Line(page, tuple(w for w in words if w != "..."), is_whole)


def _names() -> set[str]:
    return {name for name in app if not name.startswith("-")}


def addresses() -> Iterator[tuple[str, str]]:
    """(page, address of a database) of what a page tells to export."""
    for path in PAGES:
        if path.suffix == ".md" and path.exists():
            for block in _BLOCK.findall(path.read_text()):
                for address in re.findall(r"DATABASE_URL=['\"]?(postgres[^'\"\s]+)", block):
                    yield str(path.relative_to(ROOT)), address


def flags() -> Iterator[tuple[str, str]]:
    """(page, `--flag=value` or `--flag value`) of sentences."""
    for path in PAGES:
        if path.suffix == ".md" and path.exists():
            text = _BLOCK.sub("", path.read_text()).replace("\n", " ")
            for span in _SPAN.findall(text):
                if re.match(r"--[a-z]", span):
                    yield str(path.relative_to(ROOT)), span


LINES = sorted(dict.fromkeys(lines()), key=str)


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_documented_command_is_read(line: Line) -> None:
    try:
        app.parse_args(line.words, exit_on_error=False, print_error=False)
    except MissingArgumentError:
        assert not line.is_whole, str(line)


def test_documented_addresses_of_databases_are_read() -> None:
    read = [(page, read_url(_verified_by_the_system(a), {})) for page, a in addresses()]
    assert all(target.hosts and target.user and target.database for _, target in read)
    assert {page for page, _ in read} >= {"docs/how-to/hosted-postgres.md", "docs/quickstart.md"}


def _verified_by_the_system(address: str) -> str:
    """The address with the system's authorities, for a file that a reader downloads."""
    return re.sub(r"sslrootcert=[\w.-]+", "sslrootcert=system", address)


def test_flags_of_sentences_are_read() -> None:
    wrong = []
    for page, span in flags():
        words = shlex.split(span)
        if any(_parses([*command.split(), *words]) for command in _ANY):
            continue
        wrong.append(f"{page}: {span}")
    assert set(wrong) <= _OF_THE_BENCHMARKS


def _parses(words: list[str]) -> bool:
    try:
        app.parse_args(words, exit_on_error=False, print_error=False)
    except MissingArgumentError:
        return True
    except CycloptsError:
        return False
    return True


def test_the_pages_have_commands() -> None:
    assert len(LINES) > 60
    assert {line.words[0] for line in LINES} >= {
        "sync",
        "serve",
        "syncs",
        "check",
        "wait",
        "reader",
    }


@pytest.mark.parametrize(
    "words",
    [
        ("--tables", "-a,-b"),
        ("--tables=-a,-b",),
        ("--tables", "a,-b"),
        ("--tables", "-event", "--once"),
        ("--tables", "-issuing_*"),
    ],
)
def test_tables_are_left_out_however_it_is_written(words: tuple[str, ...]) -> None:
    _, bound, _ = app.parse_args(["sync", *words], exit_on_error=False, print_error=False)
    assert bound.arguments["tables"] == words[0].partition("=")[2] or words[1]
    assert read_config({"tables": "-a,-b"}, {}).tables == ("-a", "-b")
